package uplink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
	"flanneld/pkg/driver"
	"flanneld/pkg/host"
	"flanneld/pkg/kernel"
)

// fake is a kernel with interfaces and routes. A test locks it to change something while the
// watcher runs.
type fake struct {
	sync.Mutex
	inventory host.Inventory
	around    host.Surroundings
	unread    error
	readings  []kernel.Wanted
	takes     time.Duration // a reading
}

func (f *fake) Inventory(w kernel.Wanted) (host.Inventory, error) {
	time.Sleep(f.takes)
	f.Lock()
	defer f.Unlock()
	f.readings = append(f.readings, w)
	inv := f.inventory
	inv.Ifaces, inv.Routes = slices.Clone(inv.Ifaces), slices.Clone(inv.Routes)
	return inv, f.unread
}

func (f *fake) RouteTo(netip.Addr) (string, netip.Addr, error) {
	return "eth0", netip.MustParseAddr("192.0.2.7"), nil
}

func (f *fake) Surroundings(func(netip.Prefix) bool, []string) (host.Surroundings, error) {
	f.Lock()
	defer f.Unlock()
	return f.around, f.unread
}

func (f *fake) Solicit(string, netip.Addr) error { return errors.New("no neighbours here") }
func (f *fake) Answered(string, netip.Addr) (bool, error) {
	return false, errors.New("no neighbours here")
}

// change changes the fake.
func (f *fake) change(c func()) {
	f.Lock()
	defer f.Unlock()
	c()
}

// count returns how many readings there were.
func (f *fake) count() int {
	f.Lock()
	defer f.Unlock()
	return len(f.readings)
}

// address adds an address to eth0.
func (f *fake) address(addr string) {
	f.change(func() {
		f.inventory.Ifaces[0].Addrs = []host.Addr{{Prefix: netip.MustParsePrefix(addr + "/24")}}
		f.inventory.Routes[1].Source = netip.MustParseAddr(addr)
	})
}

// newFake returns a host with eth0, by which its default route leads.
func newFake() *fake {
	prefix := netip.MustParsePrefix
	f := &fake{inventory: host.Inventory{
		Ifaces: []host.Iface{{Name: "eth0", Index: 2, MTU: 1500, Up: true, Running: true}},
		Routes: []host.Route{
			{Dst: prefix("0.0.0.0/0"), Iface: "eth0", Gateway: netip.MustParseAddr("192.0.2.1")},
			{Dst: prefix("192.0.2.0/24"), Iface: "eth0", Kernel: true},
		},
	}}
	f.address("192.0.2.7")
	return f
}

// fixture is a watcher of a fake, with what it has pushed.
type fixture struct {
	*Watcher
	fake       *fake
	events     chan driver.Event
	conditions *condition.List
	lines      bytes.Buffer

	mu     sync.Mutex
	pushed []string // facts and errors
	moved  int
	passed []string // events, with the address that was known then
}

// saw returns how often the address was another one, and the events that were passed on.
func (x *fixture) saw() (moves int, passed []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.moved, slices.Clone(x.passed)
}

// note records pushed facts.
func (x *fixture) note(change func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	change()
}

const config = `{"Network":"10.42.0.0/16","SubnetMin":"10.42.128.0","Backend":{"Type":"%s"}}`

func network(t *testing.T, raw string) backend.Network {
	t.Helper()
	n, err := backend.ParseNetwork([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// start chooses the uplink and watches it until the test ends.
func start(t *testing.T, f *fake, selectors host.Selectors) *fixture {
	t.Helper()
	x := &fixture{fake: f, events: make(chan driver.Event)}
	log := slog.New(slog.NewTextHandler(&x.lines, nil))
	x.conditions = condition.NewList(log)
	alive := 0
	x.Watcher = New(Config{
		Kernel: f, Selectors: selectors, Had: []netip.Prefix{netip.MustParsePrefix("10.42.7.0/24")},
		Conditions: x.conditions, Log: log, Heartbeat: func() { alive++ }, Moved: func() { x.note(func() { x.moved++ }) },
	})
	begun := time.Now()
	x.budget.Clock = func() time.Duration { return time.Since(begun) }
	inv, err := x.Inventory(false)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Choose(inv); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Facts(); !errors.As(err, &condition.Reported{}) {
		t.Errorf("facts before there is a network: %v", err)
	}
	x.SetNeeds(func() []host.Need { return []host.Need{{Addr: netip.MustParseAddr("10.42.99.1"), What: "etcd"}} }, inv)
	x.SetNetwork(network(t, fmt.Sprintf(config, "vxlan")))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		x.Run(ctx, x.events, x.onEvent, x.onFacts)
	}()
	synctest.Wait()
	t.Cleanup(func() {
		cancel()
		<-ended
		if alive == 0 {
			t.Error("the watcher is not alive")
		}
	})
	return x
}

// watch runs a test of a watcher of a host with eth0.
func watch(t *testing.T, test func(t *testing.T, f *fake, x *fixture)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		test(t, f, start(t, f, host.Selectors{}))
	})
}

