package main

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/lab"
)

// TestDaemonStorm starts a hundred daemons at once, as after a power cut: all become ready, with
// distinct subnets, and know each other.
//
// STORM_HOSTS is the number of hosts (100).
func TestDaemonStorm(t *testing.T) {
	// Not parallel: a hundred starting daemons leave no CPU for others.
	for _, api := range []string{"v2", "v3"} {
		t.Run(api, func(t *testing.T) {
			hosts := given(t, "STORM_HOSTS", "100", strconv.Atoi)
			if testing.Short() {
				hosts = 50
			}
			start := time.Now()
			c := newCluster(t, lab.Options{Hosts: hosts})
			t.Logf("a lab of %d hosts built within %v", hosts, time.Since(start).Round(time.Millisecond))
			// Each host receives the leases of all others: the work is quadratic, however few
			// processors there are. Nobody is probed: the hosts share one table of neighbours, the kernel's,
			// in which so many pairs have no room.
			c.must(c.Etcd.Prioritize())
			c.must(c.Etcd.Store(api).Put(c.ctx, c.prefix+"/config", vxlanConfig, 0))
			start = time.Now()
			c.must(c.StartAll(c.ctx, "-etcd-api="+api, "-iptables-forward-rules=false", "-probe-interval=0"))
			ready := time.Since(start)
			all := c.members()
			full := c.within(time.Minute, "all hosts know all others", func() error { return c.sound(all) })
			t.Logf("%d daemons ready within %v, the slowest %v after its start; all know all others %v later",
				hosts, ready.Round(time.Millisecond), c.slowest().Round(time.Millisecond), full.Round(time.Millisecond))
			c.pingAcross()
		})
	}
}

// A member is a host and what all others are to know of it.
type member struct {
	*lab.Host
	subnet netip.Prefix
	addr   netip.Addr // of its uplink
}

// members are the hosts as they are now; no two have the same subnet.
func (c *cluster) members() (all []*member) {
	c.t.Helper()
	owners := map[netip.Prefix]*lab.Host{}
	for _, h := range c.Hosts {
		subnet := c.subnet(h)
		if other := owners[subnet]; other != nil {
			c.t.Fatalf("%s and %s both have %s", other.Name, h.Name, subnet)
		}
		owners[subnet] = h
		all = append(all, &member{h, subnet, h.Addr})
	}
	return all
}

// sound returns what is wrong in the kernels: each must have entries for all other hosts, and no
// others.
func (c *cluster) sound(all []*member) error {
	states := make([]dataplane.State, len(all))
	for i, m := range all {
		states[i] = c.snapshot(m.Host, "10.42.0.0/16", "flannel.1")
	}
	for i, from := range all {
		s := states[i]
		for j, to := range all {
			if i == j {
				continue
			}
			if err := leadsTo(s, "flannel.1", to.subnet, to.addr, states[j].Links["flannel.1"].MAC); err != nil {
				return fmt.Errorf("%s to %s: %w", from.Name, to.Name, err)
			}
		}
		maps.DeleteFunc(s.Routes, func(k dataplane.RouteKey, _ dataplane.Route) bool { return k.Link == "docker0" })
		if n := len(all) - 1; len(s.FDB) != n || len(s.Neighs) != n || len(s.Routes) != n {
			return fmt.Errorf("%s holds more than its %d peers:\n%s", from.Name, n, s.Text())
		}
	}
	return nil
}

// leadsTo follows a packet to a subnet through a kernel's objects: route, neighbour, FDB entry, and
// the host there, whose device has a MAC.
func leadsTo(s dataplane.State, link string, subnet netip.Prefix, host netip.Addr, own dataplane.MAC) error {
	route, ok := s.Routes[dataplane.RouteKey{Dst: subnet, Link: link}]
	if !ok {
		return fmt.Errorf("no route to %s", subnet)
	}
	mac, ok := s.Neighs[dataplane.NeighKey{Link: link, IP: route.Via}]
	if !ok {
		return fmt.Errorf("%s is via %s, which is no neighbour", subnet, route.Via)
	}
	if _, ok := s.FDB[dataplane.FDB{Link: link, MAC: mac, Dst: host}]; !ok {
		return fmt.Errorf("%s is via %s at %s, which no FDB entry leads to %s", subnet, route.Via, mac, host)
	}
	if mac != own {
		return fmt.Errorf("frames for %s, which has %s", mac, own)
	}
	return nil
}

// slowest is the longest time from a start to READY.
func (c *cluster) slowest() time.Duration {
	var times []time.Duration
	for _, h := range c.Hosts {
		times = append(times, h.Flanneld().ReadyAfter())
	}
	return slices.Max(times)
}

// pingAcross sends packets between containers of the first, a middle and the
// last host.
func (c *cluster) pingAcross() {
	c.t.Helper()
	n := len(c.Hosts)
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
	defer cancel()
	var some []*lab.Container
	for _, h := range []*lab.Host{c.Hosts[0], c.Hosts[n/2], c.Hosts[n-1]} {
		some = append(some, c.container(h))
	}
	for i, from := range some {
		to := some[(i+1)%len(some)]
		if _, err := from.WaitPing(ctx, to.Addr); err != nil {
			c.t.Errorf("%s does not reach %s: %v", from.Name, to.Name, err)
		}
	}
}
