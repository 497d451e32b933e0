package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"flanneld/pkg/lab"
)

// network is one of several on the same hosts.
type network struct {
	*cluster
	prefix string
}

// network writes the config of another network.
func (c *cluster) network(prefix, config string) network {
	c.t.Helper()
	c.must(c.Etcd.Put(c.ctx, prefix+"/config", config, 0))
	return network{c, prefix}
}

func (n network) file(h *lab.Host) string { return filepath.Join(n.Dir, h.Name, n.prefix+".env") }

// start starts a daemon for the network.
func (n network) start(h *lab.Host, stored []*os.File, args ...string) *lab.Process {
	n.t.Helper()
	command := lab.Command{
		Args:   append([]string{"-etcd-endpoints=" + n.Etcd.Endpoint(), "-etcd-prefix=" + n.prefix, "-subnet-file=" + n.file(h)}, args...),
		Stored: stored,
	}
	if n.path != "" {
		command.Env = []string{"PATH=" + n.path}
	}
	p, err := h.Run(command)
	n.must(err)
	n.t.Cleanup(func() {
		if n.t.Failed() {
			n.t.Logf("log of flanneld for %s on %s:\n%s", n.prefix, h.Name, p.Logs())
		}
	})
	return p
}

// device is the link on a host that has an address of the network's second byte.
func (c *cluster) device(h *lab.Host, second byte) (name string, addr netip.Addr) {
	c.t.Helper()
	c.must(h.Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
			if err != nil {
				return err
			}
			for _, a := range addrs {
				if ip := a.IP.To4(); ip[0] == 10 && ip[1] == second {
					name, addr = l.Attrs().Name, netip.AddrFrom4([4]byte(ip))
				}
			}
		}
		return err
	}))
	return name, addr
}

// TestTwoUDPNetworks: on two hosts, each network has its own device and port, in any order of
// starts, and keeps them.
func TestTwoUDPNetworks(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 2})
	networks := []network{
		c.network("/network42", `{"Network":"10.42.0.0/16"}`),
		c.network("/network43", `{"Network":"10.43.0.0/16","Backend":{"Type":"udp","Port":8286}}`),
	}
	h := c.Hosts[0]
	var daemons []*lab.Process // of the first host
	for i, on := range c.Hosts {
		for _, n := range networks { // at the same time
			p := n.start(on, nil)
			if i == 0 {
				daemons = append(daemons, p)
			}
		}
	}
	reach := func() {
		t.Helper()
		for _, n := range []byte{42, 43} {
			c.within(10*time.Second, "ping", func() error {
				for _, on := range c.Hosts {
					if name, _ := c.device(on, n); name != "flannel0" && name != "flannel1" {
						return fmt.Errorf("10.%d.0.0/16 has device %q on %s", n, name, on.Name)
					}
				}
				_, to := c.device(c.Hosts[1], n)
				return c.pingIP(h, to)
			})
		}
	}
	reach()
	first, _ := c.device(h, 42)
	second, _ := c.device(h, 43)
	if first == second {
		t.Fatalf("both have %s", first)
	}
	indexes := map[string]int{first: c.iface(h, first).Index, second: c.iface(h, second).Index}
	for i, n := range networks {
		for _, systemd := range []bool{false, true} {
			if systemd {
				daemons[i].KeepStored()
			}
			c.stop(daemons[i])
			daemons[i] = n.start(h, daemons[i].Stored())
			c.must(daemons[i].WaitReady(c.ctx))
			reach()
			for b, name := range map[byte]string{42: first, 43: second} {
				if now, _ := c.device(h, b); now != name {
					t.Errorf("after a restart, 10.%d.0.0/16 had %s, has %s", b, name, now)
				}
				if mine := int(b) == 42+i; !mine || systemd {
					if now := c.iface(h, name).Index; now != indexes[name] {
						t.Errorf("after a restart of %s, by systemd %v, %s is another device", n.prefix, systemd, name)
					}
				}
				indexes[name] = c.iface(h, name).Index
			}
		}
	}
	// The daemon of the first device ends while the other one runs.
	c.stop(daemons[0])
	_, to := c.device(c.Hosts[1], 43)
	c.must(c.pingIP(h, to))
}

func (c *cluster) pingIP(h *lab.Host, to netip.Addr) error {
	_, err := h.Ping(c.ctx, to, lab.PingOptions{Timeout: 500 * time.Millisecond})
	return err
}

// TestDeviceOfAnotherNetwork: a second daemon whose network or device conflicts with the first
// one's logs that and waits.
func TestDeviceOfAnotherNetwork(t *testing.T) {
	t.Parallel()
	for _, s := range []struct{ name, config, said string }{
		{"same VNI", `{"Network":"10.43.0.0/16","Backend":{"Type":"vxlan"}}`, `set another VNI in one of the networks" network=10.43.0.0/16 reason="device flannel.1 is used by the flanneld of network 10.42.0.0/16 (PID `},
		{"overlapping", `{"Network":"10.0.0.0/8","SubnetMin":"10.99.0.0","Backend":{"Type":"vxlan","VNI":2}}`, `set another Network in one of them" network=10.0.0.0/8 reason="there is the flanneld of network 10.42.0.0/16 (PID `},
		{"same network", `{"Network":"10.42.0.0/16","SubnetMin":"10.42.99.0","Backend":{"Type":"host-gw"}}`, `serves the same network, waiting for it to stop" network=10.42.0.0/16`},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			c, h := oneHost(t, vxlanConfig)
			c.start(h)
			before := c.snapshot(h, "10.42.0.0/16", "flannel.1")
			n := c.network("/other", s.config)
			p := n.start(h, nil)
			c.saysTimes(p, 1, s.said)
			if now := c.snapshot(h, "10.42.0.0/16", "flannel.1"); !now.Equal(before) || len(p.Notifications()) > 0 {
				t.Errorf("the kernel held\n%sand holds\n%s; told systemd %q", before.Text(), now.Text(), p.Notifications())
			}
			c.stop(h.Flanneld())
			c.must(p.WaitReady(c.ctx))
			if lines(p, "waiting for it to stop") != 2 || lines(p, "no longer: another flanneld", "duration=") != 1 {
				t.Errorf("log:\n%s", p.Logs())
			}
			c.stop(p)
		})
	}
}
