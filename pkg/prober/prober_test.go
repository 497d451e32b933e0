package prober

import (
	"context"
	"errors"
	"log/slog"
	mathrand "math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
	"flanneld/pkg/host"
	"flanneld/pkg/lab/logs"
	"flanneld/pkg/lease"
)

// network is a network of peers that answer after a millisecond.
type network struct {
	mu       sync.Mutex
	down     map[netip.Addr]bool
	narrow   map[netip.Addr]bool
	loss     map[netip.Addr]float64 // share of the packets to a peer that is lost
	random   *mathrand.Rand
	latency  time.Duration // added to the round-trip time
	forged   bool          // others answer instead
	flood    bool          // there is always a packet to read
	broken   error         // of sending
	unopened error         // of opening
	noSource bool          // this host does not have the source address
	sent     []request
	opened   int
	closed   int
	reads    int
}

// link is a socket in a network.
type link struct {
	*network
	replies chan echo
	failed  chan error
	closing chan struct{}
	once    sync.Once
}

func (n *network) open() (socket, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.unopened != nil {
		return nil, n.unopened
	}
	n.opened++
	return &link{network: n, replies: make(chan echo, 1000), failed: make(chan error, 1), closing: make(chan struct{})}, nil
}

func (l *link) send(r request) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.noSource && r.source.IsValid() {
		return unix.EINVAL
	}
	if l.broken != nil {
		return l.broken
	}
	l.sent = append(l.sent, r)
	if l.random.Float64() < l.loss[r.addr] {
		return nil
	}
	if l.down[r.addr] || r.size > smallSize && l.narrow[r.addr] {
		return nil
	}
	e := r.echo
	if l.forged {
		e.addr = e.addr.Next()
	}
	time.AfterFunc(time.Millisecond+l.latency, func() { l.replies <- e })
	return nil
}

func (l *link) receive(until time.Time) (echo, error) {
	l.mu.Lock()
	l.reads++
	flood := l.flood
	l.mu.Unlock()
	if flood {
		return echo{}, nil
	}
	select {
	case e := <-l.replies:
		return e, nil
	case err := <-l.failed:
		return echo{}, err
	case <-l.closing:
		return echo{}, os.ErrClosed
	case <-time.After(time.Until(until)):
		return echo{}, os.ErrDeadlineExceeded
	}
}

func (l *link) Close() error {
	l.once.Do(func() {
		l.mu.Lock()
		l.closed++
		l.mu.Unlock()
		close(l.closing)
	})
	return nil
}

// set changes the network.
func (n *network) set(f func(n *network)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(n)
}

type fixture struct {
	*Prober
	net        *network
	t          *testing.T
	conditions *condition.List
	log        logs.Buffer
	facts      host.Facts
	view       lease.View
}

// start runs a prober in a bubble, with so many peers.
func start(t *testing.T, config string, peers int, test func(f *fixture)) {
	synctest.Test(t, func(t *testing.T) {
		n, err := backend.ParseNetwork([]byte(config))
		if err != nil {
			t.Fatal(err)
		}
		f := &fixture{t: t, net: &network{random: mathrand.New(mathrand.NewPCG(3, 4)), down: map[netip.Addr]bool{}, narrow: map[netip.Addr]bool{}, loss: map[netip.Addr]float64{}}}
		f.conditions = condition.NewList(slog.New(slog.NewTextHandler(&f.log, nil)))
		f.Prober = New(Config{Interval: time.Second, Conditions: f.conditions, open: f.net.open})
		f.facts = host.Facts{Uplink: "eth0", MTU: 1500, Addr: netip.MustParseAddr("198.51.100.7")}
		f.facts.Underlay = []host.Route{{Dst: netip.MustParsePrefix("198.51.100.0/24"), Iface: "eth0"}}
		f.view = view(peers)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan struct{})
		go func() {
			f.Run(ctx)
			close(done)
		}()
		f.SetNetwork(n)
		f.SetFacts(host.Facts{}, errors.New("not yet"))
		f.SetView(f.view)
		f.SetFacts(f.facts, nil)
		test(f)
		cancel()
		<-done
		if f.net.opened != f.net.closed {
			t.Errorf("%d sockets opened, %d closed", f.net.opened, f.net.closed)
		}
	})
}

func lease9(n byte) *lease.Lease {
	return &lease.Lease{
		Subnets: lease.SubnetsOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 42, n, 0}), 24)),
		Attrs:   lease.Attrs{PublicIP: netip.AddrFrom4([4]byte{198, 51, 100, n})},
	}
}

