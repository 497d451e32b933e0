package kernel

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// requests are netlink requests one behind the other, as they are sent. A Put of
// 20,000 peers makes 80,000 of them, so they are written in place: a tree of
// attributes takes a dozen allocations each. The zero value is empty.
type requests struct {
	b      []byte
	starts []int // where each begins in b
}

// one gives a single request, to be completed by its header and attributes.
func one(kind, flags uint16) *requests {
	r := &requests{}
	r.begin(kind, flags)
	return r
}

// begin starts a request. Its length and sequence number are filled in when it
// is sent.
func (r *requests) begin(kind, flags uint16) {
	r.starts = append(r.starts, len(r.b))
	r.u32(0)
	r.u16(kind)
	r.u16(flags | unix.NLM_F_REQUEST)
	r.u32(0)
	r.u32(0)
}

func (r *requests) len() int { return len(r.starts) }

// clear makes room for others; what was there is overwritten.
func (r *requests) clear() { r.b, r.starts = r.b[:0], r.starts[:0] }

// part gives the requests from, to, ready to be sent with ascending sequence
// numbers from first on. The last asks for an answer, the others for none but
// their failure.
func (r *requests) part(from, to int, first uint32) []byte {
	for i := from; i < to; i++ {
		r.number(i, first+uint32(i-from), unix.NLM_F_ACK, i == to-1)
	}
	return r.b[r.starts[from]:r.end(to-1)]
}

func (r *requests) end(i int) int {
	if i+1 < len(r.starts) {
		return r.starts[i+1]
	}
	return len(r.b)
}

func (r *requests) number(i int, seq uint32, flag uint16, on bool) {
	h := r.b[r.starts[i]:r.end(i)]
	flags := binary.NativeEndian.Uint16(h[6:]) &^ flag
	if on {
		flags |= flag
	}
	binary.NativeEndian.PutUint32(h, uint32(len(h)))
	binary.NativeEndian.PutUint16(h[6:], flags)
	binary.NativeEndian.PutUint32(h[8:], seq)
}

// The fixed header behind struct nlmsghdr is written field by field. Those of
// rtnetlink(7) all have a length that needs no padding.

func (r *requests) u8(v ...uint8) { r.b = append(r.b, v...) }
func (r *requests) u16(v uint16)  { r.b = binary.NativeEndian.AppendUint16(r.b, v) }
func (r *requests) u32(v uint32)  { r.b = binary.NativeEndian.AppendUint32(r.b, v) }

// attr adds an attribute, padded as the next one needs it.
func (r *requests) attr(kind uint16, value []byte) {
	at := r.nest(kind)
	r.b = append(r.b, value...)
	r.close(at)
}

func (r *requests) attr32(kind uint16, v uint32) {
	at := r.nest(kind)
	r.u32(v)
	r.close(at)
}

func (r *requests) text(kind uint16, s string) {
	at := r.nest(kind)
	r.b = append(append(r.b, s...), 0)
	r.close(at)
}

func (r *requests) address(kind uint16, a netip.Addr) {
	at := r.nest(kind)
	r.bytesOf(a)
	r.close(at)
}

func (r *requests) bytesOf(a netip.Addr) {
	if a.Is4() {
		b := a.As4()
		r.b = append(r.b, b[:]...)
		return
	}
	b := a.As16()
	r.b = append(r.b, b[:]...)
}

// nest begins an attribute whose value, such as further attributes, is written
// next; close ends it.
func (r *requests) nest(kind uint16) (at int) {
	at = len(r.b)
	r.u16(0)
	r.u16(kind)
	return at
}

func (r *requests) close(at int) {
	binary.NativeEndian.PutUint16(r.b[at:], uint16(len(r.b)-at))
	for len(r.b)%unix.NLMSG_ALIGNTO != 0 {
		r.b = append(r.b, 0)
	}
}
