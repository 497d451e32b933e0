package pace

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

// IsResourceError reports whether an operation failed for lack of a resource that may become
// available: descriptors, memory, space in a queue.
func IsResourceError(err error) bool {
	return IsAny(err, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS, unix.ENOSPC, unix.EAGAIN, unix.EINTR)
}

// IsTemporary reports whether an error of the kernel may be temporary. Missing permissions or
// kernel features are not.
func IsTemporary(err error) bool {
	return !IsAny(err, unix.EPERM, unix.EACCES, unix.ENOSYS, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT)
}

// IsAny reports whether an error is one of others, or wraps one.
func IsAny(err error, of ...error) bool {
	return slices.ContainsFunc(of, func(e error) bool { return errors.Is(err, e) })
}
