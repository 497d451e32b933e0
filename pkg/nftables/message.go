package nftables

import (
	"bytes"
	"encoding/binary"
	"iter"

	"golang.org/x/sys/unix"
)

// attrs is a sequence of netlink attributes (netlink(7)). Numbers in nfnetlink
// have network order.
type attrs []byte

func (a attrs) bytes(kind uint16, value []byte) attrs {
	a = binary.NativeEndian.AppendUint16(a, uint16(unix.SizeofNlAttr+len(value)))
	a = binary.NativeEndian.AppendUint16(a, kind)
	return attrs(align(append(a, value...)))
}

func (a attrs) text(kind uint16, s string) attrs {
	return a.bytes(kind, append([]byte(s), 0))
}

func (a attrs) u32(kind uint16, v uint32) attrs {
	return a.bytes(kind, binary.BigEndian.AppendUint32(nil, v))
}

func (a attrs) u64(kind uint16, v uint64) attrs {
	return a.bytes(kind, binary.BigEndian.AppendUint64(nil, v))
}

func (a attrs) nest(kind uint16, inner attrs) attrs {
	return a.bytes(kind|unix.NLA_F_NESTED, inner)
}

func align(b []byte) []byte {
	for len(b)%unix.NLMSG_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// fields reads attributes, up to the first that is damaged.
func fields(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			n := int(binary.NativeEndian.Uint16(b))
			if n < unix.SizeofNlAttr || n > len(b) {
				return
			}
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(kind, b[unix.SizeofNlAttr:n]) {
				return
			}
			b = b[min(nlAlign(n), len(b)):]
		}
	}
}

func nlAlign(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// value is the content of an attribute that was read.
type value []byte

// u32 is 0 if the value is no number of 32 bits.
func (v value) u32() uint32 {
	if len(v) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(v)
}

func (v value) u64() uint64 {
	if len(v) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(v)
}

// text ends at the first NUL.
func (v value) text() string {
	s, _, _ := bytes.Cut(v, []byte{0})
	return string(s)
}

// read gives the attributes of a message or of a nest by their kind; of several
// of a kind the last. Kinds that this package does not know are there too.
func read(b []byte) map[uint16]value {
	m := make(map[uint16]value)
	for kind, v := range fields(b) {
		m[kind] = v
	}
	return m
}

// message is a request to nftables.
type message struct {
	kind   uint16 // unix.NFT_MSG_*
	flags  uint16
	family Family
	body   attrs
}

// appendTo writes the message with struct nlmsghdr and struct nfgenmsg before it.
func (m message) appendTo(b []byte, seq uint32) []byte {
	return appendMessage(b, unix.NFNL_SUBSYS_NFTABLES<<8|m.kind, m.flags|unix.NLM_F_REQUEST, seq, m.family, 0, m.body)
}

func appendMessage(b []byte, kind, flags uint16, seq uint32, family Family, resource uint16, body attrs) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.SizeofNlMsghdr+genSize+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0) // port: the kernel knows it
	b = append(b, byte(family), unix.NFNETLINK_V0)
	b = binary.BigEndian.AppendUint16(b, resource)
	return align(append(b, body...))
}

// genSize is the size of struct nfgenmsg.
const genSize = 4

// header is the part of struct nlmsghdr that matters in answers.
type header struct {
	kind, flags uint16
	seq, port   uint32
}

// messages reads a datagram of the kernel, up to the first that is damaged.
func messages(b []byte) iter.Seq2[header, []byte] {
	return func(yield func(header, []byte) bool) {
		for len(b) >= unix.SizeofNlMsghdr {
			n := binary.NativeEndian.Uint32(b)
			if n < unix.SizeofNlMsghdr || uint64(n) > uint64(len(b)) {
				return
			}
			h := header{
				kind: binary.NativeEndian.Uint16(b[4:]), flags: binary.NativeEndian.Uint16(b[6:]),
				seq: binary.NativeEndian.Uint32(b[8:]), port: binary.NativeEndian.Uint32(b[12:]),
			}
			if !yield(h, b[unix.SizeofNlMsghdr:n]) {
				return
			}
			b = b[min(nlAlign(int(n)), len(b)):]
		}
	}
}

// afterGen is a message's attributes, behind struct nfgenmsg.
func afterGen(body []byte) (family Family, attributes []byte) {
	if len(body) < genSize {
		return 0, nil
	}
	return Family(body[0]), body[genSize:]
}
