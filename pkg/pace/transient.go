package pace

import (
	"errors"

	"golang.org/x/sys/unix"
)

// IsResourceError reports whether something failed for want of what others may give back: descriptors,
// memory, a place in a queue.
func IsResourceError(err error) bool {
	return isAny(err, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS, unix.ENOSPC, unix.EAGAIN, unix.EINTR)
}

// IsTemporary reports whether what the kernel refused it may do later: all but what this process
// is not permitted, or the kernel does not have.
func IsTemporary(err error) bool {
	return !isAny(err, unix.EPERM, unix.EACCES, unix.ENOSYS, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT)
}

func isAny(err error, of ...unix.Errno) bool {
	for _, e := range of {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