func (x *fixture) onFacts(f host.Facts, err error) {
	text := fmt.Sprintf("%s %s %d %s %v", f.Uplink, f.Addr, f.MTU, f.TUN, f.Leased)
	if err != nil {
		text = err.Error()
	}
	x.note(func() { x.pushed = append(x.pushed, text) })
}

func (x *fixture) onEvent(e driver.Event) {
	if e == driver.DeviceTaken {
		x.SetTUN("flannel9")
	}
	f, _ := x.Facts()
	x.note(func() { x.passed = append(x.passed, fmt.Sprint(e, " ", f.Addr)) })
}

// expect returns the facts that were pushed since the last call.
func (x *fixture) expect(t *testing.T, what string, want ...string) {
	t.Helper()
	time.Sleep(burst)
	synctest.Wait()
	x.mu.Lock()
	defer x.mu.Unlock()
	if !slices.Equal(x.pushed, want) {
		t.Errorf("%s: pushed %q, want %q", what, x.pushed, want)
	}
	x.pushed = nil
}

// TestFactsArePushedWhenTheyChange: after events, within a minute, or when others say something
// that is a part of them; and not when nothing has changed. An event is passed on once what follows
// from it is known.
func TestFactsArePushedWhenTheyChange(t *testing.T) {
	watch(t, func(t *testing.T, f *fake, x *fixture) {
		x.expect(t, "at the start", "eth0 192.0.2.7 1500  [10.42.128.0/17]")

		f.address("192.0.2.8")
		x.events <- driver.Uplink
		x.expect(t, "another address", "eth0 192.0.2.8 1500  [10.42.128.0/17]")
		moves, passed := x.saw()
		if want := []string{"uplink 192.0.2.8"}; !slices.Equal(passed, want) || moves != 1 || x.Uplink().Addr != x.PublicIP() {
			t.Errorf("passed on %q, want %q; %d moves", passed, want, moves)
		}
		x.events <- driver.Uplink
		x.events <- driver.Links
		x.expect(t, "nothing has changed")
		if _, passed := x.saw(); len(passed) != 3 {
			t.Errorf("passed on %q", passed)
		}

		f.change(func() { f.inventory.Ifaces[0].MTU = 1400 })
		before := f.count()
		time.Sleep(resync + time.Second)
		x.expect(t, "without an event", "eth0 192.0.2.8 1400  [10.42.128.0/17]")
		if n := f.count() - before; n != 1 {
			t.Errorf("%d readings in a minute", n)
		}

		if !x.SetTUN("flannel1") || x.SetTUN("flannel1") {
			t.Error("another TUN device is not told apart")
		}
		x.expect(t, "another TUN device", "eth0 192.0.2.8 1400 flannel1 [10.42.128.0/17]")
		x.SetLeased([]netip.Prefix{netip.MustParsePrefix("10.42.0.0/20")})
		x.expect(t, "another pool", "eth0 192.0.2.8 1400 flannel1 [10.42.0.0/20]")

		x.events <- driver.DeviceTaken
		x.expect(t, "a device that another program has", "eth0 192.0.2.8 1400 flannel9 [10.42.0.0/20]")

		if said := x.lines.String(); strings.Count(said, "chose uplink") != 1 || strings.Count(said, "uplink changed") != 1 {
			t.Errorf("said\n%s", said)
		}
	})
}

