package main

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// TestPeerMovesToAnotherSubnet: a peer whose lease is deleted and created again for another subnet
// is reached there at once, although the old lease stays in effect for a second.
func TestPeerMovesToAnotherSubnet(t *testing.T) {
	// Not parallel: it measures times.
	eachAPI(t, lab.Options{Hosts: 1}, func(t *testing.T, c *cluster) {
		c.put("config", upperConfig)
		c.must(c.StartAll(c.ctx))
		h := c.Hosts[0]
		const peer = `{"PublicIP":"172.31.200.99","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}}`
		key := func(n int) string { return fmt.Sprintf("subnets/10.42.%d.0-24", n) }
		routed := func(n int) error {
			for r := range c.snapshot(h, "10.42.0.0/16", "flannel.1").Routes {
				if r.Dst == netip.MustParsePrefix(fmt.Sprintf("10.42.%d.0/24", n)) {
					return nil
				}
			}
			return fmt.Errorf("no route to peer %d", n)
		}
		c.put(key(1), peer)
		c.within(5*time.Second, "the peer is reached", func() error { return routed(1) })
		var worst time.Duration
		for n := 2; n < 6; n++ {
			c.del(key(n - 1))
			start := time.Now()
			c.put(key(n), peer)
			c.within(5*time.Second, "the peer is reached again", func() error { return routed(n) })
			worst = max(worst, time.Since(start))
		}
		if worst > slow(400*time.Millisecond) {
			t.Errorf("reached in another subnet after %v", worst)
		}
		t.Logf("reached in another subnet within %v", worst)
		c.said(h.Flanneld(), 0, "skipped peers")
	})
}

// TestPeerChangesItsKey: a peer that adds an IPv6 subnet to its lease, or removes it, has another
// key from then on. It is reached all the time.
func TestPeerChangesItsKey(t *testing.T) {
	t.Parallel()
	eachAPI(t, lab.Options{Hosts: 1}, func(t *testing.T, c *cluster) {
		c.put("config", upperConfig)
		c.must(c.StartAll(c.ctx))
		h := c.Hosts[0]
		const subnet, publicIP, mac = "10.42.77.0/24", "203.0.113.77", "0a:00:00:00:00:77"
		const plain, both, marker = "subnets/10.42.77.0-24", "subnets/10.42.77.0-24&fd42:0:0:77::-64", "subnets/10.42.78.0-24"
		dual := `{"PublicIP":"` + publicIP + `","PublicIPv6":"2001:db8::77","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"` + mac + `"},"BackendV6Data":{"VNI":1,"VtepMAC":"0a:00:00:00:06:77"}}`
		c.put(plain, phantomValue(publicIP, mac))
		c.holds(h, 5*time.Second, subnet, publicIP, mac)
		for n, change := range []struct{ from, to, value string }{{plain, both, dual}, {both, plain, phantomValue(publicIP, mac)}} {
			// The marker is deleted after the old key, and goes when that would.
			c.put(marker, phantomValue("203.0.113.78", "0a:00:00:00:00:78"))
			c.holdsOne(h, "10.42.78.0/24")
			c.put(change.to, change.value)
			c.del(change.from)
			c.del(marker)
			c.holds(h, 5*time.Second, "10.42.78.0/24", "", "")
			c.holds(h, 5*time.Second, subnet, publicIP, mac)
			c.saysTimes(h.Flanneld(), n+1, "-1 route") // those of the markers
		}
	})
}
