package checks

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lease"
	"flanneld/pkg/reconcile"
)

// fake is a kernel of a host where all is well, unless a test changes it.
type fake struct {
	mu             sync.Mutex
	sysctls        map[string]string
	around         host.Surroundings
	unread         error
	holders        []kernel.Holder
	asked          int // for surroundings
	opened, closed bool
	bridges        []*host.Bridge // that were pushed
}

// change changes the fake.
func (f *fake) change(c func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c()
}

// looks returns the number of checks.
func (f *fake) looks() (n int) {
	f.change(func() { n = f.asked })
	return n
}

func (f *fake) Sysctls([]string) (map[string]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.sysctls), f.unread
}

func (f *fake) Surroundings(func(netip.Prefix) bool, []string) (host.Surroundings, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	return f.around, f.unread
}

func (f *fake) Holders(string, netip.AddrPort) ([]kernel.Holder, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.holders, f.unread
}

func (f *fake) Detour(netip.Addr) (host.Detour, bool, error) { return host.Detour{}, false, nil }
func (f *fake) VXLANs() ([]kernel.VXLAN, error)              { return nil, nil }
func (f *fake) ReadTUN(string) (kernel.TUN, bool, error)     { return kernel.TUN{}, false, nil }

func (f *fake) Close() error {
	f.change(func() { f.closed = true })
	return nil
}

// start has checks run until the test ends.
func start(t *testing.T, f *fake, opens error) (*Checks, *condition.List) {
	t.Helper()
	n, err := backend.ParseNetwork([]byte(`{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`))
	if err != nil {
		t.Fatal(err)
	}
	conditions := condition.NewList(slog.New(slog.DiscardHandler))
	c := New(Config{
		Open: func() (Kernel, error) {
			f.change(func() { f.opened = opens == nil })
			return f, opens
		},
		Network: n, Conditions: conditions, Bridge: func(b *host.Bridge) { f.change(func() { f.bridges = append(f.bridges, b) }) },
		Move: func(subnets lease.Subnets) string { return "move from " + subnets.String() },
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		if f.closed != f.opened {
			t.Errorf("the kernel is opened: %t, closed: %t", f.opened, f.closed)
		}
	})
	return c, conditions
}

// ids returns the IDs of the present conditions, sorted.
func ids(l *condition.List) string {
	var all []string
	for _, c := range l.Current() {
		all = append(all, c.ID)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// TestHostIsCheckedFromReadyOn: the configuration of other programs is checked once the host has
// its subnet, after a burst of changes, and each minute; if it cannot be read, the conditions stay.
func TestHostIsCheckedFromReadyOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{sysctls: map[string]string{"net/ipv4/ip_forward": "0", "net/bridge/bridge-nf-call-iptables": "1"}}
		c, conditions := start(t, f, nil)
		addr := netip.MustParseAddr("192.0.2.7")
		c.SetFacts(host.Facts{Uplink: "eth0", MTU: 1500, Addr: addr, PublicIP: addr}, nil)
		c.SetView(lease.View{Own: lease.Lease{Subnets: lease.SubnetsOf(netip.MustParsePrefix("10.42.7.0/24"))}, Complete: true})
		time.Sleep(time.Second)
		if n := f.looks(); n > 0 || ids(conditions) != "" {
			t.Errorf("asked %d times before it is ready, conditions %s", n, ids(conditions))
		}
		c.Ready()
		time.Sleep(minPause + time.Millisecond)
		if n := f.looks(); n != 1 || !conditions.Has("host/ip-forward") {
			t.Errorf("asked %d times, conditions %s", n, ids(conditions))
		}

		for range 100 { // another program makes many changes
			c.Trigger()
			time.Sleep(time.Millisecond)
		}
		time.Sleep(2 * minPause)
		if n := f.looks(); n > 3 {
			t.Errorf("asked %d times", n)
		}
		f.change(func() { f.unread = errors.New("no buffer space available") })
		c.Trigger()
		time.Sleep(2 * minPause)
		if !conditions.Has(checksCondition) || !conditions.Has("host/ip-forward") {
			t.Errorf("unreadable: conditions %s", ids(conditions))
		}
		f.change(func() { f.unread, f.sysctls["net/ipv4/ip_forward"] = nil, "1" })
		time.Sleep(wrong + time.Second)
		if conditions.Has(checksCondition) || conditions.Has("host/ip-forward") {
			t.Errorf("a moment later: conditions %s", ids(conditions))
		}
		before := f.looks()
		time.Sleep(10 * idle)
		if n := f.looks() - before; n < 9 || n > 11 {
			t.Errorf("asked %d times in ten minutes while nothing is wrong", n)
		}
		c.SetFacts(host.Facts{}, errors.New("the uplink is away"))
		time.Sleep(2 * minPause)
		if !conditions.Has(checksCondition) {
			t.Errorf("without facts: conditions %s", ids(conditions))
		}
	})
}