// TestNewNeedsAreRead: soon after a request to refresh.
func TestNewNeedsAreRead(t *testing.T) {
	watch(t, func(t *testing.T, f *fake, x *fixture) {
		x.note(func() { x.pushed = nil })
		if f, err := x.Facts(); err != nil || len(f.Needs) != 1 || f.Needs[0].What != "etcd" {
			t.Errorf("needs %v, %v", f.Needs, err)
		}
		x.SetNeeds(func() []host.Need { return nil }, host.Inventory{})
		for range 3 {
			x.Refresh()
		}
		x.expect(t, "etcd is elsewhere", "eth0 192.0.2.7 1500  [10.42.128.0/17]")
		if f, err := x.Facts(); err != nil || len(f.Needs) != 0 {
			t.Errorf("needs %v, %v", f.Needs, err)
		}
	})
}

// TestUplinkIsAway: that is pushed, and a condition, until it is back; meanwhile the facts are
// those of before, and it is looked for each second.
func TestUplinkIsAway(t *testing.T) {
	watch(t, func(t *testing.T, f *fake, x *fixture) {
		x.note(func() { x.pushed = nil })
		f.change(func() { f.inventory.Ifaces[0].Up = false })
		x.events <- driver.Uplink
		x.expect(t, "down", "interface eth0 is down")
		facts, err := x.Facts()
		if !errors.As(err, &condition.Reported{}) || facts.MTU != 1500 || !x.conditions.Has(unusableCondition) {
			t.Errorf("facts %v, %v; conditions %v", facts, err, x.conditions.Current())
		}
		x.SetTUN("flannel1")
		before := f.count()
		time.Sleep(10 * time.Second)
		x.expect(t, "still down")
		if n := f.count() - before; n != 10 {
			t.Errorf("%d readings in 10 s", n)
		}
		f.change(func() { f.inventory.Ifaces[0].Up = true })
		time.Sleep(retry)
		x.expect(t, "up again", "eth0 192.0.2.7 1500 flannel1 [10.42.128.0/17]")
		if moves, _ := x.saw(); x.conditions.Has(unusableCondition) || moves != 0 {
			t.Errorf("conditions %v, %d moves", x.conditions.Current(), moves)
		}
	})
}

// TestUnreadableHost: an error of the kernel is pushed unchanged to the subscribers, which report
// it.
func TestUnreadableHost(t *testing.T) {
	watch(t, func(t *testing.T, f *fake, x *fixture) {
		x.note(func() { x.pushed = nil })
		f.change(func() { f.unread = errors.New("no buffer space available") })
		x.events <- driver.Overflow
		x.expect(t, "unreadable", "no buffer space available")
		if _, err := x.Facts(); err == nil || errors.As(err, &condition.Reported{}) || len(x.conditions.Current()) > 0 {
			t.Errorf("facts: %v; conditions %v", err, x.conditions.Current())
		}
		if got := x.Needed(netip.MustParsePrefix("10.42.99.0/24")); got != "" {
			t.Errorf("needed: %q", got)
		}
		if _, err := x.Avoid(); err == nil {
			t.Error("what to avoid is known")
		}
		if got, want := x.Probe(t.Context(), netip.MustParseAddr("192.0.2.9")), "failed to check whether 192.0.2.9 is in use"; !strings.HasPrefix(got, want) {
			t.Errorf("probe: %q, want %q", got, want)
		}
		if err := x.CheckNetwork(network(t, fmt.Sprintf(config, "udp"))); err == nil {
			t.Error("a network with routes to all is admitted unseen")
		}
		f.change(func() { f.unread = nil; f.inventory.Ifaces[0].MTU = 0 })
		time.Sleep(retry)
		x.expect(t, "without an MTU", "interface eth0 has no MTU")
		f.change(func() { f.inventory.Ifaces[0].MTU = 1500 })
		time.Sleep(retry)
		x.expect(t, "readable again", "eth0 192.0.2.7 1500  [10.42.128.0/17]")
	})
}