// view returns a view of peers 100, 101 and so on.
func view(peers int) lease.View {
	v := lease.View{Own: *lease9(7), Complete: true}
	for i := range peers {
		v.Peers = append(v.Peers, lease9(byte(100+i)))
	}
	return v
}

// after lets time pass.
func (f *fixture) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// state returns the result for peer 100+n.
func (f *fixture) result(n int) Result { return f.Results().Of(lease9(byte(100 + n)).Subnets) }

func (f *fixture) has(condition string, want bool) {
	f.t.Helper()
	if f.conditions.Has(condition) != want {
		f.t.Errorf("condition %s: %v; log:\n%s", condition, !want, f.log.String())
	}
}

// lines counts the log lines with a text.
func (f *fixture) lines(text string, want int) {
	f.t.Helper()
	if n := strings.Count(f.log.String(), text); n != want {
		f.t.Errorf("%d lines %q, want %d:\n%s", n, text, want, f.log.String())
	}
}

const vxlan, direct = `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`, `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// TestWhatIsSent checks the addresses, devices and sizes of probes with each backend.
func TestWhatIsSent(t *testing.T) {
	for _, c := range []struct {
		config string
		want   request
		full   int
	}{
		{vxlan, request{echo{addr: addr("10.42.100.0")}, "flannel.1", addr("10.42.7.0")}, 1450},
		{direct, request{echo{addr: addr("10.42.100.0")}, "eth0", addr("10.42.7.0")}, 1450},
		{`{"Network":"10.42.0.0/16"}`, request{echo{addr: addr("10.42.100.0")}, "flannel0", addr("10.42.7.0")}, 1472},
		{`{"Network":"10.42.0.0/16","Backend":{"Type":"host-gw"}}`, request{echo{addr: addr("10.42.100.1")}, "eth0", addr("10.42.7.1")}, 1500},
		{`{"Network":"10.42.0.0/16","Backend":{"Type":"alloc"}}`, request{echo{addr: addr("10.42.100.1")}, "", addr("10.42.7.1")}, 1500},
	} {
		start(t, c.config, 1, func(f *fixture) {
			f.after(20 * time.Second)
			sizes := map[int]int{}
			for _, r := range f.net.sent {
				sizes[r.size]++
				if got := (request{echo{addr: r.addr}, r.device, r.source}); got != c.want {
					t.Errorf("%s: sent %+v, want %+v", c.config, got, c.want)
				}
			}
			if len(sizes) != 2 || sizes[smallSize] < 6 || sizes[c.full] < 1 || sizes[c.full] > 3 {
				t.Errorf("%s: probes by size: %v", c.config, sizes)
			}
			if r := f.result(0); r.State != OK || r.RTT != time.Millisecond || time.Since(r.Heard) > 3*time.Second || r.Since.IsZero() {
				t.Errorf("%s: %+v", c.config, r)
			}
		})
	}
}

// TestIdleProberSleeps: while few peers answer, it wakes once in a round.
func TestIdleProberSleeps(t *testing.T) {
	start(t, vxlan, 3, func(f *fixture) {
		f.after(10 * time.Second)
		turns := func() int { // each is one read that times out, beside the answers
			f.net.mu.Lock()
			defer f.net.mu.Unlock()
			return f.net.reads - len(f.net.sent)
		}
		before := turns()
		f.after(time.Minute)
		if n := turns() - before; n < 29 || n > 31 {
			t.Errorf("woke %d times in a minute", n)
		}
		f.net.set(func(n *network) { n.down[addr("10.42.101.0")] = true })
		f.after(10 * time.Second)
		if r := f.result(1); r.State != Failing {
			t.Errorf("%+v", r)
		}
	})
}

// TestRTTOfSlowPaths: answers that arrive long after all probes of an interval were sent are measured
// as exactly as fast ones; those that arrive after the timeout are lost.
func TestRTTOfSlowPaths(t *testing.T) {
	start(t, vxlan, 5, func(f *fixture) {
		for _, latency := range []time.Duration{49 * time.Millisecond, 899 * time.Millisecond} {
			f.net.set(func(n *network) { n.latency = latency })
			f.after(10 * time.Second)
			for n := range 5 {
				if r := f.result(n); r.Last != time.Millisecond+latency && r.State == OK {
					t.Errorf("latency %v: peer %d: %+v", latency, n, r)
				}
			}
		}
		if s := f.Stats(); s.Peers[Failing] != 0 || s.Peers[OK] != 5 {
			t.Errorf("%+v", s)
		}
		f.net.set(func(n *network) { n.latency = 2 * time.Second })
		f.after(10 * time.Second)
		if s := f.Stats(); s.Peers[Failing] != 5 {
			t.Errorf("%+v", s)
		}
	})
}

func TestTokensDiffer(t *testing.T) {
	start(t, vxlan, 3, func(f *fixture) {
		f.after(40 * time.Second)
		tokens := map[[tokenSize]byte]bool{}
		for _, r := range f.net.sent {
			tokens[r.token] = true
		}
		if len(tokens) != len(f.net.sent) || len(tokens) < 50 {
			t.Errorf("%d tokens in %d probes", len(tokens), len(f.net.sent))
		}
	})
}

// TestHostThatIsOffIsOneWarning: it begins with the failure and ends when the host is back.
func TestHostThatIsOffIsOneWarning(t *testing.T) {
	start(t, vxlan, 10, func(f *fixture) {
		f.after(20 * time.Second)
		f.net.set(func(n *network) { n.down[addr("10.42.103.0")] = true })
		f.after(20 * time.Second)
		if r := f.result(3); r.State != Failing || r.Loss < .3 {
			t.Errorf("%+v", r)
		}
		f.has(unreachableCondition, true)
		f.after(time.Hour)
		f.lines(`level=WARN msg="peers do not answer probes" count=1 examples=10.42.103.0/24`, 1)
		f.net.set(func(n *network) { clear(n.down) })
		f.after(20 * time.Second)
		f.has(unreachableCondition, false)
		f.lines("peers answer probes again", 1)
		f.lines("level=", 2)
	})
}

// TestManyHostsThatAreOffAreFewWarnings: a switch fails, and works again.
func TestManyHostsThatAreOffAreFewWarnings(t *testing.T) {
	start(t, vxlan, 100, func(f *fixture) {
		f.after(time.Minute)
		f.net.set(func(n *network) {
			for i := range 100 {
				n.down[netip.AddrFrom4([4]byte{10, 42, byte(100 + i), 0})] = true
			}
		})
		f.after(10 * time.Minute)
		f.lines("peers do not answer probes\" count=100 examples=\"10.42.100.0/24, 10.42.101.0/24, 10.42.102.0/24\"", 1)
		if s := f.Stats(); s.Peers[Failing] != 100 {
			t.Errorf("%+v", s)
		}
		f.net.set(func(n *network) { clear(n.down) })
		f.after(10 * time.Minute)
		f.has(unreachableCondition, false)
		if n := strings.Count(f.log.String(), "\n"); n > 16 {
			t.Errorf("%d lines:\n%s", n, f.log.String())
		}
	})
}

// TestConditionEndsWithTheLastPeer: also if nothing happens after that.
func TestConditionEndsWithTheLastPeer(t *testing.T) {
	start(t, vxlan, 1, func(f *fixture) {
		f.after(20 * time.Second)
		f.net.set(func(n *network) { n.down[addr("10.42.100.0")] = true })
		f.after(20 * time.Second)
		f.has(unreachableCondition, true)
		f.SetView(view(0))
		f.after(20 * time.Second)
		f.has(unreachableCondition, false)
		f.net.set(func(n *network) { n.reads = 0 })
		f.after(time.Hour)
		if f.net.reads > 0 {
			t.Errorf("%d wakeups without peers", f.net.reads)
		}
	})
}

// TestNoPeersNoProblem: what prevents the probes does not matter without peers.
func TestNoPeersNoProblem(t *testing.T) {
	start(t, vxlan, 1, func(f *fixture) {
		f.net.set(func(n *network) { n.broken = unix.EPERM })
		f.after(time.Minute)
		f.has(unprobedCondition, true)
		f.SetView(view(0))
		f.after(20 * time.Second)
		f.has(unprobedCondition, false)
	})
}

func TestMTUFaultIsACondition(t *testing.T) {
	start(t, vxlan, 5, func(f *fixture) {
		f.net.set(func(n *network) { n.narrow[addr("10.42.102.0")] = true })
		f.after(time.Minute)
		f.has(mtuCondition, true)
		f.lines(`level=WARN msg="full-size packets to peers are lost" count=1 examples=10.42.102.0/24 mtu=1450`, 1)
		f.has(unreachableCondition, false)
		f.net.set(func(n *network) { clear(n.narrow) })
		f.after(time.Minute)
		f.has(mtuCondition, false)
		f.lines("level=", 2)
	})
}

// TestLossyPathIsACondition: with its figure, which is reported again only if it changes much.
func TestLossyPathIsACondition(t *testing.T) {
	start(t, vxlan, 5, func(f *fixture) {
		f.net.set(func(n *network) { n.loss[addr("10.42.102.0")] = .25 })
		f.after(5 * time.Minute)
		if r := f.result(2); r.State != Lossy || r.Loss < .15 || r.Loss > .45 {
			t.Errorf("%+v", r)
		}
		f.has(lossyCondition, true)
		f.has(unreachableCondition, false)
		f.has(mtuCondition, false)
		f.after(time.Hour)
		f.lines("level=", 1)
		f.lines(`level=WARN msg="some packets to peers are lost" count=1 examples="10.42.102.0/24 (`, 1)
		f.net.set(func(n *network) { n.loss[addr("10.42.102.0")] = .55 })
		f.after(time.Hour)
		f.has(lossyCondition, true)
		if n := strings.Count(f.log.String(), "level=WARN"); n != 2 && n != 3 {
			t.Errorf("%d lines:\n%s", n, f.log.String())
		}
		f.net.set(func(n *network) { clear(n.loss) })
		f.after(3 * time.Minute)
		f.has(lossyCondition, false)
		f.lines("packets to peers are no longer lost", 1)
	})
}

