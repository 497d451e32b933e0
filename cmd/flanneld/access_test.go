package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// TestEtcdMayBeReadOnly: a user who may read the network and not write it is one condition, at
// the start and later, however often it is tried; it has the command that ends it.
func TestEtcdMayBeReadOnly(t *testing.T) {
	t.Parallel()
	eachAPI(t, lab.Options{Hosts: 1}, func(t *testing.T, c *cluster) {
		const password = "hush-hush"
		c.put("config", vxlanConfig)
		c.must(c.keys.PermitReading(c.ctx, false, "flannel-1", password, c.prefix))
		h := c.Hosts[0]
		p := c.launchCommand(h, lab.Command{
			Args: []string{"-etcd-api=" + c.api, "-release-lease-on-exit"},
			Env:  []string{"FLANNELD_ETCD_USERNAME=flannel-1", "FLANNELD_ETCD_PASSWORD=" + password, "FLANNELD_V=1"},
		})
		quiet := func(times int) {
			t.Helper()
			for words, want := range map[string]int{
				"level=ERROR":                      times,
				"is unreachable":                   0,
				"is reachable again":               0,
				"failed to renew lease":            0,
				`msg="etcd does not permit`:        times,
				`msg="no longer: etcd does not pe`: times - 1,
			} {
				if n := lines(p, words); n != want {
					t.Errorf("%d lines with %s, want %d", n, words, want)
				}
			}
			if t.Failed() {
				t.Fatal(p.Logs())
			}
		}
		refused := func() {
			t.Helper()
			const line = "registry denies writing the lease"
			before := lines(p, "level=DEBUG", line)
			c.within(20*time.Second, "refusals", func() error {
				if n := lines(p, "level=DEBUG", line) - before; n < 2 {
					return fmt.Errorf("%d:\n%s", n, p.Logs())
				}
				return nil
			})
		}
		permit := func() {
			t.Helper()
			command := c.says(p, "etcd does not permit this host to write its lease", "permission=readwrite", "user=flannel-1", "key=/coreos.com/network/")
			if strings.Contains(command, password) {
				t.Errorf("the password is in %s", command)
			}
			c.paste(h, command, "ETCDCTL_PASSWORD="+password)
		}
		refused()
		quiet(1)
		permit()
		c.must(p.WaitReady(c.ctx))

		// Its key is deleted, and must not be created again.
		c.must(c.keys.PermitReading(c.ctx, true, "flannel-1", password, c.prefix))
		do := map[string]string{
			"v3": "ETCDCTL_API=3 etcdctl --endpoints=%s --user=root del %s",
			"v2": "ETCDCTL_API=2 etcdctl --endpoints=%s --username=root rm %s",
		}[c.api]
		c.paste(h, fmt.Sprintf(do, c.Etcd.Endpoint(), leaseKey(c.prefix, c.subnet(h))), "ETCDCTL_PASSWORD="+password)
		refused()
		quiet(2)
		permit()
		c.says(p, "own lease was deleted, creating it again")

		c.must(c.keys.PermitReading(c.ctx, true, "flannel-1", password, c.prefix))
		if code, err := p.Stop(c.ctx); err != nil || code != 0 || lines(p, "failed to release lease") != 1 {
			t.Errorf("exit code %d, %v:\n%s", code, err, p.Logs())
		}
	})
}
