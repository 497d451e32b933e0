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

// A Tunnel forwards packets between a device and a socket by its table. It has counters, and no
// descriptors: these are its owner's, and given to Run. Its methods may be called from any
// goroutine.
type Tunnel struct {
	state    atomic.Pointer[state]
	counters counters
	swapping sync.Mutex
	running  atomic.Bool

	// clock counts from New on, and is none that anybody sets.
	clock func() time.Duration
}

// A state is a table with what is known of its peers, in the same order.
type state struct {
	table *Table
	peers []*peerState
}

// New makes a tunnel with its first table.
func New(t *Table) *Tunnel {
	made := time.Now()
	tunnel := &Tunnel{clock: func() time.Duration { return time.Since(made) }}
	tunnel.Swap(t)
	return tunnel
}

// Swap replaces the table for all packets that are read or received from now on. What is known of a
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

// Stats returns what was counted so far.
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

// Endpoints are what a tunnel runs between. The tunnel only borrows them.
type Endpoints struct {
	Device Device
	Socket Socket

	// ICMP takes the tunnel's ICMP errors, one whole IPv4 packet a Write, in production an *ICMP.
	// If it is nil, there are none. It is used by two goroutines.
	ICMP io.Writer
}

// Run forwards packets until the context ends, when it returns nil, or one end fails: then the
// error tells why, and is ErrDeviceGone if the device was deleted. The ends stay open and may be
// used for another Run, with the tunnel or another one. A tunnel runs once at a time.
func (t *Tunnel) Run(ctx context.Context, e Endpoints) error {
	if !t.running.CompareAndSwap(false, true) {
		return errors.New("run tunnel: it is running already")
	}
	defer t.running.Store(false)
	e.Device.Interrupt(false)
	e.Socket.Interrupt(false)
	interrupt := sync.OnceFunc(func() {
		e.Device.Interrupt(true)
		e.Socket.Interrupt(true)
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

// An icmpSender is one goroutine's way to send ICMP errors.
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

// send tells a packet's sender, unless there must be no error or there were too many. Nobody is
// told of a failure: an error is a courtesy.
func (s *icmpSender) send(st *state, e icmpError, about []byte) {
	if s.to == nil || !s.limiter.AllowN(time.Time{}.Add(s.tunnel.clock()), 1) {
		return
	}
	packet := appendICMP(s.buf[:0], e, st.table, about)
	if len(packet) > 0 {
		_, _ = s.to.Write(packet)
	}
}
