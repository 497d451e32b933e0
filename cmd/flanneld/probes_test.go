package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/api"
	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdkeys"
	"flanneld/pkg/status"
)

// peerStatus returns what the daemon of a host says about a peer.
func (c *cluster) peerStatus(h *lab.Host, subnet netip.Prefix) (status.Peer, error) {
	doc, err := api.Dial(h.SubnetFile).Status(c.ctx)
	if err != nil {
		return status.Peer{}, err
	}
	for _, p := range doc.Peers {
		if p.Subnet == subnet {
			return p, nil
		}
	}
	return status.Peer{}, fmt.Errorf("no peer %v among %d", subnet, len(doc.Peers))
}

// probed waits until a host knows something about a peer, and returns how long it took.
func (c *cluster) probed(h *lab.Host, peer netip.Prefix, d time.Duration, want status.ProbeState, reason string) time.Duration {
	c.t.Helper()
	return c.within(d, fmt.Sprintf("%s says of %v: %s %q", h.Name, peer, want, reason), func() error {
		p, err := c.peerStatus(h, peer)
		switch {
		case err != nil:
			return err
		case p.Probe != want || !strings.Contains(p.Reason, reason) || reason == "" && p.Reason != "":
			return fmt.Errorf("it says %+v", p)
		case want == status.ProbeOK && (p.RTT == nil || *p.RTT <= 0 || *p.RTT > 1000 || p.Loss == nil):
			return fmt.Errorf("no round-trip time: %+v", p)
		}
		return nil
	})
}

// cutWay has the underlay drop what a host sends to another one, but not what it sends back. On the
// hosts, flanneld would open the packet filter.
func (c *cluster) cutWay(from, to *lab.Host) {
	c.t.Helper()
	c.must(c.inFabric(fmt.Sprintf(`nft 'table bridge lossy { chain c { type filter hook forward priority 0; iifname %s oifname %s ether type ip drop; }; }'`,
		from.Name, to.Name)))
}

// mendWays undoes cutWay.
func (c *cluster) mendWays() {
	c.t.Helper()
	c.must(c.inFabric("nft delete table bridge lossy"))
}

// countProbes starts to count the ping requests that a host receives for addresses of the overlay.
func (c *cluster) countProbes(h *lab.Host, hook, match string) (count func() int) {
	c.t.Helper()
	c.sh(h, fmt.Sprintf(`nft 'table ip probes { chain c { type filter hook %s priority -400; icmp type echo-request ip daddr 10.42.0.0/16 %s counter; }; }'`, hook, match))
	return func() (n int) {
		c.t.Helper()
		text := c.sh(h, "nft list table ip probes")
		if _, err := fmt.Sscanf(text[strings.Index(text, "packets"):], "packets %d", &n); err != nil {
			c.t.Fatalf("%v in %s", err, text)
		}
		return n
	}
}