func TestPeersThatNeverAnswerAreUnknown(t *testing.T) {
	start(t, vxlan, 3, func(f *fixture) {
		f.net.set(func(n *network) { n.forged = true })
		f.after(time.Hour)
		if r := f.result(1); r.State != Unknown || r.RTT > 0 || r.Lost == 0 {
			t.Errorf("%+v", r)
		}
		if s := f.Stats(); s.Peers[Unknown] != 3 || s.Answered > 0 || s.Lost == 0 {
			t.Errorf("%+v", s)
		}
		f.lines("level=", 0)
	})
}

// TestDeviceVanishesAndReturns: what cannot be sent is no loss; after a while it is a condition, and
// the peers are unknown.
func TestDeviceVanishesAndReturns(t *testing.T) {
	start(t, vxlan, 10, func(f *fixture) {
		f.after(20 * time.Second)
		f.net.set(func(n *network) { n.broken = unix.ENODEV })
		f.after(20 * time.Second)
		f.has(unprobedCondition, false)
		if r := f.result(1); r.State != OK || r.Loss > 0 {
			t.Errorf("soon: %+v", r)
		}
		f.after(20 * time.Second)
		f.has(unprobedCondition, true)
		if r := f.result(1); r != (Result{}) {
			t.Errorf("after a while: %+v", r)
		}
		if s := f.Stats(); s.Peers != [states]int{Unknown: 10} || s.Lost > 0 {
			t.Errorf("after a while: %+v", s)
		}
		f.net.set(func(n *network) { n.broken = nil })
		f.after(2 * time.Second)
		f.has(unprobedCondition, false)
		if r := f.result(1); r.State != OK {
			t.Errorf("at last: %+v", r)
		}
		f.lines("cannot probe peers, will retry", 1)
		f.lines("level=", 2)
	})
}

