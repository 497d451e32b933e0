package uplink

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"flanneld/pkg/host"
)

// TestInventoryHasWhatMatters: which interfaces and routes the kernel is asked for.
func TestInventoryHasWhatMatters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := start(t, newFake(), host.Selectors{Ifaces: []string{"eth0"}, CanReach: netip.MustParseAddr("192.0.2.9")})
		if _, err := x.Inventory(false); err != nil {
			t.Fatal(err)
		}
		if _, err := x.Inventory(true); err != nil {
			t.Fatal(err)
		}
		n := len(x.fake.readings)
		brief, whole := x.fake.readings[n-2], x.fake.readings[n-1]
		if want := []string{"eth0", "eth0", "eth0", "flannel.1"}; !slices.Equal(brief.Names, want) || brief.Routes || len(brief.Targets) > 0 {
			t.Errorf("asked for %+v, want %q", brief, want)
		}
		if !whole.Routes || !slices.Contains(whole.Targets, netip.MustParseAddr("10.42.99.1")) || !slices.Contains(whole.Targets, netip.MustParseAddr("192.0.2.7")) {
			t.Errorf("asked for %+v", whole)
		}
	})
}

// TestSubnetsThatTakeWhatIsNeeded: that depends on how a needed address is reached now.
func TestSubnetsThatTakeWhatIsNeeded(t *testing.T) {
	watch(t, func(t *testing.T, f *fake, x *fixture) {
		etcd, beside := netip.MustParsePrefix("10.42.99.0/24"), netip.MustParsePrefix("10.42.98.0/24")
		if got := x.Needed(etcd); got != "10.42.99.1 is etcd" {
			t.Errorf("needed: %q", got)
		}
		if got := x.Needed(beside); got != "" {
			t.Errorf("needed: %q", got)
		}
		f.change(func() {
			f.inventory.Routes = append(f.inventory.Routes, host.Route{Dst: netip.MustParsePrefix("10.42.99.1/32"), Iface: "eth0"})
			f.around = host.Surroundings{Paths: []host.Path{{Route: host.Route{Dst: beside, Iface: "eth0"}}}}
		})
		if got := x.Needed(etcd); got != "" {
			t.Errorf("needed, though another route is longer: %q", got)
		}
		avoid, err := x.Avoid()
		for _, want := range []netip.Prefix{beside, netip.MustParsePrefix("10.42.99.1/32"), netip.MustParsePrefix("192.0.2.7/32")} {
			if err != nil || !slices.Contains(avoid, want) {
				t.Errorf("to avoid: %v, %v; want %s", avoid, err, want)
			}
		}
	})
}

// TestConfigThatTakesWhatTheHostNeeds is not admitted.
func TestConfigThatTakesWhatTheHostNeeds(t *testing.T) {
	watch(t, func(t *testing.T, f *fake, x *fixture) {
		config := func(backend, from, to string) string {
			return fmt.Sprintf(`{"Network":"10.0.0.0/8","SubnetMin":"%s","SubnetMax":"%s","Backend":{"Type":"%s"}}`, from, to, backend)
		}
		const reason = "network config: SubnetMin, SubnetMax: 10.42.0.0, 10.42.255.0: must leave out addresses that the hosts need: the route 10.42.0.0/16 takes 10.42.99.1, etcd"
		for raw, refused := range map[string]bool{
			config("udp", "10.42.0.0", "10.42.255.0"):   true,
			config("udp", "10.43.0.0", "10.43.255.0"):   false,
			config("vxlan", "10.42.0.0", "10.42.255.0"): false, // a route for each peer: leases are refused, one by one
		} {
			err := x.CheckNetwork(network(t, raw))
			if refused != (err != nil) || refused && !strings.HasPrefix(err.Error(), reason) {
				t.Errorf("%s: %v, want refused: %t", raw, err, refused)
			}
		}
		f.change(func() { f.inventory.Ifaces = nil })
		if err := x.CheckNetwork(network(t, config("udp", "10.42.0.0", "10.42.255.0"))); err != nil {
			t.Errorf("without an uplink: %v", err)
		}
	})
}

// TestProbe sends no request about this host's own addresses, and reports that it cannot send one.
func TestProbe(t *testing.T) {
	x := New(Config{Kernel: newFake()})
	for addr, want := range map[string]string{"": "", "0.0.0.0": "", "192.0.2.7": ""} {
		a, _ := netip.ParseAddr(addr)
		if got := x.Probe(t.Context(), a); got != want {
			t.Errorf("%q: %q, want %q", addr, got, want)
		}
	}
}

// TestNoUplinkAtTheStart is an error and no condition.
func TestNoUplinkAtTheStart(t *testing.T) {
	f := newFake()
	f.inventory.Routes = nil
	x := New(Config{Kernel: f, Log: nil})
	inv, err := x.Inventory(false)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Choose(inv); err == nil || !strings.Contains(err.Error(), "choose an interface with -iface") {
		t.Errorf("chose %v, %v", x.Uplink(), err)
	}
	f.unread = errors.New("no")
	if _, err := x.Inventory(true); err == nil {
		t.Error("no error")
	}
}
