package tunnel

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"
)

// Sizes of batches to send.
const (
	readPackets = 256 // packets of a read
	// readBytes is the size of a read, with room for one super-packet; a larger one does not fit
	// into the second-level cache.
	readBytes    = 256 << 10
	sendMessages = 64   // of a Send
	sendParts    = 2048 // of all messages of a Send
	sendHeaders  = 1024 // headers of split packets of a Send

	// unsegmentedFor is how long a peer gets no segmented messages after one was refused.
	unsegmentedFor = 30 * time.Second
)

// readRoom is the minimum length of the buffer for Device.Read, in bytes.
const readRoom = offloadLen + maxPacket + 64

// A transmitter forwards packets from the device to the peers.
type transmitter struct {
	tunnel *Tunnel
	device Device
	socket Socket
	icmp   icmpSender

	packets  []Packet
	buf      []byte
	split    splitter
	headers  []byte   // of split packets, until they are sent
	parts    [][]byte // of all messages
	messages []Message
	single   []Message // segments of a message that was refused

	sent struct{ packets, octets int } // not yet added to the totals

	state *state // of this batch
	last  struct {
		dst  uint32
		peer int32
		ok   bool
	}
}

func newTransmitter(t *Tunnel, d Device, s Socket, w io.Writer) *transmitter {
	return &transmitter{
		tunnel: t, device: d, socket: s, icmp: newICMPSender(t, w),
		packets:  make([]Packet, readPackets),
		buf:      make([]byte, readBytes),
		headers:  make([]byte, 0, sendHeaders*maxHeader),
		parts:    make([][]byte, 0, sendParts),
		messages: make([]Message, 0, sendMessages),
		single:   make([]Message, 0, s.MaxSegments()),
	}
}

func (x *transmitter) run() error {
	for {
		n, err := x.device.Read(x.packets, x.buf)
		if err != nil {
			return fmt.Errorf("read from device: %w", err)
		}
		if s := x.tunnel.state.Load(); s != x.state {
			x.state, x.last.ok = s, false
		}
		for i := range x.packets[:n] {
			if err := x.packet(&x.packets[i]); err != nil {
				return err
			}
		}
		if err := x.flush(); err != nil {
			return err
		}
		// The calls above do not yield the processor, which may be the only one of the program. If
		// it is not, yielding costs 13 % of the processor time of a TCP stream and adds nothing to
		// a round trip.
		runtime.Gosched()
	}
}

// packet routes one packet and adds it to the messages.
func (x *transmitter) packet(p *Packet) error {
	ihl := headerLen(p.Data)
	if ihl == 0 {
		x.tunnel.counters.out.drop(dropReason(p.Data), 1)
		return nil
	}
	peer := x.route(destination(p.Data))
	switch {
	case !headerIntact(p.Data):
		x.tunnel.counters.out.drop(BadChecksum, 1)
		return nil
	case peer == none:
		x.tunnel.counters.out.drop(NoRoute, 1)
		x.icmp.send(x.state, icmpError{kind: icmpUnreachable, code: codeNetwork}, p.Data)
		return nil
	case p.Data[offTTL] <= 1:
		x.tunnel.counters.out.drop(TTLExceeded, 1)
		x.icmp.send(x.state, icmpError{kind: icmpTimeExceeded}, p.Data)
		return nil
	}
	decrementTTL(p.Data)
	o := p.Offload
	if o.GSO != GSONone {
		return x.superPacket(peer, p.Data, ihl, o)
	}
	if o.NeedsChecksum && (int(o.ChecksumStart) < ihl ||
		!finishChecksum(p.Data, int(o.ChecksumStart), int(o.ChecksumOffset))) {
		x.tunnel.counters.out.drop(Malformed, 1)
		return nil
	}
	x.count(peer, 1, len(p.Data))
	if err := x.makeRoom(0); err != nil {
		return err
	}
	x.append(peer, p.Data, nil)
	return nil
}

// route returns the peer for a destination. It caches the last result.
func (x *transmitter) route(dst uint32) int32 {
	if !x.last.ok || x.last.dst != dst {
		x.last.dst, x.last.peer, x.last.ok = dst, x.state.table.lookup(dst), true
	}
	return x.last.peer
}