// TestSocketFails: a socket that cannot be opened or read is opened again.
func TestSocketFails(t *testing.T) {
	start(t, vxlan, 3, func(f *fixture) {
		f.net.set(func(n *network) { n.unopened = unix.EPERM })
		f.after(time.Minute)
		f.has(unprobedCondition, true)
		f.net.set(func(n *network) { n.unopened = nil })
		f.after(10 * time.Second)
		f.has(unprobedCondition, false)
		f.Prober.socket.(*link).failed <- unix.EBADF // no data race: the loop waits in this socket
		f.after(10 * time.Second)
		if f.net.opened != 2 || f.result(0).State != OK {
			t.Errorf("opened %d times, %+v", f.net.opened, f.result(0))
		}
	})
}

// TestHostWithoutBridge: without an overlay device, the source address is that of docker's bridge.
// If there is none, the kernel chooses.
func TestHostWithoutBridge(t *testing.T) {
	start(t, `{"Network":"10.42.0.0/16","Backend":{"Type":"host-gw"}}`, 2, func(f *fixture) {
		f.net.set(func(n *network) { n.noSource = true })
		f.after(10 * time.Second)
		if len(f.net.sent) < 10 || f.net.sent[0].source.IsValid() || f.result(0).State != OK {
			t.Errorf("sent %+v; %+v", f.net.sent[0], f.result(0))
		}
	})
}

