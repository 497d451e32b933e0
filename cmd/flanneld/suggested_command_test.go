package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// TestSuggestedCommandIsPasted: with a prefix that ends in a slash, the command in the log creates
// the missing config, and the lease is created under the same prefix.
func TestSuggestedCommandIsPasted(t *testing.T) {
	t.Parallel()
	for api, verb := range map[string]string{"v3": "ETCDCTL_API=3", "v2": "ETCDCTL_API=2"} {
		t.Run(api, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, lab.Options{Hosts: 1})
			h := c.Hosts[0]
			c.launch(h, "-etcd-prefix=/coreos.com//network/")
			var command string
			c.within(5*time.Second, "command", func() error {
				for line := range strings.Lines(h.Flanneld().Logs()) {
					if strings.HasPrefix(line, "\t"+verb) {
						command = strings.TrimSpace(line)
						return nil
					}
				}
				return fmt.Errorf("log:\n%s", h.Flanneld().Logs())
			})
			c.paste(h, command)
			c.must(h.Flanneld().WaitReady(c.ctx))
			subnet := c.subnet(h)
			keys := c.Etcd.Store(api)
			if _, err := keys.Get(c.ctx, fmt.Sprintf("/coreos.com/network/subnets/%s-%d", subnet.Addr(), subnet.Bits())); err != nil {
				t.Error(err)
			}
			if n := logged(h, "etcd_prefix=/coreos.com/network\n"); n != 1 {
				t.Errorf("the prefix is in\n%s", h.Flanneld().Logs())
			}
		})
	}
}

// paste runs a command line on a host as it stands, with an etcdctl there.
func (c *cluster) paste(h *lab.Host, command string, env ...string) {
	c.t.Helper()
	bin := c.t.TempDir()
	c.must(lab.Etcdctl(bin))
	p, err := h.Run(lab.Command{Path: "/bin/sh", Args: []string{"-c", "PATH=" + bin + ":$PATH; " + command}, Env: env})
	c.must(err)
	if code, err := p.Wait(c.ctx); err != nil || code != 0 {
		c.t.Fatalf("%s\nends with %d, %v:\n%s", command, code, err, p.Logs())
	}
}