func (x *transmitter) superPacket(peer int32, packet []byte, ihl int, o Offload) error {
	s := &x.split
	if !s.init(packet, ihl, o) {
		x.tunnel.counters.out.drop(Malformed, 1)
		return nil
	}
	hl, packets, octets := len(s.header), 0, 0
	for more := true; more; more = len(s.payload) > 0 {
		if err := x.makeRoom(hl); err != nil {
			return err
		}
		n := len(x.headers)
		x.headers = x.headers[:n+hl]
		h := x.headers[n:]
		payload := s.next(h)
		packets, octets = packets+1, octets+hl+len(payload)
		x.append(peer, h, payload)
	}
	x.count(peer, packets, octets)
	return nil
}

// count counts packets to a peer; the totals are updated by the next flush.
func (x *transmitter) count(peer int32, packets, octets int) {
	x.state.peers[peer].sent.add(packets, octets)
	x.sent.packets += packets
	x.sent.octets += octets
}

// makeRoom sends all messages if there may be no room for the parts and the header of the next
// packet.
func (x *transmitter) makeRoom(header int) error {
	if len(x.messages) < cap(x.messages) && len(x.parts)+2 <= cap(x.parts) &&
		len(x.headers)+header <= cap(x.headers) {
		return nil
	}
	return x.flush()
}

// append adds one packet, the concatenation of a and b, to the last message or to a new one. It
// keeps both slices until flush.
func (x *transmitter) append(peer int32, a, b []byte) {
	first, size := len(x.parts), len(a)+len(b)
	x.parts = append(x.parts, a)
	if len(b) > 0 {
		x.parts = append(x.parts, b)
	}
	if n := len(x.messages); n > 0 {
		m := &x.messages[n-1]
		if m.fits(peer, size) && m.Segments < x.maxSegments(peer) {
			m.Parts = x.parts[first-len(m.Parts):]
			m.Segments++
			m.size += size
			return
		}
	}
	x.messages = append(x.messages, Message{
		To: x.state.table.overlay.Peers[peer].Addr, Parts: x.parts[first:],
		Segments: 1, SegmentSize: size, peer: peer, size: size,
	})
}

// fits reports whether a segment can be added to a message. Only the last one may be shorter.
func (m *Message) fits(peer int32, size int) bool {
	return m.peer == peer && m.size == m.Segments*m.SegmentSize && size <= m.SegmentSize &&
		m.size+size <= maxPayload
}

// maxSegments returns the maximum number of segments of a message to a peer.
func (x *transmitter) maxSegments(peer int32) int {
	p := x.state.peers[peer]
	if until := p.unsegmentedUntil.Load(); until != 0 {
		if x.tunnel.clock() < time.Duration(until) {
			return 1
		}
		p.unsegmentedUntil.Store(0)
	}
	return x.socket.MaxSegments()
}

// flush sends all messages.
func (x *transmitter) flush() error {
	x.tunnel.counters.out.all.add(x.sent.packets, x.sent.octets)
	x.sent.packets, x.sent.octets = 0, 0
	err := x.send(x.messages)
	x.messages, x.parts, x.headers = x.messages[:0], x.parts[:0], x.headers[:0]
	return err
}

// send sends messages. It returns ErrInterrupted; other errors drop a message.
func (x *transmitter) send(ms []Message) error {
	for len(ms) > 0 {
		n, err := x.socket.Send(ms)
		if ms = ms[n:]; err == nil {
			continue
		}
		refused := &ms[0]
		ms = ms[1:]
		switch {
		case errors.Is(err, ErrInterrupted):
			return err
		case errors.Is(err, ErrNoSegmentation):
			x.state.peers[refused.peer].unsegmentedUntil.Store(int64(x.tunnel.clock() + unsegmentedFor))
			if err := x.send(x.segments(refused)); err != nil {
				return err
			}
		default:
			x.tunnel.counters.out.drop(SendFailed, refused.Segments)
		}
	}
	return nil
}

// segments returns the segments of a message as messages, until the next call.
func (x *transmitter) segments(m *Message) []Message {
	x.single = x.single[:0]
	first, size := 0, 0
	for i, p := range m.Parts {
		if size += len(p); size == m.SegmentSize || i == len(m.Parts)-1 {
			x.single = append(x.single, Message{To: m.To, Parts: m.Parts[first : i+1], Segments: 1})
			first, size = i+1, 0
		}
	}
	return x.single
}
