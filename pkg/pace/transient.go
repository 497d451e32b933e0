package pace

import (
	"errors"

	"golang.org/x/sys/unix"
)

// IsResourceError reports whether an operation failed for lack of a resource that may become
// available: descriptors, memory, space in a queue.
func IsResourceError(err error) bool {
	return isAny(err, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS, unix.ENOSPC, unix.EAGAIN, unix.EINTR)
}

// IsTemporary reports whether an error of the kernel may be temporary. Missing permissions or
// kernel features are not.
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
