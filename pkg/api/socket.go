package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/condition"
	"flanneld/pkg/pace"
)

const (
	// socketMode lets root and root's group ask the daemon.
	socketMode = 0o660
	// socketCheck is the time between checks whether the socket is still there.
	socketCheck = 5 * time.Second
	// probeTimeout limits the time to find out whether a socket belongs to a running daemon.
	probeTimeout = time.Second

	socketCondition = "status-socket"
)

// errInUse is returned for a socket that another daemon answers on.
var errInUse = errors.New("another flanneld answers on it")

// ServeSocket serves on a unix socket until ctx ends. A socket that nobody answers on is replaced,
// and one that another program has removed is created again. While the socket cannot be served,
// there is a condition.
func (s Sources) ServeSocket(ctx context.Context, path string, conditions *condition.List, log *slog.Logger) {
	h := localOnly(s.handler())
	keepServing(ctx, conditions, condition.Condition{
		ID: socketCondition, Severity: condition.Notice, Text: "cannot serve the socket for flanneld status, will retry",
		Fields: []any{"path", path},
	}, func() error {
		l, err := listenUnix(path)
		if err == nil {
			conditions.End(socketCondition)
			l.serve(ctx, newServer("socket", h, log), s.Tick)
		}
		return err
	})
}

// keepServing calls serve until ctx ends. serve returns an error if it cannot listen, which is a
// condition until it can.
func keepServing(ctx context.Context, conditions *condition.List, c condition.Condition, serve func() error) {
	initial := pace.Backoff{Initial: 100 * time.Millisecond, Max: socketCheck}
	for backoff := initial; ; {
		if err := serve(); err != nil {
			conditions.SetError(c, err)
		} else {
			backoff = initial
		}
		if pace.Sleep(ctx, backoff.Failed()) != nil {
			return
		}
	}
}

// unixListener is a unix socket at a path.
type unixListener struct {
	net.Listener
	path string
	file fs.FileInfo // of the socket
}

// listenUnix creates a socket. It replaces one that nobody answers on.
func listenUnix(path string) (*unixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := removeDead(path); err != nil {
		return nil, err
	}
	var l net.Listener
	err := viaDirectory(path, func(short string) (err error) {
		config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
			// The mode of the socket becomes that of the file, so it is never wider.
			cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), socketMode) })
			return errors.Join(cerr, err)
		}}
		l, err = config.Listen(context.Background(), "unix", short)
		return err
	})
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // its path may be another daemon's by then
	file, err := os.Lstat(path)
	if err == nil {
		err = os.Chmod(path, socketMode) // the umask may have made it narrower
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return &unixListener{l, path, file}, nil
}

// serve serves until ctx ends or the file of the socket is gone. It calls tick, unless it is nil,
// whenever it has looked for the file.
func (l *unixListener) serve(ctx context.Context, server *http.Server, tick func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(newListener(l.Listener)) // ends when it is closed; else it is served again
	}()
	ticker := time.NewTicker(socketCheck)
	defer ticker.Stop()
	for l.present() {
		if tick != nil {
			tick()
		}
		select {
		case <-ctx.Done():
			if l.present() {
				os.Remove(l.path)
			}
			server.Close()
			<-done
			return
		case <-done:
			return
		case <-ticker.C:
		}
	}
	server.Close()
	<-done
}

// present reports whether the path is still that of the socket.
func (l *unixListener) present() bool {
	file, err := os.Lstat(l.path)
	return err == nil && os.SameFile(file, l.file)
}

// removeDead removes a socket that nobody answers on. Other files are an error.
func removeDead(path string) error {
	switch file, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case file.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s: must be a socket, or not exist", path)
	}
	c, err := dialUnix(context.Background(), path, probeTimeout)
	switch {
	case err == nil:
		c.Close()
		return errInUse
	case errors.Is(err, unix.ECONNREFUSED):
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	return err
}

// dialUnix connects to a unix socket.
func dialUnix(ctx context.Context, path string, timeout time.Duration) (c net.Conn, err error) {
	err = viaDirectory(path, func(short string) error {
		d := net.Dialer{Timeout: timeout}
		c, err = d.DialContext(ctx, "unix", short)
		return err
	})
	return c, err
}

// viaDirectory calls f with a path that is short enough for the address of a socket, of which the
// kernel limits the length to 107 bytes.
func viaDirectory(path string, f func(short string) error) error {
	if len(path) < unix.SizeofSockaddrUnix-2 {
		return f(path)
	}
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	return f(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
}
