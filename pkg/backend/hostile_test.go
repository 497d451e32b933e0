package backend

import (
	"strings"
	"testing"

	"flanneld/pkg/lease"
)

// FuzzConfig parses network configs with arbitrary backend options: they are accepted or result in
// a short error.
func FuzzConfig(f *testing.F) {
	for _, c := range []string{
		`{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan","VNI":172,"Port":8889,"GBP":true,"Learning":true,"MTU":1400,"DirectRouting":true}}`,
		`{"Network":"10.42.0.0/16","Backend":{"Type":"udp","Port":9000,"AllowUnknownSources":true,"Offload":false}}`,
		`{"Network":"10.42.0.0/16","Backend":{"Type":"host-gw"}}`, `{"Network":"10.42.0.0/16","Backend":{"Type":"alloc","x":null}}`,
	} {
		f.Add(c)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := ParseNetwork([]byte(text))
		if err != nil {
			if s := err.Error(); s == "" || len(s) > 1000 {
				t.Errorf("%q: the error has %d bytes", text, len(s))
			}
			return
		}
		if _, err := n.Attrs(us(), lease.Attrs{}, nil); err != nil {
			return // the uplink's MTU is too small for it
		}
		if mtu := n.MTU(us()); mtu < 68 || mtu > us().MTU {
			t.Errorf("%q: containers have MTU %d", text, mtu)
		}
		p := NewPlan(n, n.V4.Network)
		p.Update(us(), lease.NewView(lease.Lease{}, nil, true))
	})
}

// FuzzPeers plans each backend with two peers of arbitrary values: every wanted object is within
// the network and belongs to a peer, and a peer that is left out is reported.
func FuzzPeers(f *testing.F) {
	for i, e := range hostile {
		f.Add(e.key, e.value, vxlanPeers[i%3].key, vxlanPeers[i%3].value)
	}
	for _, e := range vxlanPeers {
		f.Add(e.key, e.value, "10.42.9.0-24", `{"PublicIP":"198.51.100.9"}`)
	}
	configs := []string{
		`{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`, `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`,
		`{"Network":"10.42.0.0/16"}`, `{"Network":"10.42.0.0/16","Backend":{"Type":"host-gw"}}`, `{"Network":"10.42.0.0/16","Backend":{"Type":"alloc"}}`,
	}
	own := peer(f, 1, "10.42.7.0-24", vxlanAt("198.51.100.7", "02:00:00:00:00:07"))
	f.Fuzz(func(t *testing.T, key1, value1, key2, value2 string) {
		var all []*lease.Lease
		for i, e := range []entry{{key1, value1}, {key2, value2}} {
			subnets, err := lease.ParseKey(e.key)
			if err != nil {
				return
			}
			a, err := lease.DecodeAttrs([]byte(e.value))
			if err != nil {
				return
			}
			all = append(all, &lease.Lease{Subnets: subnets, Attrs: a, Created: uint64(i + 2)})
		}
		for _, config := range configs {
			b, c := mustNew(t, config)
			own := own
			own.Attrs, _ = b.Attrs(us(), own.Attrs, nil)
			p := NewPlan(b, c.V4.Network)
			p.Update(us(), lease.NewView(own, all, true))
			for k := range p.Want().Routes {
				whole := k.Dst == c.V4.Network && strings.HasPrefix(k.Link, "flannel0")
				if !whole && (!c.V4.Network.Contains(k.Dst.Addr()) || k.Dst.Bits() <= c.V4.Network.Bits() || k.Dst.Overlaps(own.Subnets.V4())) {
					t.Errorf("%s: a route to %s", config, k.Dst)
				}
			}
			if n := len(p.Want().FDB); n > 2 {
				t.Errorf("%s: %d FDB entries of two peers", config, n)
			}
			for _, s := range p.Skipped() {
				if text := s.Fault.Error(); text == "" || len(text) > 1000 {
					t.Errorf("%s: the fault of %s is said in %d bytes", config, s.Subnets, len(text))
				}
			}
		}
	})
}
