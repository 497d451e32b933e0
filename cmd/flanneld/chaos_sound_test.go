package main

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"strings"
	"time"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/lab/etcdkeys"
)

// look returns what is wrong with the networks.
func (m *mayhem) look() error {
	for _, n := range chaosNetworks {
		all := m.in(n)
		if err := m.soundLeases(n, all); err != nil {
			return err
		}
		for _, v := range all {
			text, err := os.ReadFile(v.file)
			switch {
			case v.daemon.Exited():
				m.t.Fatalf("%s: flanneld has ended", v)
			case err != nil:
				return err
			case !strings.Contains(string(text), "FLANNEL_SUBNET="+v.subnet.Addr().Next().String()+"/24\n"):
				m.t.Fatalf("%s had %s, its subnet file tells of %s", v, v.subnet, text)
			}
		}
		if err := m.soundKernels(n, all); err != nil {
			return err
		}
	}
	return nil
}

// in are the victims of a network.
func (m *mayhem) in(n chaosNetwork) (all []*victim) {
	for _, v := range m.victims {
		if v.network == n {
			all = append(all, v)
		}
	}
	return all
}

// soundLeases: each host has one lease, its own, with its address of now.
func (m *mayhem) soundLeases(n chaosNetwork, all []*victim) error {
	entries, err := m.keys.List(m.ctx, n.prefix+"/subnets")
	if err != nil {
		return err
	}
	held := map[string]etcdkeys.Entry{}
	for _, e := range entries {
		held[e.Key] = e
	}
	for _, v := range all {
		e := held[leaseKey(v.network.prefix, v.subnet)]
		if !strings.Contains(e.Value, `"PublicIP":"`+v.addr.String()+`"`) || e.TTL < 23*time.Hour {
			return fmt.Errorf("%s is at %s and its lease of %s says %q, for %v", v, v.addr, v.subnet, e.Value, e.TTL)
		}
	}
	if len(held) != len(all) {
		return fmt.Errorf("%d hosts have the leases %v", len(all), held)
	}
	return nil
}

// soundKernels checks that each kernel has entries for all other hosts of the network, and no
// others.
func (m *mayhem) soundKernels(n chaosNetwork, all []*victim) error {
	states := make([]dataplane.State, len(all))
	for i, v := range all {
		links := []string{n.vxlan}
		if m.backend.user {
			links = m.tunDevices(v)
		}
		s := m.snapshot(v.Host, n.cidr.String(), links...)
		maps.DeleteFunc(s.Routes, func(k dataplane.RouteKey, _ dataplane.Route) bool { return k.Link == n.bridge })
		states[i] = s
	}
	for i, from := range all {
		s, routes := states[i], len(all)-1
		switch {
		case m.backend.local:
			routes = 0
		case m.backend.user: // by the route of the whole network; where it goes on, packets show
			routes = 1
		default:
			for j, to := range all {
				if i == j {
					continue
				}
				if err := m.leads(s, from, to, states[j]); err != nil {
					return fmt.Errorf("%s to %s: %w", from, to, err)
				}
			}
		}
		if len(s.Routes) != routes || len(s.FDB) > routes || len(s.Neighs) > routes {
			return fmt.Errorf("%s holds more or less than its %d peers:\n%s", from, len(all)-1, s.Text())
		}
	}
	return nil
}

// leads follows a packet from one host to another, by a tunnel or by their link.
func (m *mayhem) leads(s dataplane.State, from, to *victim, there dataplane.State) error {
	if m.backend.direct {
		r, ok := s.Routes[dataplane.RouteKey{Dst: to.subnet, Link: from.uplink}]
		if !ok || r.Via != to.addr {
			return fmt.Errorf("no route to %s via %s dev %s:\n%s", to.subnet, to.addr, from.uplink, s.Text())
		}
		return nil
	}
	return leadsTo(s, to.network.vxlan, to.subnet, to.addr, there.Links[to.network.vxlan].MAC)
}

// tunDevices are the TUN devices of a host that have an address of the network.
func (m *mayhem) tunDevices(v *victim) (names []string) {
	for line := range strings.Lines(m.sh(v.Host, "ip -4 -o addr show")) { // 7: flannel0 inet 10.42.9.0/32 ...
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[1], "flannel") {
			continue
		}
		if a, err := netip.ParsePrefix(f[3]); err == nil && v.network.cidr.Contains(a.Addr()) {
			names = append(names, f[1])
		}
	}
	return names
}
