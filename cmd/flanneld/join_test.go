package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
)

// TestJoin is the main job: three hosts, and everything that can be seen of
// them from outside.
func TestJoin(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, vxlanConfig, "-ip-masq=true")
	c.transfer(20 << 20)
	c.checkMTU(1450)
	macs := make([]string, len(c.Hosts))
	for i, h := range c.Hosts {
		want := fmt.Sprintf("FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=%s/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n", c.subnet(h).Addr().Next())
		if got, _ := os.ReadFile(h.SubnetFile); string(got) != want {
			t.Errorf("%s: subnet file is\n%swant\n%s", h.Name, got, want)
		}
		key, e := c.lease(h)
		m := regexp.MustCompile(`^{"PublicIP":"` + h.Addr.String() + `","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"((?:[0-9a-f]{2}:){5}[0-9a-f]{2})"}}$`).FindStringSubmatch(e.Value)
		if m == nil {
			t.Fatalf("lease of %s is %s", h.Name, e.Value)
		}
		macs[i] = m[1]
		if e.TTL < 24*time.Hour-time.Minute || e.TTL > 24*time.Hour {
			t.Errorf("%s has %v to live", key, e.TTL)
		}
		if n := h.Flanneld().Notifications(); len(n) != 1 || n[0] != "READY=1" {
			t.Errorf("%s told systemd %q", h.Name, n)
		}
	}
	for i, h := range c.Hosts {
		s := c.snapshot(h, "10.42.0.0/16", "flannel.1")
		want := fmt.Sprintf("link flannel.1 mtu 1450 address %s type vxlan id 1 local %s dev eth0 dstport 8472 nolearning up\n", macs[i], h.Addr) +
			fmt.Sprintf("addr %s/32 dev flannel.1\n", c.subnet(h).Addr())
		if got := s.Text(); !strings.HasPrefix(got, want) {
			t.Errorf("%s holds\n%swant first\n%s", h.Name, got, want)
		}
		if len(s.FDB) != 2 || len(s.Neighs) != 2 || len(s.Routes) != 3 { // the third is docker0's
			t.Errorf("%s holds\n%s", h.Name, s.Text())
		}
		for j, p := range c.Hosts {
			if i == j {
				continue
			}
			gw := c.subnet(p).Addr()
			for _, line := range []string{
				fmt.Sprintf("fdb %s dev flannel.1 dst %s self permanent\n", macs[j], p.Addr),
				fmt.Sprintf("neigh %s lladdr %s dev flannel.1 nud permanent\n", gw, macs[j]),
				fmt.Sprintf("route %s/24 via %s dev flannel.1 onlink\n", gw, gw),
			} {
				if !strings.Contains(s.Text(), line) {
					t.Errorf("%s lacks %s", h.Name, line)
				}
			}
		}
	}
}

// checkMTU: a packet of the MTU passes undivided, one more byte does not.
func (c *cluster) checkMTU(mtu int) {
	c.t.Helper()
	a, b := c.containers[0], c.containers[1]
	if a.MTU != mtu {
		c.t.Errorf("containers have MTU %d, want %d", a.MTU, mtu)
	}
	if _, err := a.Ping(c.ctx, b.Addr, lab.PingOptions{Size: mtu, DF: true}); err != nil {
		c.t.Errorf("ping of %d bytes: %v", mtu, err)
	}
	if _, err := a.Ping(c.ctx, b.Addr, lab.PingOptions{Size: mtu + 1, DF: true}); !errors.Is(err, unix.EMSGSIZE) {
		c.t.Errorf("ping of %d bytes: %v, want it refused", mtu+1, err)
	}
}

