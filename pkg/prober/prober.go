// Package prober finds out which peers answer: this host pings the overlay addresses of its peers
// through the overlay, a few each second whatever their number. The kernel of a peer answers, so the
// peer needs no daemon. The results are loss, round-trip time, and whether full-size packets
// arrive.
//
// It changes nothing, and nothing depends on it but reports. Invariants: a probe never leaves this
// host by another way than a container's packets to that peer; a peer that has never answered is
// unknown, not failing, because its packet filter may drop pings.
package prober

import (
	"cmp"
	"context"
	"crypto/rand"
	"iter"
	mathrand "math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
	"flanneld/pkg/pace"
)

// Config configures a Prober.
type Config struct {
	// Interval is the time in which perInterval probes are sent; 0 means none are.
	Interval   time.Duration
	Conditions *condition.List

	open func() (socket, error) // openRaw, except in tests
}

const (
	// answerTime is the time for which the answer to one probe is awaited before the next one is
	// sent, so that fast answers are measured exactly.
	answerTime = 2 * time.Millisecond
	// maxPackets is the maximum number of packets that are read in an interval. More can only be a
	// flood, and are left to the kernel to drop.
	maxPackets = 1000
	// errorTime is the time for which no probe could be sent, after which all peers are unknown.
	errorTime = 30 * time.Second
	// updatePause is the time between two updates of the peers, which cost milliseconds if there are
	// thousands.
	updatePause = time.Second
)

// Prober probes peers. Make one with New.
type Prober struct {
	cfg   Config
	start time.Time
	wake  chan struct{}

	input struct { // the latest values
		sync.Mutex
		inputs
		changed bool
	}

	// The following belong to Run's goroutine.
	have      inputs // those of the schedule
	updatedAt time.Time
	device    string // of the backend; "" if it has none
	socket    socket
	reporter  reporter

	mu       sync.Mutex // guards the following
	schedule *schedule
	failed   error     // why the last probe was not sent
	failedAt time.Time // when the first of these failures was
}

// inputs are what other rooms have set.
type inputs struct {
	network *backend.Network // nil before the first
	facts   *host.Facts      // likewise
	view    *lease.View      // likewise
	skipped []backend.Skipped
}

// New returns a Prober. It sends nothing before it has a network, facts and a view.
func New(cfg Config) *Prober {
	if cfg.open == nil {
		cfg.open = openRaw
	}
	return &Prober{
		cfg: cfg, start: time.Now(), wake: make(chan struct{}, 1), reporter: reporter{conditions: cfg.Conditions},
		schedule: newSchedule(cfg.Interval, mathrand.New(mathrand.NewPCG(mathrand.Uint64(), mathrand.Uint64()))),
	}
}

// SetNetwork sets the network whose peers are probed. Like the other methods that set something, it
// never blocks.
func (p *Prober) SetNetwork(n backend.Network) { p.set(func(in *inputs) { in.network = &n }) }

// SetFacts sets the facts about this host. While they are unknown, the last ones are used.
func (p *Prober) SetFacts(f host.Facts, err error) {
	if err == nil {
		p.set(func(in *inputs) { in.facts = &f })
	}
}

// SetView sets the view of the network.
func (p *Prober) SetView(v lease.View) { p.set(func(in *inputs) { in.view = &v }) }

// SetSkipped sets the peers that have no objects in the kernel and are not probed.
func (p *Prober) SetSkipped(skipped []backend.Skipped) {
	p.input.Lock()
	same := slices.Equal(skipped, p.input.skipped)
	p.input.Unlock()
	if !same {
		p.set(func(in *inputs) { in.skipped = slices.Clone(skipped) })
	}
}

func (p *Prober) set(f func(*inputs)) {
	p.input.Lock()
	f(&p.input.inputs)
	p.input.changed = true
	p.input.Unlock()
	pace.Wake(p.wake)
}

// Run probes peers until ctx ends. It returns at once if the interval is 0.
func (p *Prober) Run(ctx context.Context) {
	if p.cfg.Interval == 0 {
		return
	}
	defer func() {
		if p.socket != nil {
			p.socket.Close()
		}
	}()
	// Hosts that start at the same time do not send at the same time.
	next := time.Now().Add(mathrand.N(p.cfg.Interval))
	for {
		if len(p.schedule.peers) == 0 && !p.reporter.dirty {
			select {
			case <-ctx.Done():
			case <-p.wake:
			}
			next = time.Now().Add(mathrand.N(p.cfg.Interval))
		}
		p.receive(ctx, next, maxPackets)
		if pace.Sleep(ctx, time.Until(next)) != nil {
			return
		}
		p.takeTurn(ctx)
		pause := p.pause()
		if next = next.Add(pause); time.Until(next) < 0 {
			next = time.Now().Add(pause)
		}
	}
}

// receive reads answers until a time, or so many packets.
func (p *Prober) receive(ctx context.Context, until time.Time, packets int) {
	if p.socket == nil {
		return
	}
	s := p.socket
	defer context.AfterFunc(ctx, func() { s.Close() })()
	for range packets {
		e, err := s.receive(until)
		switch {
		case os.IsTimeout(err):
			return
		case err != nil:
			p.closeSocket()
			p.sent(err)
			return
		}
		p.mu.Lock()
		p.schedule.answered(e, time.Since(p.start))
		p.mu.Unlock()
	}
}

