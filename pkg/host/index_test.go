package host

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

// TestIndexFindsWhatLookupFinds compares the index with a linear search.
func TestIndexFindsWhatLookupFinds(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for range 200 {
		var routes []Route
		for range r.IntN(30) {
			bits := r.IntN(9)
			route := Route{
				Dst:   netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(r.IntN(256))}), bits).Masked(),
				Iface: []string{"eth0", "eth1", ""}[r.IntN(3)], Metric: uint32(r.IntN(3)),
			}
			if r.IntN(2) == 0 {
				route.Gateway = netip.AddrFrom4([4]byte{byte(r.IntN(256)), 0, 0, 1})
			}
			routes = append(routes, route)
		}
		f := Facts{Uplink: "eth0", Underlay: routes}
		x := f
		x.index = newIndex(routes, "eth0")
		for i := range 256 {
			a := netip.AddrFrom4([4]byte{byte(i), byte(r.IntN(256))})
			want, ok := f.Lookup(a)
			if got, found := x.Lookup(a); got != want || found != ok {
				t.Fatalf("%s: %+v %v, want %+v %v among %+v", a, got, found, want, ok, routes)
			}
			iface, on := OnLink(routes, a)
			if got, is := x.OnLink(a); got != iface || is != on {
				t.Fatalf("%s is on link %q %v, want %q %v among %+v", a, got, is, iface, on, routes)
			}
		}
		for range 100 {
			subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(r.IntN(256))}), 1+r.IntN(10)).Masked()
			want := false
			for _, r := range routes {
				switch {
				case r.Iface != "eth0":
				case r.Gateway.IsValid():
					want = want || subnet.Contains(r.Gateway)
				default:
					want = want || subnet.Bits() <= r.Dst.Bits() && subnet.Contains(r.Dst.Addr())
				}
			}
			if got, is := x.ConflictsWith(subnet); is != want {
				t.Fatalf("%s takes %+v %v, want %v among %+v", subnet, got, is, want, routes)
			}
		}
	}
}
