package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lease"
)

// held reads a host's lease in etcd.
func (c *cluster) held(h *lab.Host) (key string, a lease.Attrs) {
	c.t.Helper()
	key, e := c.lease(h)
	a, err := lease.DecodeAttrs([]byte(e.Value))
	c.must(err)
	return key, a
}

// mac returns the MAC of a host's VXLAN device.
func (c *cluster) mac(h *lab.Host) string {
	c.t.Helper()
	return c.iface(h, "flannel.1").HardwareAddr.String()
}

// copyFiles copies flanneld's files from one host to another.
func (c *cluster) copyFiles(from, to *lab.Host) {
	c.t.Helper()
	c.must(os.MkdirAll(filepath.Dir(to.SubnetFile), 0o755))
	for _, suffix := range []string{"", ".lease"} {
		b, err := os.ReadFile(from.SubnetFile + suffix)
		c.must(err)
		c.must(os.WriteFile(to.SubnetFile+suffix, b, 0o644))
	}
}

// addDevice creates flanneld's device with a given MAC.
func (c *cluster) addDevice(h *lab.Host, mac string) {
	c.t.Helper()
	need(c.t, "ip")
	c.sh(h, fmt.Sprintf("ip link add flannel.1 address %s type vxlan id 1 dev eth0 local %s dstport 8472 nolearning", mac, h.Addr))
}

// TestClonedHost: a host with a copy of another running host's files, and with a device of the same
// MAC, gets its own subnet and MAC; the other host keeps both.
func TestClonedHost(t *testing.T) {
	t.Parallel()
	const down = "files, while the first one's flanneld is down"
	for _, name := range []string{"files", "files and device", down} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachAPI(t, lab.Options{Hosts: 3}, func(t *testing.T, c *cluster) {
				c.put("config", vxlanConfig)
				first, clone, third := c.Hosts[0], c.Hosts[1], c.Hosts[2]
				c.startEach(lab.Command{}, first, third)
				key, before := c.held(first)
				c.copyFiles(first, clone)
				switch name {
				case "files and device":
					c.addDevice(clone, c.mac(first))
				case down:
					c.must(first.Flanneld().Kill(c.ctx))
				}
				c.start(clone)
				if name == down {
					c.start(first)
				}
				if c.subnet(clone) == c.subnet(first) || c.mac(clone) == c.mac(first) {
					t.Errorf("%s has the subnet or the MAC of %s: %s, %s", clone.Name, first.Name, c.subnet(clone), c.mac(clone))
				}
				if again, now := c.held(first); again != key || now != before {
					t.Errorf("the first one's lease was %s %+v, is %s %+v", key, before, again, now)
				}
				if logged(clone, "level=ERROR") != 1 || logged(clone, "level=ERROR", "before="+first.Addr.String(), "public_ip="+clone.Addr.String(), "answers") != 1 {
					t.Errorf("log:\n%s", clone.Flanneld().Logs())
				}
				c.connect()
			})
		})
	}
}

// TestMovedHost: with the files of a host that no longer exists, the next host gets its subnet.
func TestMovedHost(t *testing.T) {
	t.Parallel()
	eachAPI(t, lab.Options{Hosts: 3}, func(t *testing.T, c *cluster) {
		c.put("config", vxlanConfig)
		gone, next, third := c.Hosts[0], c.Hosts[1], c.Hosts[2]
		c.startEach(lab.Command{}, gone, third)
		_, before := c.held(gone)
		c.copyFiles(gone, next)
		c.must(gone.Flanneld().Kill(c.ctx))
		c.must(gone.Unplug())
		start := time.Now()
		c.start(next)
		t.Logf("ready after %v", time.Since(start).Round(time.Millisecond))
		if _, now := c.held(next); c.subnet(next) != c.subnet(gone) || now.PublicIP != next.Addr || now.BackendData != before.BackendData {
			t.Errorf("it has %s, %+v; the one that is gone had %s, %+v", c.subnet(next), now, c.subnet(gone), before)
		}
		c.said(next.Flanneld(), 0, "level=ERROR")
		c.Hosts[0], c.Hosts[2] = third, gone
		c.Hosts = c.Hosts[:2]
		c.connect()
	})
}

// TestFirstOwnerReturns: while a host is down, another one takes its subnet with a copy of its
// files. When it starts again, it restores its lease, and the other one moves.
func TestFirstOwnerReturns(t *testing.T) {
	t.Parallel()
	eachAPI(t, lab.Options{Hosts: 3}, func(t *testing.T, c *cluster) {
		c.put("config", vxlanConfig)
		first, clone, third := c.Hosts[0], c.Hosts[1], c.Hosts[2]
		c.startEach(lab.Command{}, first, third)
		c.copyFiles(first, clone)
		c.must(first.Unplug())
		c.start(clone)
		subnet := c.subnet(first)
		if c.subnet(clone) != subnet {
			t.Fatalf("the clone has %s", c.subnet(clone))
		}
		c.must(first.Plug())
		c.within(40*time.Second, "the clone gives way", func() error {
			if c.subnet(clone) == subnet {
				return fmt.Errorf("it has %s", subnet)
			}
			return nil
		})
		c.within(10*time.Second, "the first one has its lease", func() error {
			if _, a := c.held(first); a.PublicIP != first.Addr || c.subnet(first) != subnet {
				return fmt.Errorf("it has %s, and the lease says %+v", c.subnet(first), a)
			}
			return nil
		})
		c.connect()
	})
}