// TestFloodOfRepliesIsBounded: no more than some packets are read in a turn.
func TestFloodOfRepliesIsBounded(t *testing.T) {
	start(t, vxlan, 3, func(f *fixture) {
		f.after(time.Second)
		f.net.set(func(n *network) { n.flood, n.reads = true, 0 })
		f.after(10 * time.Second)
		if f.net.reads > 12*maxPackets {
			t.Errorf("%d packets read in 10 s", f.net.reads)
		}
	})
}

// TestOnlyPeersOfTheViewAreProbed: those that are skipped or gone are not, and without any, nothing
// is done.
func TestOnlyPeersOfTheViewAreProbed(t *testing.T) {
	start(t, vxlan, 0, func(f *fixture) {
		f.after(time.Hour)
		if f.net.opened > 0 {
			t.Error("opened a socket without peers")
		}
		f.SetView(view(4))
		skipped := []backend.Skipped{{Subnets: lease9(101).Subnets, Fault: lease.Fault{Kind: "wrong"}}}
		f.SetSkipped(skipped)
		f.after(20 * time.Second)
		f.SetSkipped(skipped)
		v := view(4)
		v.Peers = slices.Delete(v.Peers, 0, 1)
		v.Peers = append(v.Peers, &lease.Lease{Subnets: lease.SubnetsOf(netip.MustParsePrefix("fd42::/64"))})
		f.SetView(v)
		f.after(2 * time.Second)
		counts := map[string]int{}
		f.net.set(func(n *network) { n.sent = nil })
		f.after(40 * time.Second)
		for _, r := range f.net.sent {
			counts[r.addr.String()]++
		}
		if len(counts) != 2 || counts["10.42.102.0"] < 15 || counts["10.42.103.0"] < 15 {
			t.Errorf("probes: %v", counts)
		}
		if f.result(0) != (Result{}) || f.result(1) != (Result{}) || f.result(2).State != OK {
			t.Errorf("%+v %+v %+v", f.result(0), f.result(1), f.result(2))
		}
		f.SetView(view(0))
		f.after(2 * time.Second)
		f.net.set(func(n *network) { n.sent = nil })
		f.after(time.Minute)
		if len(f.net.sent) > 0 {
			t.Errorf("%d probes without peers", len(f.net.sent))
		}
	})
}

// TestFirstPeerComesSoonAfterTheFirstView: views that follow one another quickly are all used.
func TestFirstPeerComesSoonAfterTheFirstView(t *testing.T) {
	start(t, vxlan, 0, func(f *fixture) {
		f.after(300 * time.Millisecond)
		f.SetView(view(2))
		f.after(5 * time.Second)
		for n := range 2 {
			if f.result(n).State != OK {
				t.Errorf("peer %d: %+v", n, f.result(n))
			}
		}
	})
}

func TestIntervalOfZeroSendsNothing(t *testing.T) {
	n, err := backend.ParseNetwork([]byte(vxlan))
	if err != nil {
		t.Fatal(err)
	}
	p := New(Config{open: func() (socket, error) {
		t.Error("opened a socket")
		return nil, unix.EPERM
	}})
	p.SetNetwork(n)
	p.SetFacts(host.Facts{Uplink: "eth0", MTU: 1500}, nil)
	p.SetView(view(3))
	p.Run(t.Context()) // returns at once
	if r := p.Results().Of(lease9(100).Subnets); r != (Result{}) {
		t.Errorf("%+v", r)
	}
}

// TestResultsWhileRunning reads results and statistics as the status does.
func TestResultsWhileRunning(t *testing.T) {
	start(t, vxlan, 20, func(f *fixture) {
		var readers sync.WaitGroup
		for range 4 {
			readers.Go(func() {
				for range 100 {
					time.Sleep(50 * time.Millisecond)
					_ = f.Results().Of(lease9(100).Subnets)
					_ = f.Stats()
					for subnet, r := range f.Results().All() {
						if !subnet.IsValid() || r.Lost > 0 {
							t.Errorf("%v: %+v", subnet, r)
						}
					}
					f.SetView(f.view)
				}
			})
		}
		readers.Wait()
	})
}
