package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdkeys"
	"flanneld/pkg/lease"
)

// keyedCluster is a cluster whose leases are in one of etcd's stores.
type keyedCluster struct {
	*cluster
	keys etcdkeys.Store
}

// eachKeyed runs a test with hosts that have not started yet, in each of etcd's stores.
func eachKeyed(t *testing.T, hosts int, test func(t *testing.T, n *keyedCluster)) {
	eachAPI(t, func(t *testing.T, api string) {
		need(t, "ip")
		c := newCluster(t, lab.Options{Hosts: hosts})
		n := &keyedCluster{c, c.Etcd.Store(api)}
		c.must(n.keys.Put(c.ctx, c.prefix+"/config", vxlanConfig, 0))
		test(t, n)
	})
}

// held reads a host's lease in etcd.
func (n *keyedCluster) held(h *lab.Host) (key string, a lease.Attrs) {
	n.t.Helper()
	key = n.prefix + "/subnets/" + lease.Key(lease.SubnetsOf(n.subnet(h)))
	e, err := n.keys.Get(n.ctx, key)
	n.must(err)
	a, err = lease.DecodeAttrs([]byte(e.Value))
	n.must(err)
	return key, a
}

// mac returns the MAC of a host's device.
func (n *keyedCluster) mac(h *lab.Host) string {
	n.t.Helper()
	return n.vtepMAC(h).String()
}

// copyFiles copies flanneld's files from one host to another.
func (n *keyedCluster) copyFiles(from, to *lab.Host) {
	n.t.Helper()
	n.must(os.MkdirAll(filepath.Dir(to.SubnetFile), 0o755))
	for _, suffix := range []string{"", ".lease"} {
		b, err := os.ReadFile(from.SubnetFile + suffix)
		n.must(err)
		n.must(os.WriteFile(to.SubnetFile+suffix, b, 0o644))
	}
}

// addDevice creates flanneld's device with a given MAC.
func (n *keyedCluster) addDevice(h *lab.Host, mac string) {
	n.t.Helper()
	n.sh(h, fmt.Sprintf("ip link add flannel.1 address %s type vxlan id 1 dev eth0 local %s dstport 8472 nolearning", mac, h.Addr))
}

// TestClonedHost: a host with a copy of another running host's files, and with a device of the same
// MAC, gets its own subnet and MAC; the other host keeps both.
func TestClonedHost(t *testing.T) {
	t.Parallel()
	const down = "files, while the first one's flanneld is down"
	for _, name := range []string{"files", "files and device", down} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachKeyed(t, 3, func(t *testing.T, n *keyedCluster) {
				first, clone, third := n.Hosts[0], n.Hosts[1], n.Hosts[2]
				n.start(first)
				n.start(third)
				key, before := n.held(first)
				n.copyFiles(first, clone)
				switch name {
				case "files and device":
					n.addDevice(clone, n.mac(first))
				case down:
					n.must(first.Flanneld().Kill(n.ctx))
				}
				n.start(clone)
				if name == down {
					n.start(first)
				}
				if n.subnet(clone) == n.subnet(first) || n.mac(clone) == n.mac(first) {
					t.Errorf("%s has the subnet or the MAC of %s: %s, %s", clone.Name, first.Name, n.subnet(clone), n.mac(clone))
				}
				if again, now := n.held(first); again != key || now != before {
					t.Errorf("the first one's lease was %s %+v, is %s %+v", key, before, again, now)
				}
				if logged(clone, "level=ERROR") != 1 || logged(clone, "level=ERROR", "before="+first.Addr.String(), "public_ip="+clone.Addr.String(), "answers") != 1 {
					t.Errorf("log:\n%s", clone.Flanneld().Logs())
				}
				n.addContainers()
				n.waitAllPairs()
			})
		})
	}
}

