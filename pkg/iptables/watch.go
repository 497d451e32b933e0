package iptables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/pace"
)

const (
	// fileClosed is the last event when a program has changed rules: it closes the lock file.
	fileClosed = unix.IN_CLOSE_WRITE | unix.IN_CLOSE_NOWRITE
	// fileReplaced means that the name may refer to another file now.
	fileReplaced = unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
)

// watcher reads events of the lock file.
type watcher struct {
	lock    *lock
	inotify *os.File
	conn    syscall.RawConn
	signal  chan struct{}
}

// watch signals that another program may have changed rules of the legacy variant, because it has
// closed the lock file. Our own writes are not signalled. Several events may be one signal. The
// channel is closed with the context, or when the file can no longer be watched.
func (l *lock) watch(ctx context.Context) (<-chan struct{}, error) {
	w, err := l.watcher()
	if err != nil {
		return nil, fmt.Errorf("watch the lock of iptables: %w", err)
	}
	go w.run(ctx)
	return w.signal, nil
}

// watcher returns a registered watcher that does not run yet.
func (l *lock) watcher() (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	w := &watcher{lock: l, inotify: os.NewFile(uintptr(fd), "inotify"), signal: make(chan struct{}, 1)}
	if w.conn, err = w.inotify.SyscallConn(); err == nil {
		err = w.add()
	}
	if err != nil {
		w.inotify.Close()
		return nil, err
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	l.watchers[w] = struct{}{}
	return w, nil
}

// add watches the lock file, and creates it as iptables would.
func (w *watcher) add() error {
	for made := false; ; made = true {
		var failed error
		err := w.conn.Control(func(fd uintptr) {
			_, failed = unix.InotifyAddWatch(int(fd), w.lock.path, fileClosed|fileReplaced)
		})
		if err = errors.Join(err, failed); made || !errors.Is(err, unix.ENOENT) {
			return err
		}
		f, err := os.OpenFile(w.lock.path, os.O_CREATE|os.O_RDONLY, 0o600)
		if err != nil {
			return err
		}
		f.Close()
	}
}

// run turns events into signals until it is stopped. It reads events only while no command of ours
// writes, and write discards the events of its own command.
func (w *watcher) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, w.stop)
	defer stop()
	for err := error(nil); err == nil; {
		err = w.conn.Read(func(uintptr) bool {
			w.lock.writing.Lock()
			defer w.lock.writing.Unlock()
			events := w.drain()
			w.handle(events)
			return events != 0
		})
	}
	w.lock.writing.Lock()
	delete(w.lock.watchers, w)
	close(w.signal)
	w.lock.writing.Unlock()
	w.inotify.Close()
}

// stop ends run.
func (w *watcher) stop() { w.inotify.SetReadDeadline(time.Unix(1, 0)) }

// handle handles events. The caller holds lock.writing, as for drain.
func (w *watcher) handle(events uint32) {
	if events == 0 {
		return
	}
	if events&fileReplaced != 0 && w.add() != nil {
		w.stop()
	}
	pace.Wake(w.signal)
}

// drain reads all pending events and returns their union.
func (w *watcher) drain() (events uint32) {
	buf := make([]byte, 4096)
	_ = w.conn.Control(func(fd uintptr) {
		for {
			n, err := unix.Read(int(fd), buf)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || n <= 0 {
				return
			}
			for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
				events |= binary.NativeEndian.Uint32(b[4:])
				name := int(binary.NativeEndian.Uint32(b[12:]))
				b = b[min(len(b), unix.SizeofInotifyEvent+name):]
			}
		}
	})
	return events
}
