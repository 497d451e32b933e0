package netlink

import (
	"bytes"
	"encoding/binary"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Attrs is a sequence of attributes, as in messages and in the values of nested attributes. The
// methods that write append one attribute and return the extended slice, like append. The common
// ones are not inlined: the compiler takes append for cheap, but it is a hundred bytes of code, and
// the callers are many.
//
// Numbers are in host byte order, as nearly everywhere in netlink, or, with BE in the name of the
// method, in network byte order, as everywhere in nfnetlink.
type Attrs []byte

// After returns the attributes after a fixed header of a message's body.
func After(body []byte, header int) Attrs {
	return body[min(align(header), len(body)):]
}

// All iterates over the attributes, up to the first malformed one.
func (a Attrs) All() iter.Seq2[uint16, Value] {
	const flags = unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER
	return func(yield func(uint16, Value) bool) {
		b := a
		for len(b) >= unix.SizeofNlAttr {
			n := int(binary.NativeEndian.Uint16(b))
			kind := binary.NativeEndian.Uint16(b[2:]) &^ flags
			if n < unix.SizeofNlAttr || n > len(b) {
				return
			}
			if !yield(kind, Value(b[unix.SizeofNlAttr:n])) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

// Map returns the attributes by kind. If a kind is repeated, the last one counts.
func (a Attrs) Map() map[uint16]Value {
	m := make(map[uint16]Value)
	for kind, v := range a.All() {
		m[kind] = v
	}
	return m
}

// Value is the value of an attribute. Its methods return zero if it has another length.
type Value []byte

// All iterates over the attributes of a nested attribute.
func (v Value) All() iter.Seq2[uint16, Value] { return Attrs(v).All() }

// Map returns the attributes of a nested attribute by their kind.
func (v Value) Map() map[uint16]Value { return Attrs(v).Map() }

// Number returns a number of one to four bytes.
func (v Value) Number() int {
	switch {
	case len(v) >= 4:
		return int(binary.NativeEndian.Uint32(v))
	case len(v) >= 2:
		return int(binary.NativeEndian.Uint16(v))
	case len(v) == 1:
		return int(v[0])
	}
	return 0
}

// Uint16BE returns a number of two bytes.
func (v Value) Uint16BE() uint16 { return binary.BigEndian.Uint16(v.sized(2)) }

// Uint32BE returns a number of four bytes.
func (v Value) Uint32BE() uint32 { return binary.BigEndian.Uint32(v.sized(4)) }

// Uint64BE returns a number of eight bytes.
func (v Value) Uint64BE() uint64 { return binary.BigEndian.Uint64(v.sized(8)) }

// sized returns the value if it has n bytes, otherwise n zeros.
func (v Value) sized(n int) []byte {
	if len(v) == n {
		return v
	}
	return make([]byte, n)
}

// Text returns a string, up to the first NUL.
func (v Value) Text() string {
	s, _, _ := bytes.Cut(v, []byte{0})
	return string(s)
}

// Addr returns an IPv4 or IPv6 address.
func (v Value) Addr() netip.Addr {
	a, _ := netip.AddrFromSlice(v)
	return a
}

// MAC returns a link-layer address of six bytes.
func (v Value) MAC() (mac [6]byte) {
	if len(v) == len(mac) {
		copy(mac[:], v)
	}
	return mac
}

// Open starts an attribute whose value is appended next. It ends with Close of the returned
// position.
//
//go:noinline
func (a Attrs) Open(kind uint16) (_ Attrs, at int) {
	return binary.NativeEndian.AppendUint16(append(a, 0, 0), kind), len(a)
}

// Close ends an attribute, and pads it for the next one.
//
//go:noinline
func (a Attrs) Close(at int) Attrs {
	binary.NativeEndian.PutUint16(a[at:], uint16(len(a)-at))
	return pad(a)
}

func pad(b []byte) []byte {
	for len(b)%unix.NLMSG_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// Bytes adds an attribute with any value.
//
//go:noinline
func (a Attrs) Bytes(kind uint16, value []byte) Attrs {
	a, at := a.Open(kind)
	return append(a, value...).Close(at)
}

// Nest adds a nested attribute.
func (a Attrs) Nest(kind uint16, inner Attrs) Attrs {
	return a.Bytes(kind|unix.NLA_F_NESTED, inner)
}

// Text adds a NUL-terminated string.
//
//go:noinline
func (a Attrs) Text(kind uint16, s string) Attrs {
	a, at := a.Open(kind)
	return append(append(a, s...), 0).Close(at)
}

// Addr adds an address.
func (a Attrs) Addr(kind uint16, ip netip.Addr) Attrs {
	a, at := a.Open(kind)
	return appendAddr(a, ip).Close(at)
}

func appendAddr(a Attrs, ip netip.Addr) Attrs {
	if ip.Is4() {
		b := ip.As4()
		return append(a, b[:]...)
	}
	b := ip.As16()
	return append(a, b[:]...)
}

// Uint32 adds a number in host byte order.
//
//go:noinline
func (a Attrs) Uint32(kind uint16, v uint32) Attrs {
	a, at := a.Open(kind)
	return Attrs(binary.NativeEndian.AppendUint32(a, v)).Close(at)
}

// Uint32BE adds a number in network byte order.
//
//go:noinline
func (a Attrs) Uint32BE(kind uint16, v uint32) Attrs {
	a, at := a.Open(kind)
	return Attrs(binary.BigEndian.AppendUint32(a, v)).Close(at)
}

// Uint64BE adds a number in network byte order.
func (a Attrs) Uint64BE(kind uint16, v uint64) Attrs {
	a, at := a.Open(kind)
	return Attrs(binary.BigEndian.AppendUint64(a, v)).Close(at)
}
