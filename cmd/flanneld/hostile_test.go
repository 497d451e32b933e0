package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// hostile are invalid entries under subnets/, with a word of the log line about each.
func hostile(c *cluster) []struct{ key, value, reason string } {
	us, peer := c.Hosts[0], c.Hosts[1]
	own := c.subnet(us).Addr()
	vxlan := phantomValue
	good := vxlan("203.0.113.1", "0a:00:00:00:00:01")
	_, peerLease := c.lease(peer)
	return []struct{ key, value, reason string }{
		{"nonsense", good, "a.b.c.d-len"},
		{"10.42.300.0-24", good, "key has no IPv4 address"},
		{"10.42.100.0-33", good, "prefix length"},
		{"10.42.100.7-24", good, "host bits"},
		{"0.0.0.0-0", good, "prefix length"},
		{"fd42::-64", good, "key has no IPv4 address"},
		{"10.42.101.0-24", "{", "not lease JSON"},
		{"10.42.102.0-24", "", "not lease JSON"},
		{"10.42.103.0-24", `"text"`, "not lease JSON"},
		{"10.42.104.0-24", `{"PublicIP":"no address","BackendType":"vxlan"}`, "PublicIP is not an IPv4 address"},
		{"10.42.105.0-24", `{"BackendType":"vxlan"}`, "PublicIP is missing"},
		{"10.42.106.0-24", strings.Repeat("x", 1<<20), "longer than 16384 bytes"},
		{"10.43.1.0-24", good, "not in the network"},
		{"10.42.0.0-16", good, "not in the network"},
		{"0.0.0.0-1", good, "not in the network"},
		{"172.31.200.0-22", good, "not in the network"}, // the underlay
		{own.String() + "-25", good, "overlaps our own"},
		{"10.42.107.0-24", `{"PublicIP":"203.0.113.7","BackendType":"host-gw"}`, "backend type is not vxlan"},
		{"10.42.108.0-24", `{"PublicIP":"203.0.113.8","BackendType":"vxlan"}`, "BackendData is missing"},
		{"10.42.109.0-24", `{"PublicIP":"203.0.113.9","BackendType":"vxlan","BackendData":[1]}`, "BackendData has no VtepMAC"},
		{"10.42.110.0-24", vxlan("203.0.113.10", "zz:00"), "BackendData has no VtepMAC"},
		{"10.42.111.0-24", vxlan("203.0.113.11", "ff:ff:ff:ff:ff:ff"), "BackendData has no VtepMAC"},
		{"10.42.112.0-24", vxlan("0.0.0.0", "0a:00:00:00:01:12"), "not a host address"},
		{"10.42.113.0-24", vxlan("255.255.255.255", "0a:00:00:00:01:13"), "not a host address"},
		{"10.42.114.0-24", vxlan(us.Addr.String(), "0a:00:00:00:01:14"), "public IP is our own"},
		{"10.42.115.0-24", vxlan(peer.Addr.String(), "0a:00:00:00:01:15"), "public IP belongs to an older lease"},
		{"10.42.116.0-24", strings.Replace(peerLease.Value, peer.Addr.String(), "203.0.113.16", 1), "VTEP MAC belongs to an older lease"},
		{c.subnet(peer).Addr().String() + "-26", vxlan("203.0.113.17", "0a:00:00:00:01:17"), "subnet overlaps an older lease"},
	}
}

// skipped sums up how many entries or peers a host has logged as skipped for a reason.
func skipped(h *lab.Host, reason string) (sum int) {
	for line := range strings.Lines(h.Flanneld().Logs()) {
		if _, after, ok := strings.Cut(line, " count="); ok && strings.Contains(line, `msg="skipped `) && strings.Contains(line, reason) {
			n := 0
			fmt.Sscan(after, &n)
			sum += n
		}
	}
	return sum
}

func TestHostileValuesLater(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, upperConfig)
	testHostile(t, c, false)
}

func TestHostileValuesAtStart(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, upperConfig)
	c.stop(c.Hosts[0].Flanneld())
	testHostile(t, c, true)
}

func testHostile(t *testing.T, c *cluster, atStart bool) {
	h, a, b := c.Hosts[0], c.containers[0], c.containers[1]
	before := c.snapshot(h, "10.42.0.0/16", "flannel.1")
	p := c.pinger(a, b)
	bad := hostile(c)
	for _, e := range bad {
		c.put("subnets/"+e.key, e.value)
	}
	c.must(c.Etcd.Put(c.ctx, c.prefix+"/subnets/10.42.120.0-24/below", "x", 0)) // a directory
	if atStart {
		c.start(h)
	}
	// A good peer that comes last shows that all before it was read.
	c.phantom("10.42.77.0-24", "203.0.113.77", "0e:00:00:00:00:77")
	c.holds(h, 3*time.Second, "10.42.77.0/24", "203.0.113.77", "0e:00:00:00:00:77")
	c.must(c.Etcd.Delete(c.ctx, c.prefix+"/subnets/10.42.77.0-24"))
	c.holds(h, 3*time.Second, "10.42.77.0/24", "", "")
	want := map[string]int{"key is a directory": 1}
	for _, e := range bad {
		want[e.reason]++
	}
	c.within(10*time.Second, "all are counted by their reason", func() error {
		for reason, n := range want {
			if got := skipped(h, reason); got != n {
				return fmt.Errorf("%d with %q, want %d", got, reason, n)
			}
		}
		return nil
	})
	if lines := logged(h, `msg="skipped `); atStart && lines != len(want) {
		t.Errorf("%d lines about %d reasons", lines, len(want))
	}
	for line := range strings.Lines(h.Flanneld().Logs()) {
		if len(line) > 1000 {
			t.Errorf("a line of %d bytes: %.200s…", len(line), line)
		}
	}
	if got := c.snapshot(h, "10.42.0.0/16", "flannel.1"); !got.Equal(before) {
		t.Errorf("the kernel held\n%sand holds\n%s", before.Text(), got.Text())
	}
	c.lossless(p)
	for _, h := range c.Hosts {
		if h.Flanneld().Exited() {
			t.Errorf("flanneld on %s is dead", h.Name)
		}
	}
	c.waitAllPairs()

	// A newcomer finds its place among all that.
	last := c.Hosts[2]
	key, _ := c.lease(last)
	c.stop(last.Flanneld())
	c.must(os.Remove(last.SubnetFile))
	c.must(c.Etcd.Delete(c.ctx, key))
	c.start(last)
}

// TestHostileConfigs: a config that is not accepted is named once and waited
// out.
func TestHostileConfigs(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 1})
	h := c.Hosts[0]
	c.launch(h)
	for _, f := range []struct{ config, want string }{
		{`{`, "must be complete JSON"},
		{`{"Network":"10.42.0.0/16","Backend":{"Type":"pigeon"}}`, "must be one of alloc, host-gw, udp, vxlan"},
		{`{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan","VNI":-1}}`, "Backend.VNI: -1: must be a whole number from 0 to 9999999"},
		{strings.Repeat("x", 1<<20), "not 1048576"},
	} {
		c.put("config", f.config)
		c.saysTimes(h.Flanneld(), 1, f.want)
	}
	c.put("config", vxlanConfig)
	c.must(h.Flanneld().WaitReady(c.ctx))
	if _, err := os.Stat(h.SubnetFile); err != nil {
		t.Error(err)
	}
}