// TestMovedHost: with the files of a host that no longer exists, the next host gets its subnet.
func TestMovedHost(t *testing.T) {
	t.Parallel()
	eachKeyed(t, 3, func(t *testing.T, n *keyedCluster) {
		gone, next, third := n.Hosts[0], n.Hosts[1], n.Hosts[2]
		n.start(gone)
		n.start(third)
		_, before := n.held(gone)
		n.copyFiles(gone, next)
		n.must(gone.Flanneld().Kill(n.ctx))
		n.must(gone.Unplug())
		start := time.Now()
		n.start(next)
		t.Logf("ready after %v", time.Since(start).Round(time.Millisecond))
		if _, now := n.held(next); n.subnet(next) != n.subnet(gone) || now.PublicIP != next.Addr || now.BackendData != before.BackendData {
			t.Errorf("it has %s, %+v; the one that is gone had %s, %+v", n.subnet(next), now, n.subnet(gone), before)
		}
		if logged(next, "level=ERROR") != 0 {
			t.Errorf("log:\n%s", next.Flanneld().Logs())
		}
		n.Hosts[0], n.Hosts[2] = third, gone
		n.Hosts = n.Hosts[:2]
		n.addContainers()
		n.waitAllPairs()
	})
}

// TestFirstOwnerReturns: while a host is down, another one takes its subnet with a copy of its
// files. When it starts again, it restores its lease, and the other one moves.
func TestFirstOwnerReturns(t *testing.T) {
	t.Parallel()
	eachKeyed(t, 3, func(t *testing.T, n *keyedCluster) {
		first, clone, third := n.Hosts[0], n.Hosts[1], n.Hosts[2]
		n.start(first)
		n.start(third)
		n.copyFiles(first, clone)
		n.must(first.Unplug())
		n.start(clone)
		subnet := n.subnet(first)
		if n.subnet(clone) != subnet {
			t.Fatalf("the clone has %s", n.subnet(clone))
		}
		n.must(first.Plug())
		n.within(40*time.Second, "the clone gives way", func() error {
			if n.subnet(clone) == subnet {
				return fmt.Errorf("it has %s", subnet)
			}
			return nil
		})
		n.within(10*time.Second, "the first one has its lease", func() error {
			if _, a := n.held(first); a.PublicIP != first.Addr || n.subnet(first) != subnet {
				return fmt.Errorf("it has %s, and the lease says %+v", n.subnet(first), a)
			}
			return nil
		})
		n.addContainers()
		n.waitAllPairs()
	})
}

// TestOneMACOnTwoHosts: hosts whose devices have the same MAC at the start resolve the conflict,
// even if they start at the same time.
func TestOneMACOnTwoHosts(t *testing.T) {
	t.Parallel()
	eachKeyed(t, 3, func(t *testing.T, n *keyedCluster) {
		const mac = "02:00:00:00:00:42"
		n.addDevice(n.Hosts[0], mac)
		n.addDevice(n.Hosts[1], mac)
		n.must(n.StartAll(n.ctx))
		n.addContainers()
		n.waitAllPairs()
		one, other := n.mac(n.Hosts[0]), n.mac(n.Hosts[1])
		if one == other || one != mac && other != mac {
			t.Errorf("the MACs are %s and %s, both were %s", one, other, mac)
		}
	})
}

