package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/lab"
)

// damages are what other programs and people do to a host.
var damages = []struct {
	name string
	do   func(link netlink.Link) error
}{
	{"ip link del", netlink.LinkDel},
	{"ip link set down", netlink.LinkSetDown},
	{"ip link set mtu 1000", func(l netlink.Link) error { return netlink.LinkSetMTU(l, 1000) }},
	{"ip link set address", func(l netlink.Link) error {
		return netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 1, 2, 3, 4, 5})
	}},
	{"ip addr flush", func(l netlink.Link) error {
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
		for _, a := range addrs {
			err = errors.Join(err, netlink.AddrDel(l, &a))
		}
		return err
	}},
	{"ip route flush", func(l netlink.Link) error {
		routes, err := netlink.RouteList(l, netlink.FAMILY_V4)
		for _, r := range routes {
			err = errors.Join(err, netlink.RouteDel(&r))
		}
		return err
	}},
	{"ip neigh flush", func(l netlink.Link) error { return flushNeighbours(l, netlink.FAMILY_V4) }},
	{"bridge fdb flush", func(l netlink.Link) error { return flushNeighbours(l, syscall.AF_BRIDGE) }},
	{"everything at once", func(l netlink.Link) error {
		return errors.Join(flushNeighbours(l, netlink.FAMILY_V4), flushNeighbours(l, syscall.AF_BRIDGE), netlink.LinkSetDown(l))
	}},
	{"routes led elsewhere", func(l netlink.Link) error {
		routes, err := netlink.RouteList(l, netlink.FAMILY_V4)
		for _, r := range routes {
			lo, e := netlink.LinkByName("lo")
			err = errors.Join(err, e, netlink.RouteReplace(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: r.Dst, Scope: netlink.SCOPE_LINK}))
		}
		return err
	}},
}

// onLink does something to a device of a host.
func (c *cluster) onLink(h *lab.Host, name string, do func(netlink.Link) error) {
	c.t.Helper()
	c.must(h.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return do(l)
	}))
}

func flushNeighbours(l netlink.Link, family int) error {
	all, err := netlink.NeighList(l.Attrs().Index, family)
	for _, n := range all {
		if n.State&netlink.NUD_PERMANENT != 0 {
			err = errors.Join(err, netlink.NeighDel(&n))
		}
	}
	return err
}

func TestRepair(t *testing.T) {
	// Not parallel: it measures times.
	c := startCluster(t, 3, vxlanConfig)
	h, a := c.Hosts[0], c.containers[0]
	before := c.snapshot(h, "10.42.0.0/16", "flannel.1")
	for _, d := range damages {
		lines := logged(h, "repaired")
		// A damage of several writes is one only if the daemon does not come between them.
		c.must(h.Flanneld().Pause())
		c.onLink(h, "flannel.1", d.do)
		c.must(h.Flanneld().Signal(syscall.SIGCONT))
		took := c.within(time.Second, d.name, func() error {
			if s := c.snapshot(h, "10.42.0.0/16", "flannel.1"); !s.Equal(before) {
				return fmt.Errorf("the kernel holds\n%s", s.Text())
			}
			return nil
		})
		for _, b := range c.containers[1:] {
			c.within(time.Second-took, d.name+": traffic", func() error {
				_, err := a.Ping(c.ctx, b.Addr, lab.PingOptions{Timeout: 100 * time.Millisecond})
				return err
			})
		}
		c.within(time.Second, d.name+": log", func() error {
			if n := logged(h, "repaired"); n != lines+1 {
				return fmt.Errorf("%d lines more about it", n-lines)
			}
			return nil
		})
		t.Logf("%-24s repaired after %v", d.name, took.Round(time.Millisecond))
	}
}

// TestForeignObjects: objects that are not ours stay, on our device and elsewhere.
func TestForeignObjects(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 2, vxlanConfig)
	h := c.Hosts[0]
	foreign := func() (text string) {
		c.must(h.Do(func() error {
			l, err := netlink.LinkByName("flannel.1")
			if err != nil {
				return err
			}
			routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
			for _, r := range routes {
				if r.LinkIndex != l.Attrs().Index || !netip.MustParsePrefix("10.42.0.0/16").Contains(netip.AddrFrom4([4]byte(r.Dst.IP.To4()))) {
					text += r.String() + "\n"
				}
			}
			addrs, e := netlink.AddrList(l, netlink.FAMILY_V4)
			for _, a := range addrs {
				text += a.String() + "\n"
			}
			return errors.Join(err, e)
		}))
		return text
	}
	prefix := func(s string) *net.IPNet {
		_, n, err := net.ParseCIDR(s)
		c.must(err)
		return n
	}
	c.must(h.Do(func() error {
		l, err := netlink.LinkByName("flannel.1")
		if err != nil {
			return err
		}
		up, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(
			netlink.AddrAdd(l, &netlink.Addr{IPNet: prefix("192.0.2.1/32")}),
			netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: prefix("192.0.2.128/25"), Scope: netlink.SCOPE_LINK}),
			netlink.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Dst: prefix("10.42.250.0/24"), Scope: netlink.SCOPE_LINK}),             // inside the network, without our stamp
			netlink.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Dst: prefix("10.99.0.0/24"), Scope: netlink.SCOPE_LINK, Protocol: 70}), // our stamp, outside the network
			// Removed, because it is inside the network and on our device.
			netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: prefix("10.42.251.0/24"), Scope: netlink.SCOPE_LINK}),
		)
	}))
	want := foreign()
	stale := dataplane.RouteKey{Dst: netip.MustParsePrefix("10.42.251.0/24"), Link: "flannel.1"}
	gone := func() error {
		if _, ok := c.snapshot(h, "10.42.0.0/16", "flannel.1").Routes[stale]; ok {
			return errors.New("a stale route is there")
		}
		return nil
	}
	c.within(5*time.Second, "pruning", gone)
	c.stop(h.Flanneld())
	c.start(h)
	c.within(5*time.Second, "pruning", gone)
	if got := foreign(); got != want {
		t.Errorf("before:\n%safter:\n%s", want, got)
	}
	c.waitAllPairs()
}

