package logsink

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Stderr is the descriptor of standard error.
const Stderr Descriptor = 2

// Descriptor is a file descriptor as an io.Writer. In contrast to an *os.File, writing to a closed
// pipe is an error for standard output and standard error, too, and does not end the process
// (os/signal, "SIGPIPE"), and the descriptor may be blocking or not.
type Descriptor int

// Write implements io.Writer.
func (d Descriptor) Write(b []byte) (n int, err error) {
	for n < len(b) {
		m, err := unix.Write(int(d), b[n:])
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			// Wait until there is room, or until the next write would fail.
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(d), Events: unix.POLLOUT}}, -1)
			if err != nil && !errors.Is(err, unix.EINTR) {
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

// Unblock makes the descriptor non-blocking, for writes of this process that bypass the Sink:
// output of the Go runtime at a crash, or at a SIGQUIT or SIGABRT such as systemd's watchdog sends,
// must not keep the process from ending. A pipe or terminal is opened again, so that it does not
// change for other processes; the journal's socket belongs to this service (JOURNAL_STREAM of
// systemd.exec(5)). Other descriptors are not changed.
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
			return // it stays blocking
		}
		_ = unix.Dup3(own, int(d), 0)
		unix.Close(own)
	}
}