func TestFieldConfigs(t *testing.T) {
	t.Parallel()
	for _, f := range []struct {
		name, prefix, config string
		lab                  lab.Options
		args                 []string
		network, link, text  string
		mtu                  int
	}{
		{name: "atomic", prefix: "/atomic.io/network", network: "10.172.0.0/16", link: "flannel.1", mtu: 1450,
			config: `{"Network":"10.172.29.0/16","SubnetLen":24,"Backend":{"Type":"vxlan","VNI":1}}`,
			text:   " type vxlan id 1 "},
		{name: "mundodocker", prefix: "/mundodocker/network", network: "192.0.0.0/16", link: "flannel.1", mtu: 1450,
			config: `{"Network":"192.0.0.0/16","SubnetLen":22,"Backend":{"Type":"vxlan"}}`,
			text:   "/22 via 192.0."},
		{name: "bond0", prefix: defaultPrefix, network: "172.16.0.0/12", link: "flannel.172", mtu: 1450,
			config: `{"Network":"172.16.0.0/12","SubnetLen":24,"SubnetMin":"172.16.16.0","SubnetMax":"172.31.247.0","Backend":{"Type":"vxlan","VNI":172,"Port":8889}}`,
			lab:    lab.Options{Uplink: "bond0", Underlay: netip.MustParsePrefix("192.168.40.0/22")}, args: []string{"-iface=bond0"},
			text: " type vxlan id 172 local 192.168.40.2 dev bond0 dstport 8889 "},
		{name: "gbp", prefix: defaultPrefix, network: "10.42.0.0/16", link: "flannel.1", mtu: 8950,
			config: `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan","GBP":true,"Learning":true,"Port":4789}}`,
			lab:    lab.Options{MTU: 9000},
			text:   " dstport 4789 learning gbp up"},
		{name: "mtu", prefix: defaultPrefix, network: "10.42.0.0/16", link: "flannel.1", mtu: 1350,
			config: `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan","MTU":1400}}`,
			text:   "link flannel.1 mtu 1350 "},
		{name: "direct", prefix: defaultPrefix, network: "10.42.0.0/16", link: "flannel.1", mtu: 1450,
			config: `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`,
			lab:    lab.Options{Hosts: 4, Racks: 2}, // h1 and h3 are neighbours, h2 and h4 behind a router
			text:   " dev eth0 proto 70\n"},
		{name: "host-gw", prefix: "coreos.com//network/", network: "10.42.0.0/16", link: "flannel.1", mtu: 1500,
			config: `{"Network":"10.42.0.0/16","backend":{"type":"HOST-GW"}}`,
			text:   " via 172.31.200.3 dev eth0 proto 70\n"},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			f.lab.Hosts = max(f.lab.Hosts, 2)
			c := newCluster(t, f.lab)
			c.prefix = "/" + strings.ReplaceAll(strings.Trim(f.prefix, "/"), "//", "/")
			c.join(f.config, append(f.args, "-etcd-prefix="+f.prefix)...)
			c.checkMTU(f.mtu)
			s := c.snapshot(c.Hosts[0], f.network, f.link)
			if !strings.Contains(s.Text(), f.text) {
				t.Errorf("no %q in\n%s", f.text, s.Text())
			}
			if f.name == "direct" {
				if n := strings.Count(s.Text(), "proto 70"); n != 1 || len(s.FDB) != 2 {
					t.Errorf("want one direct route and two FDB entries, got\n%s", s.Text())
				}
			}
		})
	}
}

// TestAlloc leases and writes the file, and programs nothing.
func TestAlloc(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 2})
	c.put("config", `{"Network":"10.42.0.0/16","Backend":{"Type":"alloc"}}`)
	c.must(c.StartAll(c.ctx))
	for _, h := range c.Hosts {
		if _, e := c.lease(h); e.Value != fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null}`, h.Addr) {
			t.Errorf("lease of %s is %s", h.Name, e.Value)
		}
		if s := c.snapshot(h, "10.42.0.0/16", "flannel.1"); s.Text() != "" {
			t.Errorf("%s holds\n%s", h.Name, s.Text())
		}
	}
}
