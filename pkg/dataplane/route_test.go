package dataplane

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// TestDelRoutesTo: to route packets for an address outside the overlay, our routes to it are
// deleted in order of preference, and none that is not provably ours.
func TestDelRoutesTo(t *testing.T) {
	scope := Scope{Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Links: []string{"flannel.1", "flannel0"}}
	for _, c := range []struct {
		name   string
		routes string // each with destination, device, protocol and metric
		want   string
	}{
		{"none", "10.42.9.0/24 flannel.1 3 0", ""},
		{"to a peer", "10.42.9.0/24 flannel.1 3 0, 10.200.1.0/24 flannel.1 3 0", "10.200.1.0/24"},
		{"to the whole network", "10.0.0.0/8 flannel0 3 0", "10.0.0.0/8"},
		{"one beneath the other", "10.0.0.0/8 flannel0 3 0, 10.200.1.0/24 flannel.1 3 0, 10.200.0.0/16 flannel.1 3 0", "10.200.1.0/24 10.200.0.0/16 10.0.0.0/8"},
		{"another's is longer", "10.200.1.10/32 eth0 4 0, 10.200.1.0/24 flannel.1 3 0", ""},
		{"another's beneath", "10.200.1.0/24 flannel.1 3 0, 10.200.0.0/16 eth0 4 0, 10.0.0.0/8 flannel0 3 0", "10.200.1.0/24"},
		{"another's of the same length comes first", "10.200.1.0/24 docker0 2 0, 10.200.1.0/24 flannel.1 3 7", ""},
		{"with our stamp on another's link", "10.200.1.0/24 eth0 70 0", "10.200.1.0/24"},
		{"without it", "10.200.1.0/24 eth0 3 0", ""},
		{"the blackhole of our subnet", "10.200.1.0/24 blackhole 70 4294967295", "10.200.1.0/24"},
		{"and docker's bridge before it", "10.200.1.0/24 docker0 2 0, 10.200.1.0/24 blackhole 70 4294967295", ""},
		{"by several links", "10.200.1.0/24 several 3 0, 10.0.0.0/8 flannel0 3 0", ""},
		{"the kernel's own", "10.200.1.0/24 flannel.1 2 0", ""},
		{"outside the network", "0.0.0.0/0 flannel.1 3 0", ""},
		{"of a device like ours", "10.200.1.0/24 flannel.2 3 0", ""},
	} {
		have := NewState()
		for text := range strings.SplitSeq(c.routes, ", ") {
			var dst, link string
			var r Route
			k := RouteKey{}
			if _, err := fmt.Sscan(text, &dst, &link, &r.Proto, &k.Metric); err != nil {
				t.Fatal(err)
			}
			k.Dst, r.Blackhole = netip.MustParsePrefix(dst), link == "blackhole"
			if link != "blackhole" && link != "several" {
				k.Link = link
			}
			have.Routes[k] = r
		}
		var got []string
		for _, op := range DelRoutesTo(have, scope, netip.MustParseAddr("10.200.1.10")) {
			k, r := KindRoute.Of(op)
			if op.Verb != Del || have.Routes[k] != r {
				t.Errorf("%s: %s", c.name, op)
			}
			got = append(got, k.Dst.String())
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %v, want %s", c.name, got, c.want)
		}
	}
}