// TestAnotherUplinkAfterAWhile: one that is gone is waited for, and another one taken when it does
// not come back, without an event.
func TestAnotherUplinkAfterAWhile(t *testing.T) {
	watch(t, func(t *testing.T, f *fake, x *fixture) {
		x.note(func() { x.pushed = nil })
		f.change(func() {
			f.inventory.Ifaces = []host.Iface{{
				Name: "eth1", Index: 3, MTU: 1500, Up: true, Running: true,
				Addrs: []host.Addr{{Prefix: netip.MustParsePrefix("198.51.100.7/24")}},
			}}
			f.inventory.Routes = []host.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Iface: "eth1", Gateway: netip.MustParseAddr("198.51.100.1")}}
		})
		x.events <- driver.Uplink | driver.Candidates
		x.expect(t, "gone", "waiting for 192.0.2.7 dev eth0 to come back")
		time.Sleep(5 * time.Second)
		x.expect(t, "another one", "eth1 198.51.100.7 1500  [10.42.128.0/17]")
		if moves, _ := x.saw(); moves != 1 || x.conditions.Has(unusableCondition) {
			t.Errorf("%d moves, conditions %v", moves, x.conditions.Current())
		}
	})
}

// TestReadingsTakeAShareOfTheTime: however fast the candidates for the uplink, or routes to needed
// addresses, change; a change of the uplink itself is read at once.
func TestReadingsTakeAShareOfTheTime(t *testing.T) {
	for _, c := range []struct {
		takes, pause time.Duration
		event        driver.Event
		readings     int // in 60 s, at most
	}{
		{0, 10 * time.Millisecond, driver.Candidates, 1200},
		{0, 10 * time.Millisecond, driver.Routes, 1200},
		{100 * time.Millisecond, 10 * time.Millisecond, driver.Candidates, 30},
		{time.Second, 10 * time.Millisecond, driver.Candidates, 16},
		{0, time.Millisecond, driver.Uplink, 3000},
		{0, 10 * time.Millisecond, driver.Neighs, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake()
			f.takes = c.takes
			x := start(t, f, host.Selectors{})
			begun, before := time.Now(), f.count()
			for time.Since(begun) < time.Minute {
				x.events <- c.event
				time.Sleep(c.pause)
			}
			if n := f.count() - before; n > c.readings || n < c.readings*8/10 {
				t.Errorf("%v each %v, readings of %v: %d of them", c.event, c.pause, c.takes, n)
			}
		})
	}
}

// TestSingleChangeIsReadSoon: even if readings take long, and for a route even if the host needs no
// address in the overlay's network: it may be one of the underlay into that network.
func TestSingleChangeIsReadSoon(t *testing.T) {
	for _, e := range []driver.Event{driver.Candidates, driver.Routes} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake()
			f.takes = 150 * time.Millisecond
			x := start(t, f, host.Selectors{})
			x.SetNeeds(func() []host.Need { return nil }, f.inventory)
			x.events <- driver.Uplink
			time.Sleep(time.Second)
			if facts, _ := x.Facts(); len(facts.Needs)+len(facts.NameServers) > 0 {
				t.Fatalf("needs %v", facts.Needs)
			}
			time.Sleep(time.Second)
			before := f.count()
			x.events <- e
			time.Sleep(quiet + f.takes)
			synctest.Wait()
			if n := f.count() - before; n != 1 {
				t.Errorf("%v: %d readings", e, n)
			}
		})
	}
}

// TestNobodyIsCalledAfterRun: the subscribers of the next network are other ones.
func TestNobodyIsCalledAfterRun(t *testing.T) {
	watch(t, func(t *testing.T, f *fake, x *fixture) {
		x.note(func() { x.pushed = nil })
		close(x.events)
		synctest.Wait()
		f.address("192.0.2.8")
		x.SetNetwork(network(t, `{"Network":"10.43.0.0/16","SubnetMin":"10.43.128.0","Backend":{"Type":"host-gw"}}`))
		x.expect(t, "after the end")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		x.Run(ctx, nil, x.onEvent, x.onFacts)
		x.expect(t, "the next network", "eth0 192.0.2.8 1500  [10.43.128.0/17]")
		if moves, _ := x.saw(); moves != 1 {
			t.Errorf("%d moves, want one: connections to etcd outlive the network", moves)
		}
	})
}
