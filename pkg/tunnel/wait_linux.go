package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A descriptor is a non-blocking descriptor with an end to all waiting for it.
type descriptor struct {
	fd          int
	stop        int // an eventfd that is readable once interrupted
	interrupted atomic.Bool
}

// open takes over a descriptor, unless there is an error.
func (d *descriptor) open(fd int) (err error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("adopt descriptor %d: %w", fd, err)
	}
	if d.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("make eventfd: %w", err)
	}
	d.fd = fd
	return nil
}

// FD returns the descriptor, which is valid until Close.
func (d *descriptor) FD() int { return d.fd }

// Close implements Device and Socket.
func (d *descriptor) Close() error { return errors.Join(unix.Close(d.fd), unix.Close(d.stop)) }

// Interrupt implements Device and Socket.
func (d *descriptor) Interrupt() {
	d.interrupted.Store(true)
	unix.Write(d.stop, binary.NativeEndian.AppendUint64(nil, 1))
}

// check is for calls that do not wait.
func (d *descriptor) check() error {
	if d.interrupted.Load() {
		return ErrInterrupted
	}
	return nil
}

// wait waits until the descriptor has one of the events or an error. It uses poll(2) instead of the
// runtime's poller, so that a packet wakes up the thread that handles it.
func (d *descriptor) wait(events int16) error {
	fds := [...]unix.PollFd{
		{Fd: int32(d.fd), Events: events}, {Fd: int32(d.stop), Events: unix.POLLIN},
	}
	_, err := unix.Poll(fds[:], -1)
	switch {
	case err != nil && err != unix.EINTR: // after a signal, the caller tries again
		return fmt.Errorf("poll: %w", err)
	case fds[1].Revents != 0:
		return ErrInterrupted
	}
	return nil
}