// TestBridgeIsPushed with each check from ready on: what serves the subnet, that nothing does, or
// that it is unknown.
func TestBridgeIsPushed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		docker := host.Link{Name: "docker0", Kind: "bridge", MTU: 1450, Addrs: []netip.Prefix{netip.MustParsePrefix("10.42.7.1/24")}}
		flannel := host.Link{Name: "flannel.1", Kind: "vxlan", Addrs: []netip.Prefix{netip.MustParsePrefix("10.42.7.0/32")}}
		f := &fake{around: host.Surroundings{Links: []host.Link{flannel, docker}}}
		c, _ := start(t, f, nil)
		addr, subnet := netip.MustParseAddr("192.0.2.7"), netip.MustParsePrefix("10.42.7.0/24")
		own := lease.Lease{Subnets: lease.SubnetsOf(subnet), Attrs: lease.Attrs{PublicIP: addr, BackendType: "vxlan", BackendData: `{"VNI":1,"VtepMAC":"02:00:00:00:00:07"}`}}
		c.SetFacts(host.Facts{Uplink: "eth0", MTU: 1500, Addr: addr, PublicIP: addr}, nil)
		c.SetView(lease.View{Own: own, Complete: true})
		last := func() (b *host.Bridge, n int) {
			time.Sleep(2 * minPause)
			f.change(func() {
				if n = len(f.bridges); n > 0 {
					b = f.bridges[n-1]
				}
			})
			return b, n
		}
		if b, n := last(); n != 0 {
			t.Errorf("before it is ready: %d times, %+v", n, b)
		}
		c.Ready()
		if b, _ := last(); b == nil || *b != (host.Bridge{Subnet: subnet, Device: "docker0", Addr: docker.Addrs[0].Addr(), MTU: 1450}) {
			t.Errorf("docker0: %+v", b)
		}
		f.change(func() { f.around.Links = f.around.Links[:1] })
		c.Trigger() // by the kernel's event
		if b, n := last(); b == nil || *b != (host.Bridge{Subnet: subnet}) || n != f.looks() {
			t.Errorf("without its address: %d times with %d readings, %+v", n, f.looks(), b)
		}
		f.change(func() { f.unread = errors.New("no buffer space available") })
		c.Trigger()
		if b, _ := last(); b != nil {
			t.Errorf("unreadable: %+v", b)
		}
	})
}

// TestSubnetInTheWayOfAnotherNetwork: the remedy takes more than this host.
func TestSubnetInTheWayOfAnotherNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{around: host.Surroundings{
			Paths: []host.Path{{Route: host.Route{Dst: netip.MustParsePrefix("10.42.0.0/20"), Iface: "eth1"}}},
		}}
		c, conditions := start(t, f, nil)
		addr := netip.MustParseAddr("192.0.2.7")
		c.SetFacts(host.Facts{Uplink: "eth0", MTU: 1500, Addr: addr, PublicIP: addr}, nil)
		c.SetView(lease.View{Own: lease.Lease{Subnets: lease.SubnetsOf(netip.MustParsePrefix("10.42.7.0/24"))}, Complete: true})
		c.Ready()
		time.Sleep(2 * minPause)
		i := slices.IndexFunc(conditions.Current(), func(c condition.Condition) bool { return c.ID == "host/"+host.SubnetInside })
		if i < 0 || conditions.Current()[i].Command != "move from 10.42.7.0/24" {
			t.Errorf("conditions %v", conditions.Current())
		}
	})
}

// TestWhatIsMissingIsACondition: from the loop's report until its next one. The reason of one
// attempt is read once.
func TestWhatIsMissingIsACondition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{holders: []kernel.Holder{{Addr: netip.MustParseAddrPort("0.0.0.0:8472"), PID: 7, Program: "nc"}}}
		c, conditions := start(t, f, nil)
		op := dataplane.KindLink.Put("flannel.1", dataplane.Link{Kind: dataplane.KindVXLAN, VNI: 1, Port: 8472})
		lacks := []reconcile.Missing{{Op: op, Err: unix.EADDRINUSE}}
		c.SetMissing(lacks)
		time.Sleep(2 * minPause)
		f.change(func() { f.holders = nil })
		c.SetMissing(lacks)
		time.Sleep(2 * minPause)
		if all := conditions.Current(); len(all) != 1 || all[0].ID != "base/link flannel.1" || all[0].Command != "kill 7" {
			t.Errorf("conditions %v", all)
		}
		c.SetMissing(nil)
		time.Sleep(2 * minPause)
		if ids(conditions) != "" {
			t.Errorf("conditions %s", ids(conditions))
		}
	})
}

// TestKernelThatCannotBeAsked is a condition.
func TestKernelThatCannotBeAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, conditions := start(t, &fake{}, errors.New("too many open files"))
		c.Trigger()
		time.Sleep(2 * minPause)
		if ids(conditions) != checksCondition {
			t.Errorf("conditions %s", ids(conditions))
		}
	})
}