func (p *Prober) closeSocket() {
	p.socket.Close()
	p.socket = nil
}

// takeTurn takes over changed inputs, sends the probes of an interval, and reports.
func (p *Prober) takeTurn(ctx context.Context) {
	p.update()
	p.mu.Lock()
	p.schedule.begin(time.Since(p.start))
	p.mu.Unlock()
	for p.probe() && ctx.Err() == nil {
		p.receive(ctx, time.Now().Add(answerTime), 1)
	}
	p.report()
}

// pause returns the time between this turn and the next one: an interval, or longer if the next one
// would have nothing to do, because most of what an idle daemon costs is waking up.
func (p *Prober) pause() time.Duration {
	if p.reporter.dirty {
		return p.cfg.Interval
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.schedule.pause()
}

// probe sends a probe, and reports whether there was one to send.
func (p *Prober) probe() bool {
	var token [tokenSize]byte
	rand.Read(token[:]) // never fails
	p.mu.Lock()
	probe, device, ok := p.schedule.pick(time.Since(p.start), token)
	p.mu.Unlock()
	if !ok {
		return false
	}
	err := p.send(request{echo: probe.echo, device: device, source: p.source()})
	p.sent(err)
	if err != nil {
		p.mu.Lock()
		p.schedule.notSent(probe.seq)
		p.mu.Unlock()
	}
	return true
}

// sent records whether a probe could be sent.
func (p *Prober) sent(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil && p.failed == nil {
		p.failedAt = time.Now()
	}
	p.failed = err
}

func (p *Prober) send(r request) error {
	if p.socket == nil {
		s, err := p.cfg.open()
		if err != nil {
			return err
		}
		p.socket = s
	}
	err := p.socket.send(r)
	if err != nil && p.device == "" && r.source.IsValid() {
		// Without a device of the backend, the address is that of docker's bridge, which need not
		// exist.
		r.source = netip.Addr{}
		err = p.socket.send(r)
	}
	return err
}

// source returns the overlay address of this host.
func (p *Prober) source() netip.Addr {
	subnet := p.have.view.Own.Subnets.V4()
	if p.device == "" {
		return subnet.Addr().Next()
	}
	return subnet.Addr()
}

// update takes over changed inputs.
func (p *Prober) update() {
	if len(p.schedule.peers) > 0 && time.Since(p.updatedAt) < updatePause {
		return // there is another turn
	}
	p.input.Lock()
	in, changed := p.input.inputs, p.input.changed
	p.input.changed = false
	p.input.Unlock()
	if !changed || in.network == nil || in.facts == nil || in.view == nil {
		return
	}
	p.have, p.updatedAt = in, time.Now()
	p.device, _ = in.network.Link(*in.facts, in.view.Own)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.schedule.first, p.schedule.mtu = p.device == "", min(in.network.MTU(*in.facts), maxSize)
	p.schedule.set(p.targets(in), time.Since(p.start))
	if len(p.schedule.peers) == 0 {
		p.failed = nil // there is nothing to send
	}
}

// targets returns the peers to probe, sorted.
func (p *Prober) targets(in inputs) iter.Seq[target] {
	skipped := make(map[lease.Subnets]bool, len(in.skipped))
	for _, s := range in.skipped {
		skipped[s.Subnets] = true
	}
	return func(yield func(target) bool) {
		for _, l := range in.view.Peers {
			subnet := l.Subnets.V4()
			if skipped[l.Subnets] || !subnet.IsValid() {
				continue
			}
			device := in.network.Via(*in.facts, l)
			onLink := device != "" && device != p.device
			if !yield(target{keyOf(subnet), device, onLink}) {
				return
			}
		}
	}
}

// Results are what the probes have shown at one point in time.
type Results struct {
	start time.Time
	peers []peer // sorted by key; empty if no probes could be sent
}

// Results returns the present results.
func (p *Prober) Results() Results {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blocked() {
		return Results{}
	}
	return Results{p.start, slices.Clone(p.schedule.peers)}
}

// blocked reports whether no probes could be sent for some time.
func (p *Prober) blocked() bool { return p.failed != nil && time.Since(p.failedAt) >= errorTime }

// Of returns the result for a peer.
func (r Results) Of(s lease.Subnets) Result {
	if !s.V4().IsValid() {
		return Result{}
	}
	i, ok := slices.BinarySearchFunc(r.peers, keyOf(s.V4()), func(p peer, k key) int { return cmp.Compare(p.key, k) })
	if !ok {
		return Result{}
	}
	return r.peers[i].result(r.start)
}

// All returns the results for all peers, sorted by subnet.
func (r Results) All() iter.Seq2[netip.Prefix, Result] {
	return func(yield func(netip.Prefix, Result) bool) {
		for i := range r.peers {
			if p := &r.peers[i]; !yield(p.key.subnet(), p.result(r.start)) {
				return
			}
		}
	}
}

// Stats returns the totals so far, and the present number of peers in each state.
func (p *Prober) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.schedule.stats
	if p.blocked() {
		s.Peers = [states]int{Unknown: len(p.schedule.peers)}
	}
	return s
}
