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
	eachAPI(t, func(t *testing.T, api string) {
		c := newCluster(t, lab.Options{Hosts: 1})
		keys := c.Etcd.Store(api)
		c.must(keys.Put(c.ctx, c.prefix+"/config", upperConfig, 0))
		c.must(c.StartAll(c.ctx))
		h := c.Hosts[0]
		const peer = `{"PublicIP":"172.31.200.99","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}}`
		key := func(n int) string { return fmt.Sprintf("%s/subnets/10.42.%d.0-24", c.prefix, n) }
		routed := func(n int) error {
			for r := range c.snapshot(h, "10.42.0.0/16", "flannel.1").Routes {
				if r.Dst == netip.MustParsePrefix(fmt.Sprintf("10.42.%d.0/24", n)) {
					return nil
				}
			}
			return fmt.Errorf("no route to peer %d", n)
		}
		c.must(keys.Put(c.ctx, key(1), peer, time.Hour))
		c.within(5*time.Second, "the peer is reached", func() error { return routed(1) })
		var worst time.Duration
		for n := 2; n < 6; n++ {
			c.must(keys.Delete(c.ctx, key(n-1)))
			start := time.Now()
			c.must(keys.Put(c.ctx, key(n), peer, time.Hour))
			c.within(5*time.Second, "the peer is reached again", func() error { return routed(n) })
			worst = max(worst, time.Since(start))
		}
		if worst > slow(400*time.Millisecond) {
			t.Errorf("reached in another subnet after %v", worst)
		}
		t.Logf("reached in another subnet within %v", worst)
		if logged(h, "skipped peers") > 0 {
			t.Errorf("a deleted lease is named as one that is in the way:\n%s", h.Flanneld().Logs())
		}
	})
}
