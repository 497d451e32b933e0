package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdkeys"
)

const (
	protoBGP  = 186 // RTPROT_BGP of linux/rtnetlink.h
	bgpRoutes = 400_000
	bgpPeers  = 5000
)

// bgp is the i-th route that a routing daemon learnt: outside the overlay, by one of two
// neighbours.
func bgp(h *lab.Host, i int) dataplane.Op {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 20<<24+uint32(i)<<8)
	via := h.Addr.As4()
	via[3] = byte(250 + i%2)
	return dataplane.KindRoute.Put(dataplane.RouteKey{Dst: netip.PrefixFrom(netip.AddrFrom4(b), 24), Link: h.Uplink}, dataplane.Route{Via: netip.AddrFrom4(via), Proto: protoBGP})
}

// openKernel opens the kernel of a host until the test ends.
func (c *cluster) openKernel(h *lab.Host) (k *kernel.Kernel) {
	c.t.Helper()
	c.must(h.Do(func() (err error) {
		k, err = kernel.New()
		return err
	}))
	c.t.Cleanup(func() { k.Close() })
	return k
}

// announce has a routing daemon learn, or forget, its first routes.
func (c *cluster) announce(k *kernel.Kernel, h *lab.Host, routes int, verb dataplane.Verb) {
	c.t.Helper()
	ops := make([]dataplane.Op, 0, 1024)
	for i := range routes {
		op := bgp(h, i)
		op.Verb = verb
		if ops = append(ops, op); len(ops) == cap(ops) || i == routes-1 {
			for i, err := range k.Apply(ops) {
				if err != nil {
					c.t.Fatalf("%s: %v", ops[i], err)
				}
			}
			ops = ops[:0]
		}
	}
}

// manyLeases writes the leases of peers that do not exist.
func (c *cluster) manyLeases(config string, n int) {
	c.t.Helper()
	entries := []etcdkeys.Entry{{Key: c.prefix + "/config", Value: config}}
	for i := range n {
		entries = append(entries, etcdkeys.Entry{
			Key:   fmt.Sprintf("%s/subnets/10.%d.%d.%d-28", c.prefix, 64+i>>12, i>>4&255, i&15<<4),
			Value: phantomValue(fmt.Sprintf("100.%d.%d.%d", 96+i>>16, i>>8&255, i&255), fmt.Sprintf("0a:00:00:%02x:%02x:%02x", i>>16, i>>8&255, i&255)),
		})
	}
	s, err := c.Etcd.V3().Keep(c.ctx)
	c.must(err)
	c.must(s.PutTogether(c.ctx, entries))
}

// TestManyRoutesOfOthers: with a full internet routing table of a routing daemon, thousands of
// peers take as much memory as without it, and hardly more time than it takes to read the table.
// Changes of the table have no effect.
func TestManyRoutesOfOthers(t *testing.T) {
	// Not parallel: so many routes are added and deleted under the kernel's lock.
	c := newCluster(t, lab.Options{Hosts: 1})
	h := c.Hosts[0]
	network := netip.MustParsePrefix("10.0.0.0/9")
	c.manyLeases(`{"Network":"10.0.0.0/9","SubnetLen":28,"SubnetMin":"10.1.0.0","SubnetMax":"10.1.255.0","Backend":{"Type":"vxlan"}}`, bgpPeers)
	k := c.openKernel(h)
	scope := dataplane.Scope{Networks: []netip.Prefix{network}, Links: []string{"flannel.1"}}
	type run struct {
		took time.Duration
		lab.Usage
	}
	// Each from an empty kernel; the faster one counts.
	start := func() (best run) {
		t.Helper()
		for range 2 {
			c.start(h, "-v=1", "-iptables-forward-rules=false")
			r := run{took: h.Flanneld().ReadyAfter()} // with all peers that there were
			r.Usage = c.usage(h.Flanneld())
			s, err := k.Snapshot(scope)
			c.must(err)
			if len(s.Routes) != bgpPeers+1 && len(s.Routes) != bgpPeers || len(s.FDB) != bgpPeers || len(s.Neighs) != bgpPeers {
				t.Errorf("there are %d routes, %d FDB entries and %d neighbours", len(s.Routes), len(s.FDB), len(s.Neighs))
			}
			if many := s.Others > bgpPeers; many != (len(s.NextHops) == 0) {
				t.Errorf("beside %d routes there are %d nexthops", s.Others, len(s.NextHops))
			}
			if best.took == 0 || r.took < best.took {
				best = r
			}
			c.stop(h.Flanneld())
			begun := time.Now()
			c.sh(h, "ip link del flannel.1")
			t.Logf("the link goes within %v", time.Since(begun).Round(time.Millisecond))
		}
		return best
	}
	without := start()
	begun := time.Now()
	c.announce(k, h, bgpRoutes, dataplane.Put)
	t.Logf("%d routes written within %v", bgpRoutes, time.Since(begun).Round(time.Millisecond))
	begun = time.Now()
	_, err := k.Snapshot(scope)
	c.must(err)
	dump := time.Since(begun)
	with := start()
	for _, r := range []struct {
		routes int
		run
	}{{0, without}, {bgpRoutes, with}} {
		t.Logf("%d peers beside %d routes of others: READY after %v, %v of a processor, %d MB",
			bgpPeers, r.routes, r.took.Round(time.Millisecond), r.CPU.Round(time.Millisecond), r.HWM>>20)
	}
	t.Logf("to read these routes once takes %v; without that, %.2f times as long", dump.Round(time.Millisecond), float64(with.took-dump)/float64(without.took))
	if with.HWM > without.HWM+10<<20 {
		t.Errorf("%d MB of memory, %d MB without routes of others", with.HWM>>20, without.HWM>>20)
	}

	// A neighbour of the routing daemon goes down and comes back.
	c.start(h, "-v=1", "-iptables-forward-rules=false")
	before := c.usage(h.Flanneld())
	const flap = 100_000
	c.announce(k, h, flap, dataplane.Del)
	c.announce(k, h, flap, dataplane.Put)
	// A later event shows that none was lost.
	c.onLink(h, "flannel.1", func(l netlink.Link) error { return flushNeighbours(l, netlink.FAMILY_V4) })
	c.within(20*time.Second, "the neighbours", func() error {
		if s, err := k.Snapshot(scope); err != nil || len(s.Neighs) != bgpPeers {
			return fmt.Errorf("%d, %v", len(s.Neighs), err)
		}
		return nil
	})
	after := c.usage(h.Flanneld())
	t.Logf("%d changes of them, and a repair, cost %v of a processor", 2*flap, (after.CPU - before.CPU).Round(time.Millisecond))
	c.said(h.Flanneld(), 0, "kernel events", "overflow")
}
