package main

import (
	"flanneld/pkg/lab/logs"
	"strings"
	"testing"

	"flanneld/pkg/lab"
)

// TestSuggestedCommandIsPasted: with a prefix that ends in a slash, the command in the log creates
// the missing config, and the lease is created under the same prefix.
func TestSuggestedCommandIsPasted(t *testing.T) {
	t.Parallel()
	eachAPI(t, lab.Options{Hosts: 1}, func(t *testing.T, c *cluster) {
		h := c.Hosts[0]
		p := c.launch(h, "-etcd-prefix=/coreos.com//network/")
		verb := "\tETCDCTL_API=" + c.api[1:]
		c.says(p, verb)
		c.paste(h, strings.TrimSpace(logs.Find(p.Logs(), verb)[0]))
		c.must(p.WaitReady(c.ctx))
		c.lease(h) // below defaultPrefix
		c.said(h.Flanneld(), 1, "etcd_prefix=/coreos.com/network\n")
	})
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