// TestOlderLeaseKeepsMAC: when a peer comes to have the MAC of this host, the newer of
// the two leases changes its own, in etcd and on the device.
func TestOlderLeaseKeepsMAC(t *testing.T) {
	t.Parallel()
	n := &keyedCluster{cluster: newCluster(t, lab.Options{Hosts: 1})}
	n.keys = n.Etcd.V3()
	peer := func(mac string) string {
		return fmt.Sprintf(`{"PublicIP":"172.31.200.99","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":%q}}`, mac)
	}
	put := func(subnet, mac string) { n.must(n.keys.Put(n.ctx, n.prefix+"/subnets/"+subnet, peer(mac), time.Hour)) }
	n.must(n.keys.Put(n.ctx, n.prefix+"/config", upperConfig, 0))
	put("10.42.1.0-24", "02:00:00:00:00:99") // older than ours
	h := n.Hosts[0]
	n.start(h)
	mac, subnet := n.mac(h), n.subnet(h)
	put("10.42.2.0-24", mac) // newer than ours
	n.says(h.Flanneld(), "skipped peers", "is our own")
	if n.mac(h) != mac {
		t.Errorf("the MAC became %s for a newer lease", n.mac(h))
	}
	n.must(n.keys.Delete(n.ctx, n.prefix+"/subnets/10.42.2.0-24"))
	put("10.42.1.0-24", mac)
	n.within(5*time.Second, "another MAC, and the peer is reached", func() error {
		_, a := n.held(h)
		if now := n.mac(h); now == mac || !strings.Contains(a.BackendData, now) {
			return fmt.Errorf("the device has %s, the lease %s", now, a.BackendData)
		}
		for r := range n.snapshot(h, "10.42.0.0/16", "flannel.1").Routes {
			if r.Dst.String() == "10.42.1.0/24" {
				return nil
			}
		}
		return fmt.Errorf("no route to the peer")
	})
	if n.subnet(h) != subnet || logged(h, "another host has the same MAC address", "public_ip=172.31.200.99") != 1 {
		t.Errorf("subnet %s, was %s\n%s", n.subnet(h), subnet, h.Flanneld().Logs())
	}
}

// TestOnePublicIPOnTwoHosts: of two hosts with the same public IP the one with the older lease
// works, and its log says what to do.
func TestOnePublicIPOnTwoHosts(t *testing.T) {
	t.Parallel()
	for name, mac := range map[string]string{"same MAC": "", "another MAC": "02:00:00:00:00:42"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachKeyed(t, 3, func(t *testing.T, n *keyedCluster) {
				first, second, third := n.Hosts[0], n.Hosts[1], n.Hosts[2]
				n.start(first)
				n.start(third)
				_, before := n.held(first)
				subnet := n.subnet(first)
				if mac != "" {
					n.addDevice(second, mac)
				}
				n.launch(second, "-public-ip="+first.Addr.String())
				n.says(first.Flanneld(), "another program writes this host's lease", "-public-ip", "-iface", "public_ip="+first.Addr.String())
				n.must(second.Flanneld().WaitReady(n.ctx))
				n.within(10*time.Second, "the first one's lease is what it was", func() error {
					if _, now := n.held(first); now != before || n.subnet(first) != subnet || mac != "" && n.subnet(second) == subnet {
						return fmt.Errorf("%s %+v, the second one has %s", n.subnet(first), now, n.subnet(second))
					}
					return nil
				})
				n.Hosts[1] = third
				n.Hosts = n.Hosts[:2]
				n.addContainers()
				n.waitAllPairs()
			})
		})
	}
}

// TestOverwrittenByAnotherHost: the lease of a running host is restored after it was overwritten,
// as long as it is the key that the host has created; in v2 a plain write creates a new one.
func TestOverwrittenByAnotherHost(t *testing.T) {
	t.Parallel()
	eachKeyed(t, 1, func(t *testing.T, n *keyedCluster) {
		h := n.Hosts[0]
		n.start(h)
		subnet := n.subnet(h)
		key, before := n.held(h)
		other := before
		other.PublicIP = h.Addr.Next()
		b, err := other.Encode()
		n.must(err)
		n.must(n.keys.Put(n.ctx, key, string(b), time.Hour))
		if strings.HasSuffix(t.Name(), "v2") {
			n.within(5*time.Second, "it moves", func() error {
				if n.subnet(h) == subnet {
					return os.ErrNotExist
				}
				return nil
			})
			if logged(h, "lost own subnet to another host", "public_ip="+other.PublicIP.String()) != 1 {
				t.Errorf("log:\n%s", h.Flanneld().Logs())
			}
			return
		}
		n.within(5*time.Second, "it is put back", func() error {
			if _, now := n.held(h); now != before {
				return fmt.Errorf("it says %+v", now)
			}
			return nil
		})
		n.saysTimes(h.Flanneld(), 1, "own lease was overwritten, restoring it")
		if now := n.subnet(h); now != subnet {
			t.Errorf("it moved from %s to %s", subnet, now)
		}
	})
}
