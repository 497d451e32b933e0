package main

import (
	"fmt"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdkeys"
)

// TestRenewals: the leases of 5,000 peers are renewed each 17 seconds; that changes nothing, causes
// no pass, and costs almost nothing.
func TestRenewals(t *testing.T) {
	t.Parallel()
	const hosts, renewals, known = 5000, 2000, 200
	eachAPI(t, func(t *testing.T, api string) {
		c := newCluster(t, lab.Options{Hosts: 1})
		keys := c.Etcd.Store(api)
		c.must(keys.Put(c.ctx, c.prefix+"/config", upperConfig, 0))
		var leases []etcdkeys.Entry
		for i := range renewals {
			n := i % known
			leases = append(leases, etcdkeys.Entry{
				Key:   fmt.Sprintf("%s/subnets/10.42.%d.%d-28", c.prefix, n/16, n%16*16),
				Value: phantomValue(fmt.Sprintf("203.0.113.%d", 1+n), fmt.Sprintf("0a:00:00:00:00:%02x", n)),
			})
		}
		c.must(keys.PutAll(c.ctx, leases[:known]))
		h := c.Hosts[0]
		c.must(c.StartAll(c.ctx, "-v=1", "-iptables-forward-rules=false"))
		c.within(5*time.Second, "the peers", func() error {
			if n := len(c.snapshot(h, "10.42.0.0/16", "flannel.1").FDB); n != known {
				return fmt.Errorf("%d", n)
			}
			return nil
		})
		passes := logged(h, "programmed") + logged(h, "repaired")
		before, err := h.Flanneld().Usage()
		c.must(err)
		c.must(keys.PutAll(c.ctx, leases))
		// A later change shows that all were received.
		c.must(keys.Put(c.ctx, c.prefix+"/subnets/10.42.100.0-24", phantomValue("203.0.113.250", "0a:00:00:00:01:00"), 0))
		c.within(10*time.Second, "one more peer", func() error {
			if n := len(c.snapshot(h, "10.42.0.0/16", "flannel.1").FDB); n != known+1 {
				return fmt.Errorf("%d", n)
			}
			return nil
		})
		after, err := h.Flanneld().Usage()
		c.must(err)
		if n := logged(h, "programmed") + logged(h, "repaired"); n != passes+1 {
			t.Errorf("%d passes", n-passes)
		}
		each := (after.CPU - before.CPU) / renewals
		share := 100 * each.Seconds() * hosts / (23 * time.Hour).Seconds()
		t.Logf("%v a renewal: %d hosts cost %.5f %% of a processor", each, hosts, share)
		if share > 0.1 {
			t.Errorf("%.3f %%", share)
		}
	})
}
