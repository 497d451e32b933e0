package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// TestHugeValuesInEtcd: a host starts, and a running one continues, in a few megabytes of memory
// although etcd contains values of a much larger total size. Its own lease is restored after it was
// overwritten by such a value.
func TestHugeValuesInEtcd(t *testing.T) {
	t.Parallel()
	eachAPI(t, lab.Options{Hosts: 2}, func(t *testing.T, c *cluster) {
		values, size := 8, 9<<20
		if c.api == "v3" {
			values, size = 60, 1400<<10 // of which its requests are below 1.5 MB
		}
		huge := strings.Repeat("x", size)
		c.put("config", upperConfig)
		early, late := c.Hosts[0], c.Hosts[1]
		start := func(h *lab.Host) {
			t.Helper()
			c.start(h, "-etcd-api="+c.api, "-iptables-forward-rules=false")
		}
		start(early)
		for i := range values {
			c.put(fmt.Sprintf("subnets/10.42.%d.0-24", i), huge)
		}
		key := leaseKey(c.prefix, c.subnet(early))
		c.must(c.keys.Put(c.ctx, key, huge, 0))
		c.within(20*time.Second, "the lease is put back", func() error {
			e, err := c.keys.Get(c.ctx, key)
			if err == nil && len(e.Value) > 1000 {
				err = fmt.Errorf("%d bytes", len(e.Value))
			}
			return err
		})
		start(late)
		c.connect()
		c.must(c.Etcd.Kill(c.ctx)) // so that all is listed again
		c.must(c.Etcd.Start(c.ctx))
		c.phantom("10.42.100.0-24", "203.0.113.100", "0e:00:00:00:00:64")
		for _, h := range c.Hosts {
			c.holds(h, 30*time.Second, "10.42.100.0/24", "203.0.113.100", "0e:00:00:00:00:64")
			u := c.usage(h.Flanneld())
			t.Logf("%s: at most %d MB of memory", h.Name, u.HWM>>20)
			if u.HWM > 64<<20 {
				t.Errorf("%s had %d MB of memory", h.Name, u.HWM>>20)
			}
			if n := logged(h, "skipped invalid entries", fmt.Sprintf("(%d)", size), "value is longer than"); c.api == "v2" && n == 0 {
				t.Errorf("%s does not name what is too long", h.Name)
			}
			if n := logged(h, "value is longer than"); n == 0 || n > 10 {
				t.Errorf("%s says %d times what is too long", h.Name, n)
			}
		}
	})
}
