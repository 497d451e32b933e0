package tunnel

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// An interrupter ends waits. It consists of an eventfd that is readable while interrupted, and a
// flag for calls that do not wait.
type interrupter struct {
	fd int
	on atomic.Bool
}

func newInterrupter() (*interrupter, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make eventfd: %w", err)
	}
	return &interrupter{fd: fd}, nil
}

// Interrupt implements Device and Socket.
func (i *interrupter) Interrupt(on bool) {
	if i.on.Swap(on) == on {
		return
	}
	var one [8]byte
	if on {
		binary.NativeEndian.PutUint64(one[:], 1)
		unix.Write(i.fd, one[:])
	} else {
		unix.Read(i.fd, one[:])
	}
}

func (i *interrupter) check() error {
	if i.on.Load() {
		return ErrInterrupted
	}
	return nil
}

// A waiter waits for a descriptor on behalf of one goroutine. It uses poll(2) instead of the
// runtime's poller, so that a packet wakes up the thread that handles it.
type waiter struct {
	fds  [2]unix.PollFd
	stop *interrupter
}

// wait waits until the descriptor has one of the events or an error.
func (w *waiter) wait(fd int, events int16) error {
	w.fds = [2]unix.PollFd{
		{Fd: int32(fd), Events: events}, {Fd: int32(w.stop.fd), Events: unix.POLLIN},
	}
	for {
		_, err := unix.Poll(w.fds[:], -1)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("poll: %w", err)
		case w.fds[1].Revents != 0:
			return ErrInterrupted
		case w.fds[0].Revents&unix.POLLNVAL != 0:
			return net.ErrClosed
		}
		return nil
	}
}
