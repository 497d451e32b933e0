package netlink

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Requests is a sequence of requests, ready to be sent. They are written in place, because there
// may be a hundred thousand: Begin, then the fields of the fixed header, then attributes. The zero
// value is empty.
type Requests struct {
	b      Attrs
	starts []int // where each begins in b
}

// Begin starts a request. Its length and sequence number are filled in when it is sent.
func (r *Requests) Begin(kind, flags uint16) {
	r.starts = append(r.starts, len(r.b))
	r.Put32(0)
	r.Put16(kind)
	r.Put16(flags | unix.NLM_F_REQUEST)
	r.Put32(0)
	r.Put32(0) // port: filled in by the kernel
}

// Len returns the number of requests.
func (r *Requests) Len() int { return len(r.starts) }

// Reset removes all requests and keeps the memory.
func (r *Requests) Reset() { r.b, r.starts = r.b[:0], r.starts[:0] }

// Put8 writes fields of one byte. Put8, Put16 and Put32 write the fixed header that follows struct
// nlmsghdr, in host byte order. The headers of rtnetlink(7) and nfnetlink need no padding.
func (r *Requests) Put8(v ...uint8) { r.b = append(r.b, v...) }

// Put16 writes a field of two bytes.
func (r *Requests) Put16(v uint16) { r.b = binary.NativeEndian.AppendUint16(r.b, v) }

// Put32 writes a field of four bytes.
func (r *Requests) Put32(v uint32) { r.b = binary.NativeEndian.AppendUint32(r.b, v) }

// PutAddr writes an address.
func (r *Requests) PutAddr(ip netip.Addr) { r.b = appendAddr(r.b, ip) }

// Bytes adds an attribute with any value.
func (r *Requests) Bytes(kind uint16, value []byte) { r.b = r.b.Bytes(kind, value) }

// Text adds a NUL-terminated string.
func (r *Requests) Text(kind uint16, s string) { r.b = r.b.Text(kind, s) }

// Addr adds an address.
func (r *Requests) Addr(kind uint16, ip netip.Addr) { r.b = r.b.Addr(kind, ip) }

// Uint32 adds a number in host byte order.
func (r *Requests) Uint32(kind uint16, v uint32) { r.b = r.b.Uint32(kind, v) }

// Attrs adds attributes.
func (r *Requests) Attrs(a Attrs) { r.b = append(r.b, a...) }

// Open starts an attribute whose value, such as nested attributes, is written next. It ends with
// Close of the returned position.
func (r *Requests) Open(kind uint16) (at int) {
	r.b, at = r.b.Open(kind)
	return at
}

// Close ends an attribute.
func (r *Requests) Close(at int) { r.b = r.b.Close(at) }

// message returns a request as written so far.
func (r *Requests) message(i int) []byte {
	if i+1 < len(r.starts) {
		return r.b[r.starts[i]:r.starts[i+1]]
	}
	return r.b[r.starts[i]:]
}

// Datagram returns the requests with index from <= i < to as one datagram, with ascending sequence
// numbers.
func (r *Requests) Datagram(from, to int, seq uint32) []byte {
	n := 0
	for i := from; i < to; i++ {
		m := r.message(i)
		binary.NativeEndian.PutUint32(m, uint32(len(m)))
		binary.NativeEndian.PutUint32(m[8:], seq+uint32(i-from))
		n += len(m)
	}
	return r.b[r.starts[from]:][:n]
}

func (r *Requests) setFlag(i int, flag uint16, on bool) {
	m := r.message(i)
	flags := binary.NativeEndian.Uint16(m[6:]) &^ flag
	if on {
		flags |= flag
	}
	binary.NativeEndian.PutUint16(m[6:], flags)
}
