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
	eachAPI(t, func(t *testing.T, api string) {
		c := newCluster(t, lab.Options{Hosts: 2})
		s, values, size := c.Etcd.Store(api), 8, 9<<20
		if api == "v3" {
			values, size = 60, 1400<<10 // of which its requests are below 1.5 MB
		}
		huge := strings.Repeat("x", size)
		put := func(key, value string) {
			t.Helper()
			c.must(s.Put(c.ctx, c.prefix+"/"+key, value, 0))
		}
		put("config", upperConfig)
		early, late := c.Hosts[0], c.Hosts[1]
		start := func(h *lab.Host) {
			t.Helper()
			c.start(h, "-etcd-api="+api, "-iptables-forward-rules=false")
		}
		start(early)
		for i := range values {
			put(fmt.Sprintf("subnets/10.42.%d.0-24", i), huge)
		}
		own := c.subnet(early)
		key := fmt.Sprintf("%s/subnets/%s-24", c.prefix, own.Addr())
		put("subnets/"+own.Addr().String()+"-24", huge)
		c.within(20*time.Second, "the lease is put back", func() error {
			e, err := s.Get(c.ctx, key)
			if err == nil && len(e.Value) > 1000 {
				err = fmt.Errorf("%d bytes", len(e.Value))
			}
			return err
		})
		start(late)
		for _, h := range c.Hosts {
			c.addContainers(h)
		}
		c.waitAllPairs()
		c.must(c.Etcd.Kill(c.ctx)) // so that all is listed again
		c.must(c.Etcd.Start(c.ctx))
		put("subnets/10.42.100.0-24", `{"PublicIP":"203.0.113.100","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:64"}}`)
		for _, h := range c.Hosts {
			c.holds(h, 30*time.Second, "10.42.100.0/24", "203.0.113.100", "0e:00:00:00:00:64")
			u, err := h.Flanneld().Usage()
			c.must(err)
			t.Logf("%s: at most %d MB of memory", h.Name, u.HWM>>20)
			if u.HWM > 64<<20 {
				t.Errorf("%s had %d MB of memory", h.Name, u.HWM>>20)
			}
			if n := logged(h, "skipped invalid entries", fmt.Sprintf("(%d)", size), "value is longer than"); api == "v2" && n == 0 {
				t.Errorf("%s does not name what is too long", h.Name)
			}
			if n := logged(h, "value is longer than"); n == 0 || n > 10 {
				t.Errorf("%s says %d times what is too long", h.Name, n)
			}
		}
	})
}
