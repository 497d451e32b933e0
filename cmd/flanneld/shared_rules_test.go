package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// secondPrefix is where a second network of the same hosts is.
const secondPrefix = "/second/network"

// twoNetworks is a cluster whose hosts are in two networks, with two daemons that have different
// prefixes, subnet files and VNIs, as described in the README.
type twoNetworks struct {
	*cluster
	keeper   string             // of the rules: "iptables", "nftables", "one of each"
	second   []*lab.Process     // by host
	networks [][]*lab.Container // by network and host
	outside  *lab.Host          // in neither
}

func (c *twoNetworks) startSecond(i int) {
	c.t.Helper()
	c.second[i] = network{c.cluster, secondPrefix}.start(c.Hosts[i], nil, "-ip-masq=true")
}

// newTwoNetworks creates the hosts, with a forward policy of DROP.
func newTwoNetworks(t *testing.T, keeper string) *twoNetworks {
	t.Helper()
	need(t, "iptables", "nft")
	path := ""
	if keeper == "iptables-legacy" {
		path, keeper = pathWith(t, "legacy"), "iptables"
	}
	c := &twoNetworks{
		cluster: newCluster(t, lab.Options{Hosts: 3}), keeper: keeper,
		second: make([]*lab.Process, 2), networks: make([][]*lab.Container, 2),
	}
	c.path = path
	c.outside, c.Hosts = c.Hosts[2], c.Hosts[:2]
	for _, h := range c.Hosts {
		c.must(os.MkdirAll(filepath.Join(c.Dir, h.Name), 0o755)) // for the lock file
		c.sh(h, "iptables -P FORWARD DROP")
	}
	return c
}

// configure writes the networks' configs, or the one's in the place of the other's.
func (c *twoNetworks) configure(swapped bool) {
	c.t.Helper()
	const config = `{"Network":"%s","Backend":{"Type":"vxlan","VNI":%d},"EnableNFTables":%t}`
	networks := []string{"10.42.0.0/16", "10.43.0.0/16"}
	if swapped {
		slices.Reverse(networks)
	}
	for prefix, value := range map[string]string{
		defaultPrefix: fmt.Sprintf(config, networks[0], 1, c.keeper != "iptables"),
		secondPrefix:  fmt.Sprintf(config, networks[1], 2, c.keeper == "nftables"),
	} {
		c.must(c.Etcd.Put(c.ctx, prefix+"/config", value, 0))
	}
}

// startBoth starts the daemons of a host.
func (c *twoNetworks) startBoth(i int) {
	c.t.Helper()
	c.launch(c.Hosts[i], "-ip-masq=true")
	c.startSecond(i)
}

// startTwoNetworks starts all daemons at the same instant.
func startTwoNetworks(t *testing.T, keeper string) *twoNetworks {
	t.Helper()
	c := newTwoNetworks(t, keeper)
	c.configure(false)
	for i := range c.Hosts {
		c.startBoth(i)
	}
	c.ready()
	for _, h := range c.Hosts {
		c.networks[0] = append(c.networks[0], c.container(h))
		c.networks[1] = append(c.networks[1], c.containerTo(h, "docker1", network{c.cluster, secondPrefix}.file(h)))
	}
	return c
}

func (c *twoNetworks) daemons() (all []*lab.Process) {
	for i, h := range c.Hosts {
		if c.second[i] != nil {
			all = append(all, h.Flanneld(), c.second[i])
		}
	}
	return all
}

func (c *twoNetworks) ready() {
	c.t.Helper()
	for _, p := range c.daemons() {
		c.must(p.WaitReady(c.ctx))
	}
}

// pings sends 200 in each network, while something happens, and wants every one back.
func (c *twoNetworks) pings(what string, meanwhile func()) {
	c.t.Helper()
	var pingers []*lab.Pinger
	for _, network := range c.networks {
		ctx, cancel := context.WithTimeout(c.ctx, slow(10*time.Second))
		_, err := network[0].WaitPing(ctx, network[1].Addr)
		cancel()
		if err != nil {
			c.t.Fatalf("%s: %v\n%s", what, err, c.rules(c.Hosts[0]))
		}
	}
	for _, network := range c.networks {
		p, err := network[0].StartPinger(network[1].Addr, 5*time.Millisecond)
		c.must(err)
		pingers = append(pingers, p)
	}
	if meanwhile != nil {
		meanwhile()
	}
	for i, p := range pingers {
		c.within(20*time.Second, "200 pings", func() error {
			if n := p.Stats().Sent; n < 200 {
				return fmt.Errorf("%d", n)
			}
			return nil
		})
		if s := p.Stop(); s.Lost > 0 {
			c.t.Errorf("%s: network %d lost %d of %d pings, for %v", what, i, s.Lost, s.Sent, s.Outage)
		}
	}
}

// rules returns all packet filter rules of a host.
func (c *twoNetworks) rules(h *lab.Host) string {
	c.t.Helper()
	return c.sh(h, "iptables-save | sed 's/\\[.*//' | grep -v '^#'; nft -s list table ip flannel-ipv4 2>/dev/null || true")
}

