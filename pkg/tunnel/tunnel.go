package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// A Tunnel forwards packets between a device and a socket by its table. It has counters but no
// descriptors, which belong to the caller of Run. Its methods may be called from any goroutine.
type Tunnel struct {
	state    atomic.Pointer[state]
	counters *counters
	swapping sync.Mutex

	// clock returns the monotonic time since New.
	clock func() time.Duration
}

// A state is a table with the states of its peers, in the same order.
type state struct {
	table *Table
	peers []*peerState
}

// New returns a tunnel with its first table.
func New(t *Table) *Tunnel { return newTunnel(t, new(counters)) }

func newTunnel(t *Table, c *counters) *Tunnel {
	made := time.Now()
	tunnel := &Tunnel{counters: c, clock: func() time.Duration { return time.Since(made) }}
	tunnel.Swap(t)
	return tunnel
}

// Swap replaces the table for all packets that are read or received from now on. The state of a
// peer is kept if the new table has it too.
func (t *Tunnel) Swap(table *Table) {
	t.swapping.Lock()
	defer t.swapping.Unlock()
	known := map[Peer]*peerState{}
	if old := t.state.Load(); old != nil {
		for i, p := range old.table.overlay.Peers {
			known[p] = old.peers[i]
		}
	}
	next := &state{table: table, peers: make([]*peerState, len(table.overlay.Peers))}
	for i, p := range table.overlay.Peers {
		if next.peers[i] = known[p]; next.peers[i] == nil {
			next.peers[i] = &peerState{}
		}
	}
	t.state.Store(next)
}

// Stats returns the totals so far.
func (t *Tunnel) Stats() Stats {
	s := t.state.Load()
	stats := t.counters.stats()
	stats.Peers = make([]PeerStats, len(s.peers))
	for i, p := range s.peers {
		until := p.unsegmentedUntil.Load()
		stats.Peers[i] = PeerStats{
			Peer: s.table.overlay.Peers[i], Sent: p.sent.count(), Received: p.rcvd.count(),
			Unsegmented: until != 0 && t.clock() < time.Duration(until),
		}
	}
	return stats
}

// Endpoints are the device and socket of a tunnel. They belong to the caller of Run.
type Endpoints struct {
	Device Device
	Socket Socket

	// ICMP receives the tunnel's ICMP errors, one complete IPv4 packet per Write; in production an
	// *ICMP. If it is nil, no errors are sent. It is used by two goroutines.
	ICMP io.WriteCloser
}

// Close closes the endpoints, which must not be in use.
func (e Endpoints) Close() {
	e.Device.Close()
	e.Socket.Close()
	if e.ICMP != nil {
		e.ICMP.Close()
	}
}

// Run forwards packets until the context ends, when it returns nil, or an endpoint fails: then it
// returns the reason, which is ErrDeviceGone if the device was deleted. The endpoints stay open, but
// cannot be used again. A tunnel must not run twice at the same time.
func (t *Tunnel) Run(ctx context.Context, e Endpoints) error {
	interrupt := sync.OnceFunc(func() {
		e.Device.Interrupt()
		e.Socket.Interrupt()
	})
	defer context.AfterFunc(ctx, interrupt)()

	ended := make(chan error, 2)
	go func() { ended <- newTransmitter(t, e.Device, e.Socket, e.ICMP).run() }()
	go func() { ended <- newReceiver(t, e.Device, e.Socket, e.ICMP).run() }()
	err := <-ended
	interrupt()
	<-ended
	if ctx.Err() != nil && errors.Is(err, ErrInterrupted) {
		return nil
	}
	return fmt.Errorf("run tunnel: %w", err)
}

// An icmpSender sends the ICMP errors of one goroutine.
type icmpSender struct {
	tunnel  *Tunnel
	to      io.Writer
	limiter *rate.Limiter // by the tunnel's clock
	buf     []byte
}

func newICMPSender(t *Tunnel, to io.Writer) icmpSender {
	return icmpSender{
		tunnel: t, to: to,
		limiter: rate.NewLimiter(icmpRate, icmpBurst), buf: make([]byte, 0, maxICMP),
	}
}

// send sends an ICMP error to a packet's sender, unless none may be sent or the rate limit is
// reached. Failures are ignored, because ICMP errors are optional.
func (s *icmpSender) send(st *state, e icmpError, about []byte) {
	if s.to == nil || !s.limiter.AllowN(time.Time{}.Add(s.tunnel.clock()), 1) {
		return
	}
	packet := appendICMP(s.buf[:0], e, st.table, about)
	if len(packet) > 0 {
		_, _ = s.to.Write(packet)
	}
}
