package netlink

import (
	"encoding/binary"
	"fmt"
	"iter"

	"golang.org/x/sys/unix"
)

// Messages iterates over the messages of a datagram, up to the first malformed one. A body is what
// follows struct nlmsghdr (RFC 3549, netlink(7)).
func Messages(datagram []byte) iter.Seq2[unix.NlMsghdr, []byte] {
	return func(yield func(unix.NlMsghdr, []byte) bool) {
		b := datagram
		for len(b) >= unix.SizeofNlMsghdr {
			h := unix.NlMsghdr{
				Len:   binary.NativeEndian.Uint32(b),
				Type:  binary.NativeEndian.Uint16(b[4:]),
				Flags: binary.NativeEndian.Uint16(b[6:]),
				Seq:   binary.NativeEndian.Uint32(b[8:]),
				Pid:   binary.NativeEndian.Uint32(b[12:]),
			}
			if h.Len < unix.SizeofNlMsghdr || uint64(h.Len) > uint64(len(b)) {
				return
			}
			if !yield(h, b[unix.SizeofNlMsghdr:h.Len]) {
				return
			}
			b = b[min(align(int(h.Len)), len(b)):]
		}
	}
}

// align rounds up to the start of the next message or attribute.
func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// Error is an error of the kernel: its number, and its explanation if there is one.
type Error struct {
	Errno   unix.Errno
	Message string
}

func (e *Error) Error() string {
	if e.Message == "" {
		return e.Errno.Error()
	}
	return fmt.Sprintf("%s: %s", e.Errno, e.Message)
}

// Unwrap returns the unix.Errno.
func (e *Error) Unwrap() error { return e.Errno }

// Answer parses NLMSG_ERROR, or the NLMSG_DONE that ends a list, and returns nil for success,
// otherwise an *[Error]. The explanation is in NLMSGERR_ATTR_MSG (kernel documentation,
// "Introduction to Netlink", extended ACK).
func Answer(h unix.NlMsghdr, body []byte) error {
	if len(body) < 4 {
		if h.Type == unix.NLMSG_DONE {
			return nil
		}
		return &Error{Errno: unix.EBADMSG}
	}
	code := int32(binary.NativeEndian.Uint32(body))
	if code >= 0 {
		return nil
	}
	e := &Error{Errno: unix.Errno(-code)}
	if h.Flags&unix.NLM_F_ACK_TLVS == 0 {
		return e
	}
	skip := 4
	if h.Type == unix.NLMSG_ERROR {
		skip += unix.SizeofNlMsghdr
		if h.Flags&unix.NLM_F_CAPPED == 0 && len(body) >= skip {
			skip = 4 + int(binary.NativeEndian.Uint32(body[4:])) // the whole request is repeated
		}
	}
	for kind, v := range After(body, skip).All() {
		if kind == unix.NLMSGERR_ATTR_MSG {
			e.Message = v.Text()
		}
	}
	return e
}
