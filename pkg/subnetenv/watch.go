package subnetenv

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"flanneld/pkg/pace"
)

const (
	// fileEvents are events of files in the watched directory.
	fileEvents = unix.IN_CLOSE_WRITE | unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO
	// dirEvents are events of the directory.
	dirEvents = unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
)

// watch signals possible changes of the daemon's files, including the daemon's own.
type watch struct {
	c <-chan struct{} // several changes before a read are one signal

	dir     string
	names   []string
	fd      int // of inotify
	inotify *os.File
	wd      int // watch descriptor of dir
}

// newWatch returns a watch of the files that belong to the subnet.env at path, which begins with
// the first rewatch.
func newWatch(path string) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", path, err)
	}
	c := make(chan struct{}, 1)
	w := &watch{c: c, dir: filepath.Dir(path), fd: fd, inotify: os.NewFile(uintptr(fd), "inotify"), wd: -1}
	for _, file := range Files(path) {
		w.names = append(w.names, filepath.Base(file))
	}
	go w.follow(c)
	return w, nil
}

// rewatch watches the directory that the path refers to now, and reports whether that is another
// one, whose earlier changes were not signalled. It must not be called after close.
func (w *watch) rewatch() (other bool, err error) {
	wd, err := unix.InotifyAddWatch(w.fd, w.dir, fileEvents|dirEvents|unix.IN_ONLYDIR)
	if err != nil {
		return false, fmt.Errorf("watch %s: %w", w.dir, err)
	}
	if other = wd != w.wd; other && w.wd >= 0 {
		unix.InotifyRmWatch(w.fd, uint32(w.wd)) // fails if the directory was removed, and its watch with it
	}
	w.wd = wd
	return other, nil
}

// close ends the watch.
func (w *watch) close() error { return w.inotify.Close() }

// follow turns events into signals until the watch is closed.
func (w *watch) follow(signal chan<- struct{}) {
	buf := make([]byte, 4096)
	for {
		n, err := w.inotify.Read(buf)
		if err != nil {
			return
		}
		if !w.isRelevant(buf[:n]) {
			continue
		}
		pace.Wake(signal)
	}
}

// isRelevant reports whether one of the events concerns the files (inotify(7)).
func (w *watch) isRelevant(b []byte) bool {
	for len(b) >= unix.SizeofInotifyEvent {
		mask := binary.NativeEndian.Uint32(b[4:])
		end := min(len(b), unix.SizeofInotifyEvent+int(binary.NativeEndian.Uint32(b[12:])))
		name, _, _ := strings.Cut(string(b[unix.SizeofInotifyEvent:end]), "\x00")
		if mask&(dirEvents|unix.IN_IGNORED|unix.IN_Q_OVERFLOW) != 0 || slices.Contains(w.names, name) {
			return true
		}
		b = b[end:]
	}
	return false
}
