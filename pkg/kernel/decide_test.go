package kernel

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"flanneld/pkg/host"
)

// TestDecisionsAreTheKernels: about packets that this host sends, and about those that it forwards.
func TestDecisionsAreTheKernels(t *testing.T) {
	b := newBed(t)
	b.must(b.other.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}}))
	b.must(b.other.LinkSetUp(b.link("docker0")))
	b.must(b.other.AddrAdd(b.link("docker0"), &netlink.Addr{IPNet: ipnet("10.5.1.1/24")}))
	up, docker := b.up(), b.link("docker0").Attrs().Index
	b.must(b.other.RouteAdd(&netlink.Route{Dst: ipnet("10.5.2.0/24"), Gw: net.ParseIP("192.0.2.9"), LinkIndex: up}))
	b.must(b.other.RouteAdd(&netlink.Route{Dst: ipnet("10.5.3.0/24"), Type: unix.RTN_BLACKHOLE}))
	b.must(b.other.RouteAdd(&netlink.Route{Dst: ipnet("10.5.4.0/24"), Type: unix.RTN_UNREACHABLE}))
	b.must(b.other.RouteAdd(&netlink.Route{Dst: ipnet("10.5.5.0/24"), Type: unix.RTN_PROHIBIT}))
	b.must(b.other.RouteAdd(&netlink.Route{Dst: ipnet("10.5.6.0/24"), LinkIndex: docker, Table: 100, Scope: unix.RT_SCOPE_LINK}))
	rule := netlink.NewRule()
	rule.Dst, rule.Table, rule.Priority = ipnet("10.5.6.0/24"), 100, 50
	b.must(b.other.RuleAdd(rule))
	addr := netip.MustParseAddr
	sysctl := func(path, value string) { b.must(b.k.setSysctl(path, value)) }
	ask := func(q host.Query) host.Decision {
		t.Helper()
		d, err := b.k.Decide(q)
		b.must(err)
		return d
	}
	for dst, want := range map[string]string{
		"10.5.1.2":    "10.5.1.2 dev docker0",
		"10.5.1.1":    "local 10.5.1.1 dev lo",
		"10.5.2.7":    "10.5.2.7 via 192.0.2.9 dev " + uplink,
		"10.5.3.7":    "10.5.3.7: the route is a blackhole, or reverse path filtering drops it",
		"10.5.4.7":    "10.5.4.7: the route is unreachable, or the device does not forward",
		"10.5.5.7":    "10.5.5.7: the route prohibits it",
		"10.5.6.7":    "10.5.6.7 dev docker0 table 100",
		"203.0.113.1": "203.0.113.1: there is no route",
	} {
		if got := ask(host.Query{Dst: addr(dst)}).Text(addr(dst)); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	out := host.Query{Dst: addr("10.5.2.7"), Src: addr("10.5.1.2"), In: "docker0"}
	in := host.Query{Dst: addr("10.5.1.2"), Src: addr("10.5.2.7"), In: uplink}
	for _, step := range []struct {
		sysctl, value string
		out, in       string
	}{
		{"net/ipv4/ip_forward", "1", "10.5.2.7 via 192.0.2.9 dev " + uplink, "10.5.1.2 dev docker0"},
		{"net/ipv4/conf/all/rp_filter", "1", "10.5.2.7 via 192.0.2.9 dev " + uplink, "10.5.1.2 dev docker0"},
		{"net/ipv4/ip_forward", "0", "10.5.2.7: the route is unreachable, or the device does not forward", "10.5.1.2: the route is unreachable, or the device does not forward"},
	} {
		sysctl(step.sysctl, step.value)
		if got := ask(out).Text(out.Dst); got != step.out {
			t.Errorf("%s=%s: %q, want %q", step.sysctl, step.value, got, step.out)
		}
		if got := ask(in).Text(in.Dst); got != step.in {
			t.Errorf("%s=%s: %q, want %q", step.sysctl, step.value, got, step.in)
		}
	}
	sysctl("net/ipv4/ip_forward", "1")
	spoofed := host.Query{Dst: addr("10.5.1.2"), Src: addr("10.5.1.9"), In: uplink}
	if d := ask(spoofed); !strings.Contains(d.Refused, "reverse path filtering drops it") {
		t.Errorf("from another device: %+v", d)
	}
	if _, err := b.k.Decide(host.Query{Dst: addr("10.5.1.2"), Src: addr("10.5.2.7"), In: "nowhere0"}); err == nil {
		t.Error("there is no such device")
	}
}

// TestNeighborsAreRead with the state that ip(8) names.
func TestNeighborsAreRead(t *testing.T) {
	b := newBed(t)
	hw, _ := net.ParseMAC("02:00:00:00:00:09")
	ip := netip.MustParseAddr("192.0.2.9")
	if n, err := b.k.Neighbor(uplink, ip); err != nil || n.Exists || n.Resolved() {
		t.Errorf("%+v, %v", n, err)
	}
	for state, name := range map[int]string{unix.NUD_PERMANENT: "PERMANENT", unix.NUD_STALE: "STALE", unix.NUD_NOARP: "NOARP", unix.NUD_REACHABLE: "REACHABLE"} {
		b.must(b.other.NeighSet(&netlink.Neigh{LinkIndex: b.up(), Family: unix.AF_INET, State: state, IP: ip.AsSlice(), HardwareAddr: hw}))
		if n, err := b.k.Neighbor(uplink, ip); err != nil || n != (host.Neighbor{Exists: true, MAC: [6]byte(hw), State: name}) || !n.Resolved() {
			t.Errorf("%s: %+v, %v", name, n, err)
		}
	}
	if _, err := b.k.Neighbor("nowhere0", ip); err == nil {
		t.Error("there is no such device")
	}
}