// TestPeersAreProbed: with each backend, round-trip times are known within seconds, a path that loses
// packets one way is named, only one line is logged, and it ends.
func TestPeersAreProbed(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]string{
		"vxlan": vxlanConfig, "udp": `{"Network":"10.42.0.0/16"}`,
		"host-gw":        `{"Network":"10.42.0.0/16","Backend":{"Type":"host-gw"}}`,
		"direct routing": `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`,
		"alloc":          `{"Network":"10.42.0.0/16","Backend":{"Type":"alloc"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, lab.Options{Hosts: 3})
			c.put("config", config)
			c.must(c.StartAll(c.ctx))
			c.addContainers()
			if name == "alloc" {
				for _, h := range c.Hosts {
					for _, o := range c.Hosts {
						if o != h {
							c.sh(h, fmt.Sprintf("ip route add %v via %v", c.subnet(o), o.Addr))
						}
					}
				}
			}
			for _, h := range c.Hosts {
				for _, o := range c.Hosts {
					if o != h {
						c.probed(h, c.subnet(o), 10*time.Second, status.ProbeOK, "")
					}
				}
			}
			one, two, three := c.Hosts[0], c.Hosts[1], c.Hosts[2]
			c.cutWay(one, two)
			took := c.probed(one, c.subnet(two), 12*time.Second, status.ProbeFailing, "does not answer probes since")
			c.says(one.Flanneld(), "peers do not answer probes", "count=1", c.subnet(two).String())
			for _, o := range []*lab.Host{one, two} {
				c.probed(three, c.subnet(o), time.Second, status.ProbeOK, "")
			}
			c.mendWays()
			back := c.probed(one, c.subnet(two), 12*time.Second, status.ProbeOK, "")
			c.says(one.Flanneld(), "peers answer probes again")
			c.said(one.Flanneld(), 1, "peers do not answer probes")
			c.said(three.Flanneld(), 0, "probes")
			t.Logf("failing after %v, ok after %v", took, back)
		})
	}
}

// TestHostThatIsOffIsOneWarning: its peers log one line each. Originals answer probes, and so does a
// host without a running daemon, because its kernel does.
func TestHostThatIsOffIsOneWarning(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 4})
	c.put("config", vxlanConfig)
	c.must(c.StartAll(c.ctx))
	one, off, killed, original := c.Hosts[0], c.Hosts[1], c.Hosts[2], c.Hosts[3]
	for _, h := range []*lab.Host{off, killed, original} { // they also have their entries for this host
		c.probed(one, c.subnet(h), 10*time.Second, status.ProbeOK, "")
	}
	c.must(killed.Flanneld().Kill(c.ctx))
	c.must(original.Flanneld().Kill(c.ctx))
	// What an original makes of the lease that is there.
	subnet, from := c.subnet(original), c.subnet(one)
	mac := c.iface(original, "flannel.1").HardwareAddr
	peer := c.iface(one, "flannel.1").HardwareAddr
	c.sh(original, fmt.Sprintf(`set -e
		ip link del flannel.1
		ip link add flannel.1 address %s type vxlan id 1 dev eth0 local %s dstport 8472 nolearning
		ip link set flannel.1 mtu 1450 up
		ip addr add %s/32 dev flannel.1
		bridge fdb append %s dev flannel.1 dst %s
		ip neigh replace %s lladdr %s dev flannel.1 nud permanent
		ip route add %s via %s dev flannel.1 onlink`,
		mac, original.Addr, subnet.Addr(), peer, one.Addr, from.Addr(), peer, from, from.Addr()))
	c.must(off.Unplug())
	c.probed(one, c.subnet(off), 12*time.Second, status.ProbeFailing, "does not answer probes since")
	c.says(one.Flanneld(), "peers do not answer probes", "count=1", "examples="+c.subnet(off).String())
	for _, h := range []*lab.Host{killed, original} { // for as long as it took to notice the other one
		c.probed(one, c.subnet(h), time.Second, status.ProbeOK, "")
	}
	c.must(off.Plug())
	c.probed(one, c.subnet(off), 12*time.Second, status.ProbeOK, "")
	c.says(one.Flanneld(), "peers answer probes again")
	c.said(one.Flanneld(), 1, "peers do not answer probes")
}

// TestMTUFaultIsNamed: full-size packets of the overlay vanish on the underlay, without an ICMP error.
func TestMTUFaultIsNamed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 3})
	c.put("config", vxlanConfig)
	c.must(c.StartAll(c.ctx))
	one, two, three := c.Hosts[0], c.Hosts[1], c.Hosts[2]
	for _, o := range []*lab.Host{two, three} {
		c.probed(one, c.subnet(o), 10*time.Second, status.ProbeOK, "")
	}
	set := func(mtu int) {
		_, err := c.Fabric.Shell(c.ctx, fmt.Sprintf("ip link set %s mtu %d", two.Name, mtu))
		c.must(err)
	}
	set(1400)
	took := c.probed(one, c.subnet(two), 40*time.Second, status.ProbeFailing, "MTU")
	c.says(one.Flanneld(), "full-size packets to peers are lost", "count=1", "examples="+c.subnet(two).String(), "mtu=1450")
	c.probed(one, c.subnet(three), time.Second, status.ProbeOK, "")
	set(1500)
	back := c.probed(one, c.subnet(two), 30*time.Second, status.ProbeOK, "")
	c.says(one.Flanneld(), "full-size packets to peers are no longer lost")
	c.said(one.Flanneld(), 0, "peers do not answer probes")
	t.Logf("named after %v, ok after %v", took, back)
}

// TestProbesCanBeTurnedOff: with -probe-interval=0 a host sends none, though its peers do.
func TestProbesCanBeTurnedOff(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 3})
	c.put("config", vxlanConfig)
	quiet, other, counting := c.Hosts[0], c.Hosts[1], c.Hosts[2]
	c.start(quiet, "-probe-interval=0")
	c.start(other)
	c.start(counting, "-probe-interval=0")
	count := c.countProbes(counting, "input", fmt.Sprintf("ip saddr != %s", c.subnet(other)))
	c.probed(other, c.subnet(quiet), 10*time.Second, status.ProbeOK, "")
	c.probed(other, c.subnet(counting), 10*time.Second, status.ProbeOK, "")
	c.probed(quiet, c.subnet(other), 10*time.Second, status.ProbeOff, "")
	if n := count(); n > 0 {
		t.Errorf("%d probes", n)
	}
	c.sh(counting, "nft delete table ip probes")
	count = c.countProbes(counting, "input", fmt.Sprintf("ip saddr %s", c.subnet(other)))
	c.within(10*time.Second, "probes of a host that sends them", func() error {
		if n := count(); n < 3 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
}

// TestProbesNeverLeaveBesideTheOverlay: while the overlay's device is gone, and the default route
// would take its packets, nothing leaves by the uplink. The probes go on as soon as the device is back.
func TestProbesNeverLeaveBesideTheOverlay(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 2})
	c.put("config", vxlanConfig)
	c.must(c.StartAll(c.ctx))
	one, two := c.Hosts[0], c.Hosts[1]
	c.probed(one, c.subnet(two), 10*time.Second, status.ProbeOK, "")
	// Without its device, a host forwards the probes of its peer to the default route.
	count := c.countProbes(one, "postrouting", fmt.Sprintf("oifname eth0 ip saddr != %s", c.subnet(two)))
	// Deleted again and again, until the daemon takes it for a fight and pauses.
	c.within(60*time.Second, "the device stays away", func() error {
		for start := time.Now(); time.Since(start) < 2*time.Second; {
			if _, err := c.try(one, "ip link del flannel.1"); err == nil {
				return errors.New("it was there")
			}
		}
		return nil
	})
	if n := count(); n > 0 {
		t.Errorf("%d probes left by the uplink", n)
	}
	_, err := one.Ping(c.ctx, c.subnet(two).Addr(), lab.PingOptions{Timeout: 10 * time.Millisecond})
	if n := count(); n != 1 {
		t.Errorf("%d pings left by the uplink after a plain one (%v), want 1", n, err)
	}
	c.within(90*time.Second, "the device is back", func() error {
		_, err := c.try(one, "ip link show flannel.1")
		return err
	})
	c.probed(one, c.subnet(two), 15*time.Second, status.ProbeOK, "")
	if n := count(); n > 1 {
		t.Errorf("%d pings left by the uplink", n)
	}
}

// TestProbesCostLittle: probing many peers takes less than 1 % of a processor more than not probing.
// The two daemons run at the same time, so that what else the machine does slows both down.
//
// PROBED_PEERS is the number of peers (2000).
func TestProbesCostLittle(t *testing.T) {
	t.Parallel()
	peers := given(t, "PROBED_PEERS", "2000", strconv.Atoi)
	c := newCluster(t, lab.Options{Hosts: 2})
	c.put("config", `{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.200.0.0","Backend":{"Type":"vxlan"}}`)
	var leases []etcdkeys.Entry
	for n := range peers {
		leases = append(leases, etcdkeys.Entry{
			Key:   fmt.Sprintf("%s/subnets/10.%d.%d.0-24", c.prefix, n>>8, n&255),
			Value: phantomValue(fmt.Sprintf("203.%d.%d.9", n>>8, n&255), fmt.Sprintf("0a:00:00:00:%02x:%02x", n>>8, n&255)),
		})
	}
	c.must(c.Etcd.PutAll(c.ctx, leases))
	var daemons []*lab.Process
	for i, interval := range []string{"0", "1s"} {
		daemons = append(daemons, c.start(c.Hosts[i], "-probe-interval="+interval))
	}
	for _, h := range c.Hosts {
		c.within(30*time.Second, "the peers are programmed", func() error {
			_, err := c.peerStatus(h, netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", (peers-1)>>8, (peers-1)&255)))
			return err
		})
	}
	pauseFor(c.ctx, 3*time.Second)
	shares := c.shares(10*time.Second, daemons...)
	t.Logf("%.3f %% of a processor without probes, %.3f %% with", 100*shares[0], 100*shares[1])
	if shares[1]-shares[0] > 0.01 {
		t.Errorf("probes of %d peers take %.2f %% of a processor", peers, 100*(shares[1]-shares[0]))
	}
}
