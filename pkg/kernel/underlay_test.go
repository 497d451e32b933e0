package kernel

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
)

// randomTable is a table of a few routes, nested in each other, as the kernel lists it.
func randomTable(r *rand.Rand) []routeEntry {
	var all []routeEntry
	taken := map[dataplane.RouteKey]bool{}
	for range 1 + r.IntN(40) {
		bits := []int{0, 1, 2, 3, 4, 5, 6, 8}[r.IntN(8)]
		addr := netip.AddrFrom4([4]byte{byte(r.IntN(8) << 5)})
		e := routeEntry{index: r.IntN(3)}
		e.key = dataplane.RouteKey{Dst: netip.PrefixFrom(addr, bits).Masked(), Metric: uint32(r.IntN(3))}
		if e.index == 0 || r.IntN(2) == 0 { // by several links, or by a gateway
			e.route.Via = netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(3))})
		}
		if !taken[e.key] {
			taken[e.key] = true
			all = append(all, e)
		}
	}
	slices.SortStableFunc(all, func(a, b routeEntry) int {
		if c := a.key.Dst.Addr().Compare(b.key.Dst.Addr()); c != 0 {
			return c
		}
		return b.key.Dst.Bits() - a.key.Dst.Bits()
	})
	return all
}

func hostRoutes(all []routeEntry) (routes []host.Route) {
	for _, e := range all {
		r := host.Route{Dst: e.key.Dst, Gateway: e.route.Via, Metric: e.key.Metric}
		if e.index != 0 {
			r.Iface = strconv.Itoa(e.index)
		}
		routes = append(routes, r)
	}
	return routes
}

// TestWhatIsLeftOutChangesNoAnswer compares the results for all routes and for those that are kept.
func TestWhatIsLeftOutChangesNoAnswer(t *testing.T) {
	r := chance(t)
	kept, total := 0, 0
	for range 1000 {
		table := randomTable(r)
		lead := netip.AddrFrom4([4]byte{byte(r.IntN(256))})
		u := newUnderlay(netip.Prefix{}, []netip.Addr{lead})
		for _, e := range table {
			u.add(e)
		}
		all, some := hostRoutes(table), hostRoutes(u.routes())
		kept, total = kept+len(some), total+len(all)
		for i := range 256 {
			a := netip.AddrFrom4([4]byte{byte(i)})
			want, ok := host.OnLink(all, a)
			if got, is := host.OnLink(some, a); got != want || is != ok {
				t.Fatalf("%s is on link %q %v, want %q %v; of\n%v\nwere kept\n%v", a, got, is, want, ok, all, some)
			}
		}
		want, ok := host.Lookup(all, lead)
		if got, is := host.Lookup(some, lead); got != want || is != ok {
			t.Fatalf("the route to %s is %v, want %v", lead, got, want)
		}
		gateways := func(routes []host.Route) map[string]bool {
			m := map[string]bool{}
			for _, r := range routes {
				m[r.Iface+" "+r.Gateway.String()] = true
			}
			return m
		}
		if got, want := gateways(some), gateways(all); len(got) != len(want) {
			t.Fatalf("gateways are %v, want %v", got, want)
		}
		for _, r := range all {
			if r.Dst.Bits() == 0 && !slices.Contains(some, r) {
				t.Fatalf("the default route %v is left out", r)
			}
		}
		if !slices.IsSortedFunc(some, func(a, b host.Route) int { return slices.Index(all, a) - slices.Index(all, b) }) {
			t.Fatalf("the order is %v, want that of %v", some, all)
		}
	}
	t.Logf("%d of %d are kept", kept, total)
}

// TestFullTableIsAFewRoutes: what a routing daemon learns comes to next to nothing.
func TestFullTableIsAFewRoutes(t *testing.T) {
	network := netip.MustParsePrefix("10.0.0.0/8")
	u := newUnderlay(network, nil)
	add := func(dst string, index int, via string) {
		e := routeEntry{key: dataplane.RouteKey{Dst: netip.MustParsePrefix(dst)}, index: index}
		if via != "" {
			e.route.Via = netip.MustParseAddr(via)
		}
		u.add(e)
	}
	add("0.0.0.0/0", 2, "192.0.2.1")
	for i := range 100_000 {
		via := []string{"192.0.2.1", "192.0.2.2"}[i%2]
		add(netip.PrefixFrom(netip.AddrFrom4([4]byte{1 + byte(i>>16), byte(i >> 8), byte(i), 0}), 24).String(), 2, via)
	}
	for i := range 1000 { // the overlay's own, each by a gateway of its own
		gw := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0})
		add(netip.PrefixFrom(gw, 24).String(), 3, gw.String())
	}
	add("192.0.2.0/24", 2, "")
	if n := len(u.routes()); n != 3 {
		t.Errorf("%d routes are kept, want the default route, one by the other gateway, and the link", n)
	}
}
