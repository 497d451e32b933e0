package tunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

// A stop is the Interrupt and Close of both fakes.
type stop struct {
	ctx    context.Context
	cancel context.CancelFunc
	closed bool
}

func newStop() stop {
	ctx, cancel := context.WithCancel(context.Background())
	return stop{ctx: ctx, cancel: cancel}
}

func (s *stop) Interrupt() { s.cancel() }

func (s *stop) Close() error {
	s.closed = true
	return nil
}

func newFakeDevice(t testing.TB) *fakeDevice {
	return &fakeDevice{stop: newStop(), t: t, tcp: true, udp: true, batches: make(chan []Packet, 100)}
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
	case <-d.ctx.Done():
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
	return &fakeSocket{stop: newStop(), max: 64, batches: make(chan []Datagram, 100), sent: map[netip.AddrPort][][]byte{}}
}

func (s *fakeSocket) MaxSegments() int { return s.max }

func (s *fakeSocket) Receive(ds []Datagram) (int, error) {
	select {
	case batch := <-s.batches:
		return copy(ds, batch), nil
	case <-s.ctx.Done():
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
		case m.Segments > 1 && s.refuse != nil:
			return i, s.refuse
		case len(payload) > maxPayload || len(m.Parts) > 1024:
			return i, errors.New("message too long")
		case m.Segments > s.max:
			return i, errors.New("too many segments")
		}
		s.messages++
		size := len(payload)
		if m.Segments > 1 {
			size = m.SegmentSize
		}
		segments := slices.Collect(slices.Chunk(payload, size))
		if len(segments) != m.Segments {
			return i, fmt.Errorf("%d segments, said to be %d", len(segments), m.Segments)
		}
		s.sent[m.To] = append(s.sent[m.To], segments...)
	}
	return len(ms), nil
}

func (s *fakeSocket) to(peer string) [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent[netip.MustParseAddrPort(peer)]
}