// TestUplinkMTU: the device and the subnet file follow the uplink.
func TestUplinkMTU(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 2, vxlanConfig)
	h := c.Hosts[0]
	c.onLink(h, "eth0", func(l netlink.Link) error { return netlink.LinkSetMTU(l, 1400) })
	c.within(5*time.Second, "MTU", func() error {
		env, err := h.ReadSubnet()
		if mtu := c.snapshot(h, "10.42.0.0/16", "flannel.1").Links["flannel.1"].MTU; err != nil || env.MTU != 1350 || mtu != 1350 {
			return fmt.Errorf("device %d, file %d, %v", mtu, env.MTU, err)
		}
		return nil
	})
	c.saysTimes(h.Flanneld(), 1, "restart docker")
}

// phantom writes a lease of a peer that does not exist.
func (c *cluster) phantom(subnet, publicIP, mac string) {
	c.t.Helper()
	c.put("subnets/"+subnet, phantomValue(publicIP, mac))
}

// holds waits until a host has exactly these objects for a subnet; an empty publicIP means none.
func (c *cluster) holds(h *lab.Host, d time.Duration, subnet, publicIP, mac string) {
	c.t.Helper()
	p := netip.MustParsePrefix(subnet)
	var want string
	if publicIP != "" {
		want = fmt.Sprintf("fdb %[1]s dev flannel.1 dst %[2]s self permanent\nneigh %[3]s lladdr %[1]s dev flannel.1 nud permanent\nroute %[4]s via %[3]s dev flannel.1 onlink\n", mac, publicIP, p.Addr(), p)
	}
	c.within(d, fmt.Sprintf("%s at %s %s", subnet, publicIP, mac), func() error {
		// FDB entries that neither real hosts nor other subnets account for are this peer's.
		all, peer := c.snapshot(h, "10.42.0.0/16", "flannel.1"), dataplane.NewState()
		others := map[dataplane.MAC]bool{}
		for k, m := range all.Neighs {
			if p.Contains(k.IP) {
				peer.Neighs[k] = m
			} else {
				others[m] = true
			}
		}
		for f := range all.FDB {
			if !others[f.MAC] && !slices.ContainsFunc(c.Hosts, func(h *lab.Host) bool { return h.Addr == f.Dst }) {
				peer.FDB[f] = struct{}{}
			}
		}
		for k, r := range all.Routes {
			if p.Overlaps(k.Dst) {
				peer.Routes[k] = r
			}
		}
		if got := peer.Text(); got != want {
			return fmt.Errorf("the kernel holds\n%s", got)
		}
		return nil
	})
}

// TestPeerChanges follows a peer that joins, moves, changes its MAC and leaves, while the daemon
// runs and while it is stopped.
func TestPeerChanges(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 2, upperConfig)
	h := c.Hosts[0]
	const subnet = "10.42.77.0/24"
	c.phantom("10.42.77.0-24", "203.0.113.1", "0a:00:00:00:00:01")
	c.holds(h, 5*time.Second, subnet, "203.0.113.1", "0a:00:00:00:00:01")
	c.phantom("10.42.77.0-24", "203.0.113.1", "0a:00:00:00:00:02")
	c.holds(h, 5*time.Second, subnet, "203.0.113.1", "0a:00:00:00:00:02")
	c.phantom("10.42.77.0-24", "203.0.113.2", "0a:00:00:00:00:02")
	c.holds(h, 5*time.Second, subnet, "203.0.113.2", "0a:00:00:00:00:02")

	// While the daemon is not there.
	c.stop(h.Flanneld())
	c.phantom("10.42.77.0-24", "203.0.113.3", "0a:00:00:00:00:03")
	c.start(h)
	c.holds(h, 0, subnet, "203.0.113.3", "0a:00:00:00:00:03") // at READY already

	c.del("subnets/10.42.77.0-24")
	c.holds(h, 5*time.Second, subnet, "", "")
	// One that leaves by expiry.
	c.must(c.Etcd.Put(c.ctx, c.prefix+"/subnets/10.42.79.0-24", `{"PublicIP":"203.0.113.79","BackendType":"vxlan","BackendData":{"VtepMAC":"0a:00:00:00:00:79"}}`, 3*time.Second))
	c.holds(h, 3*time.Second, "10.42.79.0/24", "203.0.113.79", "0a:00:00:00:00:79")
	c.holds(h, 8*time.Second, "10.42.79.0/24", "", "")
	c.waitAllPairs()
}