// TestOneMACOnTwoHosts: hosts whose devices have the same MAC at the start resolve the conflict,
// even if they start at the same time.
func TestOneMACOnTwoHosts(t *testing.T) {
	t.Parallel()
	eachAPI(t, lab.Options{Hosts: 3}, func(t *testing.T, c *cluster) {
		c.put("config", vxlanConfig)
		const mac = "02:00:00:00:00:42"
		c.addDevice(c.Hosts[0], mac)
		c.addDevice(c.Hosts[1], mac)
		c.must(c.StartAll(c.ctx))
		c.connect()
		one, other := c.mac(c.Hosts[0]), c.mac(c.Hosts[1])
		if one == other || one != mac && other != mac {
			t.Errorf("the MACs are %s and %s, both were %s", one, other, mac)
		}
	})
}

// TestOlderLeaseKeepsMAC: when a peer comes to have the MAC of this host, the newer of
// the two leases changes its own, in etcd and on the device.
func TestOlderLeaseKeepsMAC(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 1})
	c.use("v3")
	peer := func(mac string) string {
		return fmt.Sprintf(`{"PublicIP":"172.31.200.99","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":%q}}`, mac)
	}
	put := func(subnet, mac string) { c.must(c.keys.Put(c.ctx, c.prefix+"/subnets/"+subnet, peer(mac), time.Hour)) }
	c.put("config", upperConfig)
	put("10.42.1.0-24", "02:00:00:00:00:99") // older than ours
	h := c.Hosts[0]
	c.start(h)
	mac, subnet := c.mac(h), c.subnet(h)
	put("10.42.2.0-24", mac) // newer than ours
	c.says(h.Flanneld(), "skipped peers", "is our own")
	if c.mac(h) != mac {
		t.Errorf("the MAC became %s for a newer lease", c.mac(h))
	}
	c.del("subnets/10.42.2.0-24")
	put("10.42.1.0-24", mac)
	c.within(5*time.Second, "another MAC, and the peer is reached", func() error {
		_, a := c.held(h)
		if now := c.mac(h); now == mac || !strings.Contains(a.BackendData, now) {
			return fmt.Errorf("the device has %s, the lease %s", now, a.BackendData)
		}
		for r := range c.snapshot(h, "10.42.0.0/16", "flannel.1").Routes {
			if r.Dst.String() == "10.42.1.0/24" {
				return nil
			}
		}
		return fmt.Errorf("no route to the peer")
	})
	if c.subnet(h) != subnet || logged(h, "another host has the same MAC address", "public_ip=172.31.200.99") != 1 {
		t.Errorf("subnet %s, was %s\n%s", c.subnet(h), subnet, h.Flanneld().Logs())
	}
}

// TestOnePublicIPOnTwoHosts: of two hosts with the same public IP the one with the older lease
// works, and its log says what to do.
func TestOnePublicIPOnTwoHosts(t *testing.T) {
	t.Parallel()
	for name, mac := range map[string]string{"same MAC": "", "another MAC": "02:00:00:00:00:42"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachAPI(t, lab.Options{Hosts: 3}, func(t *testing.T, c *cluster) {
				c.put("config", vxlanConfig)
				first, second, third := c.Hosts[0], c.Hosts[1], c.Hosts[2]
				c.startEach(lab.Command{}, first, third)
				_, before := c.held(first)
				subnet := c.subnet(first)
				if mac != "" {
					c.addDevice(second, mac)
				}
				c.launch(second, "-public-ip="+first.Addr.String())
				c.says(first.Flanneld(), "another program writes this host's lease", "-public-ip", "-iface", "public_ip="+first.Addr.String())
				c.must(second.Flanneld().WaitReady(c.ctx))
				c.within(10*time.Second, "the first one's lease is what it was", func() error {
					if _, now := c.held(first); now != before || c.subnet(first) != subnet || mac != "" && c.subnet(second) == subnet {
						return fmt.Errorf("%s %+v, the second one has %s", c.subnet(first), now, c.subnet(second))
					}
					return nil
				})
				c.Hosts[1] = third
				c.Hosts = c.Hosts[:2]
				c.connect()
			})
		})
	}
}

// TestOverwrittenByAnotherHost: the lease of a running host is restored after it was overwritten,
// as long as it is the key that the host has created; in v2 a plain write creates a new one.
func TestOverwrittenByAnotherHost(t *testing.T) {
	t.Parallel()
	eachAPI(t, lab.Options{Hosts: 1}, func(t *testing.T, c *cluster) {
		c.put("config", vxlanConfig)
		h := c.Hosts[0]
		c.start(h)
		subnet := c.subnet(h)
		key, before := c.held(h)
		other := before
		other.PublicIP = h.Addr.Next()
		b, err := other.Encode()
		c.must(err)
		c.must(c.keys.Put(c.ctx, key, string(b), time.Hour))
		if c.api == "v2" {
			c.within(5*time.Second, "it moves", func() error {
				if c.subnet(h) == subnet {
					return os.ErrNotExist
				}
				return nil
			})
			c.said(h.Flanneld(), 1, "lost own subnet to another host", "public_ip="+other.PublicIP.String())
			return
		}
		c.within(5*time.Second, "it is put back", func() error {
			if _, now := c.held(h); now != before {
				return fmt.Errorf("it says %+v", now)
			}
			return nil
		})
		c.saysTimes(h.Flanneld(), 1, "own lease was overwritten, restoring it")
		if now := c.subnet(h); now != subnet {
			t.Errorf("it moved from %s to %s", subnet, now)
		}
	})
}
