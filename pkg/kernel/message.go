package kernel

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"
)

// messages gives the netlink messages of a datagram (RFC 3549, netlink(7)). All
// is in the order of the host, but ports and addresses.
func messages(b []byte) iter.Seq2[unix.NlMsghdr, []byte] {
	return func(yield func(unix.NlMsghdr, []byte) bool) {
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
			b = b[min(align4(int(h.Len)), len(b)):]
		}
	}
}

// attrs gives the attributes that follow a fixed header of the given size.
func attrs(b []byte, header int) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		b := b[min(align4(header), len(b)):]
		for len(b) >= unix.SizeofRtAttr {
			n := int(binary.NativeEndian.Uint16(b))
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if n < unix.SizeofRtAttr || n > len(b) {
				return
			}
			if !yield(kind, b[unix.SizeofRtAttr:n]) {
				return
			}
			b = b[min(align4(n), len(b)):]
		}
	}
}

func align4(n int) int { return (n + 3) &^ 3 }

// number reads an attribute of one to four bytes in host order.
func number(b []byte) int {
	switch {
	case len(b) >= 4:
		return int(binary.NativeEndian.Uint32(b))
	case len(b) >= 2:
		return int(binary.NativeEndian.Uint16(b))
	case len(b) == 1:
		return int(b[0])
	}
	return 0
}

func text(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

func address(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

func hardware(b []byte) (mac [6]byte) {
	if len(b) == len(mac) {
		copy(mac[:], b)
	}
	return mac
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// refusal is an answer of the kernel: its error number and, where it gives one,
// its explanation.
type refusal struct {
	errno unix.Errno
	why   string
}

func (e *refusal) Error() string {
	if e.why == "" {
		return e.errno.Error()
	}
	return fmt.Sprintf("%s: %s", e.errno, e.why)
}

// Unwrap gives the unix.Errno.
func (e *refusal) Unwrap() error { return e.errno }

// answer reads NLMSG_ERROR, or the NLMSG_DONE that ends a list; nil: success.
// The explanation is in NLMSGERR_ATTR_MSG (kernel documentation, "Introduction
// to Netlink", extended ACK).
func answer(h unix.NlMsghdr, body []byte) error {
	if len(body) < 4 {
		return nil
	}
	code := int32(binary.NativeEndian.Uint32(body))
	if code >= 0 {
		return nil
	}
	e := &refusal{errno: unix.Errno(-code)}
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
	for kind, v := range attrs(body, skip) {
		if kind == unix.NLMSGERR_ATTR_MSG {
			e.why = text(v)
		}
	}
	return e
}
