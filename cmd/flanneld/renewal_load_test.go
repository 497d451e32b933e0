package main

import (
	"fmt"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdkeys"
	"flanneld/pkg/lab/wait"
)

// TestRenewals: the leases of 5,000 peers are renewed each 17 seconds; that changes nothing, causes
// no pass, and costs almost nothing.
func TestRenewals(t *testing.T) {
	t.Parallel()
	const hosts, renewals, known = 5000, 2000, 200
	eachAPI(t, lab.Options{Hosts: 1}, func(t *testing.T, c *cluster) {
		c.put("config", upperConfig)
		var leases []etcdkeys.Entry
		for i := range renewals {
			n := i % known
			leases = append(leases, etcdkeys.Entry{
				Key:   fmt.Sprintf("%s/subnets/10.42.%d.%d-28", c.prefix, n/16, n%16*16),
				Value: phantomValue(fmt.Sprintf("203.0.113.%d", 1+n), fmt.Sprintf("0a:00:00:00:00:%02x", n)),
			})
		}
		c.must(c.keys.PutAll(c.ctx, leases[:known]))
		h := c.Hosts[0]
		c.must(c.StartAll(c.ctx, "-v=1", "-iptables-forward-rules=false"))
		c.peers(h, 5*time.Second, known)
		wait.True(t, "the pass is logged", func() bool { return logged(h, "programmed") > 0 })
		passes := logged(h, "programmed") + logged(h, "repaired")
		before := c.usage(h.Flanneld())
		c.must(c.keys.PutAll(c.ctx, leases))
		// A later change shows that all were received.
		c.phantom("10.42.100.0-24", "203.0.113.250", "0a:00:00:00:01:00")
		c.peers(h, 10*time.Second, known+1)
		after := c.usage(h.Flanneld())
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
