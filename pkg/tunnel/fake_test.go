package tunnel

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
)

// A fakeDevice returns packets of a test and stores written ones.
type fakeDevice struct {
	stop
	tcp, udp bool
	batches  chan []Packet
	t        testing.TB

	mu      sync.Mutex
	written [][]byte // as the kernel would see it
	writes  int
	fail    error // of Write
	readErr error // after the last batch, instead of waiting
}

// A stop is the Interrupt of both fakes.
type stop struct {
	mu sync.Mutex
	on bool
	ch chan struct{}
}

func (s *stop) Interrupt(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil || s.on && !on {
		s.ch = make(chan struct{})
	}
	if on && !s.on {
		close(s.ch)
	}
	s.on = on
}

func (s *stop) done() chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func newFakeDevice(t testing.TB) *fakeDevice {
	return &fakeDevice{t: t, tcp: true, udp: true, batches: make(chan []Packet, 100)}
}

func (d *fakeDevice) SuperPackets() (tcp, udp bool) { return d.tcp, d.udp }

func (d *fakeDevice) Read(packets []Packet, buf []byte) (n int, err error) {
	select {
	case batch, open := <-d.batches:
		if !open {
			return 0, d.readErr
		}
		for i, p := range batch {
			size := copy(buf, p.Data)
			packets[i] = Packet{p.Offload, buf[:size:size]}
			buf = buf[size:]
		}
		return len(batch), nil
	case <-d.done():
		return 0, ErrInterrupted
	}
}

func (d *fakeDevice) Write(o Offload, parts [][]byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return d.fail
	}
	for _, p := range kernelTakes(d.t, o, parts) {
		d.written = append(d.written, bytes.Clone(p))
	}
	d.writes++
	return nil
}

func (d *fakeDevice) packets() [][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.written)
}

// A fakeSocket returns datagrams of a test and stores sent ones.
type fakeSocket struct {
	stop
	max     int
	batches chan []Datagram

	mu       sync.Mutex
	sent     map[netip.AddrPort][][]byte
	messages int
	refuse   error               // for messages of more than one segment
	fail     map[netip.Addr]bool // receivers that nothing can be sent to
}

func newFakeSocket() *fakeSocket {
	return &fakeSocket{max: 64, batches: make(chan []Datagram, 100), sent: map[netip.AddrPort][][]byte{}}
}

func (s *fakeSocket) MaxSegments() int { return s.max }

func (s *fakeSocket) Receive(ds []Datagram) (int, error) {
	select {
	case batch := <-s.batches:
		return copy(ds, batch), nil
	case <-s.done():
		return 0, ErrInterrupted
	}
}

func (s *fakeSocket) Send(ms []Message) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, m := range ms {
		payload := bytes.Join(m.Parts, nil)
		switch {
		case s.fail[m.To.Addr()]:
			return i, errors.New("no route to host")
		case m.SegmentSize > 0 && s.refuse != nil:
			return i, s.refuse
		case len(payload) > maxPayload || len(m.Parts) > 1024:
			return i, errors.New("message too long")
		case m.SegmentSize > 0 && (len(payload)+m.SegmentSize-1)/m.SegmentSize > s.max:
			return i, errors.New("too many segments")
		}
		s.messages++
		size := m.SegmentSize
		if size == 0 {
			size = len(payload)
		}
		s.sent[m.To] = append(s.sent[m.To], slices.Collect(slices.Chunk(payload, size))...)
	}
	return len(ms), nil
}

func (s *fakeSocket) to(peer string) [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent[netip.MustParseAddrPort(peer)]
}
