package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdkeys"
)

// TestTwoStores: one etcd, one prefix, a config in both stores. They are two
// networks, which do not see each other.
func TestTwoStores(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 10})
	old, auto := c.Hosts[:5], c.Hosts[5:]
	c.putBoth()
	c.startEach(lab.Command{}, auto[0]) // nothing indicates which one: v3
	c.startEach(lab.Command{Args: []string{"-etcd-api=v2"}}, old...)
	c.startEach(lab.Command{}, auto[1:]...) // both have leases: v3
	all := c.Hosts
	for i, hosts := range [][]*lab.Host{old, auto} {
		c.Hosts, c.containers = hosts, nil
		c.connect()
		for _, h := range hosts {
			if got, want := c.subnet(h).String(), fmt.Sprintf("10.4%d.", 2+i); !strings.HasPrefix(got, want) {
				t.Errorf("%s has %s", h.Name, got)
			}
			link, network := []string{"flannel.1", "flannel.3"}[i], []string{"10.42.0.0/16", "10.43.0.0/16"}[i]
			if s := c.snapshot(h, network, link); len(s.FDB) != 4 || len(s.Neighs) != 4 {
				t.Errorf("%s holds\n%s", h.Name, s.Text())
			}
		}
	}
	c.Hosts = all
	for _, h := range auto {
		if a, b := logged(h, "level=INFO", "chose store", "store=v3"), logged(h, "level=WARN", "the other store", "store=v2", "-etcd-api"); a != 1 || b != 1 {
			t.Errorf("%s says which it took %d times, and that the other exists %d times", h.Name, a, b)
		}
	}
	for _, h := range old {
		c.said(h.Flanneld(), 0, "v3")
	}
}

// putBoth writes a config in each store, of two networks.
func (c *cluster) putBoth() {
	c.t.Helper()
	c.put("config", `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`)
	c.must(c.Etcd.V3().Put(c.ctx, c.prefix+"/config", `{"Network":"10.43.0.0/16","Backend":{"Type":"vxlan","VNI":3}}`, 0))
}

// TestUpgradeStaysInTheStoreOfItsLeases: there is also a config in v3, from an earlier trial. Hosts
// whose leases are in v2 stay there, a new one joins them, and all remember the store even after
// every lease was deleted.
func TestUpgradeStaysInTheStoreOfItsLeases(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 3})
	c.put("config", `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`)
	first, joins, returns := c.Hosts[0], c.Hosts[1], c.Hosts[2]
	start := func(h *lab.Host, args ...string) {
		t.Helper()
		c.start(h, args...)
		if got := c.subnet(h).String(); !strings.HasPrefix(got, "10.42.") {
			t.Errorf("%s has %s", h.Name, got)
		}
	}
	start(first)
	start(returns, "-etcd-api=v2")
	c.must(returns.Flanneld().Kill(c.ctx))
	c.putBoth()
	start(joins)
	c.said(joins.Flanneld(), 0, "level=WARN", "other store")
	before := c.subnet(returns)
	for _, h := range []*lab.Host{first, joins} {
		c.must(h.Flanneld().Kill(c.ctx))
	}
	c.must(c.Etcd.Delete(c.ctx, c.prefix+"/subnets"))
	start(returns)
	if got := c.subnet(returns); got != before {
		t.Errorf("%s had %s, has %s", returns.Name, before, got)
	}
	c.said(returns.Flanneld(), 1, "chose store", "store=v2")
}

// TestConfigIsElsewhere: without a config, the log contains where there is another one, or else the
// command to create one; then either store can be used.
func TestConfigIsElsewhere(t *testing.T) {
	t.Parallel()
	for _, f := range []struct {
		name, args string
		elsewhere  bool
		hint       []string
		api        string // where the config is written
	}{
		{"auto to v2", "", false, []string{"ETCDCTL_API=3 etcdctl --endpoints=http://172.31.200.1:2379 put /coreos.com/network/config", "ETCDCTL_API=2 etcdctl", "set /coreos.com/network/config"}, "v2"},
		{"auto to v3", "", true, []string{"there is one at /atomic.io/network/config in the v2 API"}, "v3"},
		{"v2", "-etcd-api=v2", false, []string{"ETCDCTL_API=2", "set /coreos.com/network/config"}, "v2"},
		{"v3", "-etcd-api=v3", false, []string{"ETCDCTL_API=3", "put /coreos.com/network/config"}, "v3"},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, lab.Options{Hosts: 1})
			h := c.Hosts[0]
			if f.elsewhere {
				c.must(c.Etcd.Put(c.ctx, "/atomic.io/network/config", vxlanConfig, 0))
			}
			c.launch(h, strings.Fields(f.args)...)
			c.saysTimes(h.Flanneld(), 1, append([]string{"level=WARN", "network config is missing"}, f.hint...)...)
			if f.elsewhere {
				c.said(h.Flanneld(), 0, "etcdctl")
			}
			c.use(f.api)
			c.put("config", vxlanConfig)
			c.must(h.Flanneld().WaitReady(c.ctx))
			c.lease(h)
		})
	}
}

// TestRelease: with the flag, a host releases its lease at a regular exit, and only then; the
// network is not changed.
func TestRelease(t *testing.T) {
	t.Parallel()
	eachAPI(t, lab.Options{Hosts: 2}, func(t *testing.T, c *cluster) {
		c.put("config", vxlanConfig)
		h, other := c.Hosts[0], c.Hosts[1]
		c.must(c.StartAll(c.ctx, "-release-lease-on-exit"))
		before := c.snapshot(h, "10.42.0.0/16", "flannel.1")
		code, err := h.Flanneld().Stop(c.ctx)
		if err != nil || code != 0 {
			t.Errorf("exit code %d, %v", code, err)
		}
		took := c.within(3*time.Second, "the lease ends", func() error {
			e, err := c.keys.Get(c.ctx, leaseKey(c.prefix, c.subnet(h)))
			switch {
			case errors.Is(err, etcdkeys.ErrNoKey):
				return nil
			case err == nil && (c.api == "v3" || !strings.Contains(e.Value, `"Leaving":true`)):
				t.Errorf("the lease after the end: %+v", e)
			}
			return fmt.Errorf("there is %+v, %v", e, err)
		})
		t.Logf("the lease was gone %v after the end", took.Round(time.Millisecond))
		if after := c.snapshot(h, "10.42.0.0/16", "flannel.1"); len(after.Links) != len(before.Links) {
			t.Errorf("the kernel holds\n%s\nafterwards\n%s", before.Text(), after.Text())
		}
		c.must(other.Flanneld().Kill(c.ctx))
		c.lease(other)
	})
}