// quiet checks that there was no repair, because there was no damage.
func (c *twoNetworks) quiet(what string) {
	c.t.Helper()
	for _, p := range c.daemons() {
		c.said(p, 0, "repaired packet filter rules")
	}
}

// TestTwoNetworksOnOneHost: two daemons with different networks coexist with any keeper, even after
// a start at the same time, and neither changes the other's rules.
func TestTwoNetworksOnOneHost(t *testing.T) {
	t.Parallel()
	for _, keeper := range []string{"iptables", "iptables-legacy", "nftables", "one of each"} {
		t.Run(keeper, func(t *testing.T) {
			t.Parallel()
			c := startTwoNetworks(t, keeper)
			h := c.Hosts[0]
			c.pings("both live", nil)
			both := c.rules(h)
			for _, network := range []string{"10.42.0.0/16", "10.43.0.0/16"} {
				if n := strings.Count(both, network); n < 7 {
					t.Errorf("%d times %s in\n%s", n, network, both)
				}
			}
			for i, network := range c.networks {
				if got := c.seen(&network[0].Endpoint, &c.outside.Endpoint); got != h.Addr {
					t.Errorf("network %d: seen from the outside as %s", i, got)
				}
			}
			if keeper != "one of each" {
				c.idle()
			}
			c.quiet("both live")
			c.pings("the second is killed", func() { c.must(c.second[0].Kill(c.ctx)) })
			c.pings("the second starts again", func() { c.startSecond(0); c.ready() })
			c.pings("the second ends", func() {
				c.stop(c.second[0])
			})
			c.pings("the first starts again beside it", func() {
				c.stop(h.Flanneld())
				c.start(h, "-ip-masq=true")
			})
			if now := c.rules(h); now != both {
				t.Errorf("the rules were\n%s\nand are\n%s", both, now)
			}
			c.startSecond(0)
			c.ready()
			c.quiet("in the end")

			// What one daemon's rules lose, it brings back alone.
			for _, damage := range map[string][]string{
				"iptables":    {"iptables -D FLANNEL-FWD -s 10.43.0.0/16 -m comment --comment 'flanneld forward' -j ACCEPT", "iptables -F FLANNEL-FWD"},
				"nftables":    {"nft delete table ip flannel-ipv4", "iptables -F FORWARD"},
				"one of each": {"nft delete table ip flannel-ipv4", "iptables -F FLANNEL-FWD", "iptables -F FORWARD"},
			}[c.keeper] {
				c.sh(h, damage)
				c.within(6*time.Second, damage, func() error { return c.same(h, both) })
				c.pings(damage, nil)
			}
		})
	}
}

// idle measures what the daemons of a host consume while nothing happens.
func (c *twoNetworks) idle() {
	c.t.Helper()
	usage := func() (sum time.Duration) {
		for _, p := range c.daemons()[:2] {
			u := c.usage(p)
			sum += u.CPU + u.ChildrenCPU
		}
		return sum
	}
	const watch = 3 * time.Second
	before := usage()
	time.Sleep(watch) // it is what happens in it that is measured
	share := 100 * (usage() - before).Seconds() / watch.Seconds()
	c.t.Logf("the daemons of a host take %.2f %% of a processor", share)
	if share > 5 {
		c.t.Errorf("%.2f %% of a processor", share)
	}
}

// TestNetworksThatChangePlaces: the subnet file of each of two daemons names the network that the
// other one serves by now, whose rules are no longer its own.
func TestNetworksThatChangePlaces(t *testing.T) {
	t.Parallel()
	for _, keeper := range []string{"iptables", "nftables"} {
		t.Run(keeper, func(t *testing.T) {
			t.Parallel()
			c := newTwoNetworks(t, keeper)
			h := c.Hosts[0]
			for _, swap := range []bool{false, true} {
				c.configure(swap)
				c.startBoth(0)
				for _, p := range c.daemons()[:2] {
					c.must(p.WaitReady(c.ctx))
				}
				if swap {
					break
				}
				for _, p := range c.daemons()[:2] {
					c.stop(p)
				}
			}
			rules := c.rules(h)
			for _, network := range []string{"10.42.0.0/16", "10.43.0.0/16"} {
				if n := strings.Count(rules, network); n < 7 {
					t.Errorf("%d times %s in\n%s", n, network, rules)
				}
			}
			c.quiet("after the change")
			// With one of them gone, what it has left is not the other's either.
			c.stop(c.second[0])
			c.sh(h, map[string]string{
				"iptables": "iptables -D FLANNEL-FWD -s 10.43.0.0/16 -m comment --comment 'flanneld forward' -j ACCEPT",
				"nftables": "iptables -D FORWARD -s 10.43.0.0/16 -m comment --comment flanneld -j ACCEPT",
			}[keeper])
			c.within(6*time.Second, "a repair by the one that is left", func() error { return c.same(h, rules) })
		})
	}
}

// same compares how often each network is named, because the order of the two does not matter.
func (c *twoNetworks) same(h *lab.Host, before string) error {
	now := c.rules(h)
	for _, network := range []string{"10.42.0.0/16", "10.43.0.0/16"} {
		if strings.Count(now, network) != strings.Count(before, network) {
			return fmt.Errorf("the rules were\n%s\nand are\n%s", before, now)
		}
	}
	return nil
}
