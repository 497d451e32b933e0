package logsink

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Stderr is the descriptor of standard error.
const Stderr Descriptor = 2

// Descriptor is a file descriptor as a writer. In contrast to an *os.File, a reader that is
// gone is an error of standard output and standard error, too, and does not end the process
// (os/signal, "SIGPIPE"); and it does not matter whether the descriptor blocks.
type Descriptor int

// Write implements io.Writer.
func (d Descriptor) Write(b []byte) (n int, err error) {
	for n < len(b) {
		m, err := unix.Write(int(d), b[n:])
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			if err := d.wait(); err != nil {
				return n, err
			}
		case err != nil:
			return n, fmt.Errorf("write to descriptor %d: %w", int(d), err)
		default:
			n += m
		}
	}
	return n, nil
}

// wait returns when there is room, or when the next write would fail.
func (d Descriptor) wait() error {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(d), Events: unix.POLLOUT}}, -1)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Unblock has writes to the descriptor fail that would block, for all that this process writes
// there past the Sink: what the Go runtime prints at a crash, or at a SIGQUIT or SIGABRT such as
// systemd's watchdog sends, must not keep the process from ending. A pipe or terminal is opened
// anew, so that it stays as it is for other processes that have it; the journal's socket is this
// service's alone (JOURNAL_STREAM of systemd.exec(5)). Anything else is left as it is.
func (d Descriptor) Unblock() {
	var s unix.Stat_t
	if unix.Fstat(int(d), &s) != nil {
		return
	}
	_, tty := unix.IoctlGetTermios(int(d), unix.TCGETS)
	switch kind := s.Mode & unix.S_IFMT; {
	case kind == unix.S_IFSOCK && os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", s.Dev, s.Ino):
		_ = unix.SetNonblock(int(d), true)
	case kind == unix.S_IFIFO, kind == unix.S_IFCHR && tty == nil:
		own, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", int(d)), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err != nil {
			return // it stays one that may block
		}
		_ = unix.Dup3(own, int(d), 0)
		unix.Close(own)
	}
}
