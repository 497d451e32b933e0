package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"flanneld/pkg/lab"
)

// filters are the two keepers of packet filter rules.
var filters = []struct {
	name, config string
	rules        string        // command that prints what is ours
	repair       time.Duration // bound
}{
	{"iptables", `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`, `iptables -S FORWARD | sed -n 2p; iptables-save | grep FLANNEL | grep -v '^:' || true`, 5 * time.Second},
	{"nftables", `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"},"EnableNFTables":true}`, `iptables -S FORWARD | sed -n 2,3p; nft -s list table ip flannel-ipv4 || true`, time.Second},
}

// startFiltered starts hosts, the last of which is outside the overlay, with docker's forward
// policy of DROP.
func startFiltered(t *testing.T, hosts int, config string, args ...string) (c *cluster, outside *lab.Host) {
	t.Helper()
	need(t, "iptables", "nft")
	c = newCluster(t, lab.Options{Hosts: hosts + 1})
	outside = c.Hosts[hosts]
	c.Hosts = c.Hosts[:hosts]
	for _, h := range c.Hosts {
		c.sh(h, "iptables -P FORWARD DROP")
	}
	c.join(config, args...)
	return c, outside
}

// seen is the address that an endpoint sees another's connection come from.
func (c *cluster) seen(from, by *lab.Endpoint) netip.Addr {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
	defer cancel()
	l, err := by.NS.Listen(ctx, "tcp", net.JoinHostPort(by.Addr.String(), "0"))
	c.must(err)
	defer l.Close()
	conn, err := from.NS.DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		c.t.Fatalf("%s does not reach %s: %v", from.Name, by.Name, err)
	}
	defer conn.Close()
	accepted, err := l.Accept()
	c.must(err)
	defer accepted.Close()
	return accepted.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
}

func TestMasquerade(t *testing.T) {
	t.Parallel()
	for _, f := range filters {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			c, outside := startFiltered(t, 3, f.config, "-ip-masq=true")
			a, b := c.containers[0], c.containers[1]
			expect := func(what string, from, by *lab.Endpoint, want netip.Addr) {
				t.Helper()
				if got := c.seen(from, by); got != want {
					t.Errorf("%s: seen as %s, want %s", what, got, want)
				}
			}
			for i, k := range c.containers {
				expect("container to the outside", &k.Endpoint, &outside.Endpoint, c.Hosts[i].Addr)
				other := c.containers[(i+1)%len(c.containers)]
				expect("container to container", &k.Endpoint, &other.Endpoint, k.Addr)
			}
			via := fmt.Sprintf("ip route add 10.42.0.0/16 via %s", c.Hosts[0].Addr)
			c.sh(outside, via)
			expect("outside to a container of the host that routes", &outside.Endpoint, &a.Endpoint, outside.Addr)
			expect("outside to a container of another host", &outside.Endpoint, &b.Endpoint, c.subnet(c.Hosts[0]).Addr())
			if got := c.multicastSource(c.Hosts[0], outside); got != c.subnet(c.Hosts[0]).Addr().Next() {
				t.Errorf("a multicast packet of the bridge's address is seen as coming from %s", got)
			}
			for _, h := range c.Hosts {
				c.said(h.Flanneld(), 1, "selected packet filter", "keeper="+f.name)
			}
		})
	}
}

// multicastSource sends to a group, with the address of the host's docker bridge, and returns the
// source address that arrives.
func (c *cluster) multicastSource(h, at *lab.Host) netip.Addr {
	c.t.Helper()
	const group = "239.1.2.3"
	var listener *net.UDPConn
	c.must(at.Do(func() error {
		iface, err := net.InterfaceByName(at.Uplink)
		if err != nil {
			return err
		}
		listener, err = net.ListenMulticastUDP("udp4", iface, &net.UDPAddr{IP: net.ParseIP(group), Port: 7777})
		return err
	}))
	defer listener.Close()
	c.must(listener.SetReadDeadline(time.Now().Add(10 * time.Second)))
	var sender net.Conn
	c.must(h.Do(func() error {
		uplink, err := net.InterfaceByName(h.Uplink)
		if err != nil {
			return err
		}
		// The kernel would take the device that has the address.
		by := func(_, _ string, raw syscall.RawConn) (err error) {
			return errors.Join(raw.Control(func(fd uintptr) {
				err = syscall.SetsockoptIPMreqn(int(fd), syscall.IPPROTO_IP, syscall.IP_MULTICAST_IF, &syscall.IPMreqn{Ifindex: int32(uplink.Index)})
			}), err)
		}
		d := net.Dialer{LocalAddr: &net.UDPAddr{IP: c.subnet(h).Addr().Next().AsSlice()}, Control: by}
		sender, err = d.DialContext(c.ctx, "udp4", group+":7777")
		return err
	}))
	defer sender.Close()
	_, err := sender.Write([]byte("to the group"))
	c.must(err)
	_, from, err := listener.ReadFromUDPAddrPort(make([]byte, 100))
	c.must(err)
	return from.Addr().Unmap()
}

// TestRulesRepair: any damage of the rules is repaired, and a transfer continues meanwhile.
func TestRulesRepair(t *testing.T) {
	// Not parallel: the transfer uses all CPUs.
	for _, f := range filters {
		t.Run(f.name, func(t *testing.T) {
			c, _ := startFiltered(t, 2, f.config, "-ip-masq=true")
			h := c.Hosts[0]
			before := c.sh(h, f.rules)
			ctx, stop := context.WithCancel(c.ctx)
			transfer := make(chan error, 1)
			go func() {
				for ctx.Err() == nil {
					if _, err := c.containers[0].Transfer(c.ctx, &c.containers[1].Endpoint, 200<<20); err != nil {
						transfer <- err
						return
					}
				}
				transfer <- nil
			}()
			for _, damage := range ruleDamages[f.name] {
				c.sh(h, damage)
				if c.sh(h, f.rules) != before {
					t.Logf("%s: there is damage to see", damage)
				}
				took := c.prints(h, f.repair+500*time.Millisecond, f.rules, before)
				t.Logf("%-50s repaired after %v", damage, took.Round(time.Millisecond))
			}
			stop()
			c.must(<-transfer)
		})
	}
}

var ruleDamages = map[string][]string{
	"iptables": {
		"iptables -t nat -F",
		"iptables -F FORWARD",
		"iptables -F FLANNEL-FWD",
		"iptables -t nat -D FLANNEL-POSTRTG 2",
		"iptables -t nat -D FLANNEL-POSTRTG 1 && iptables -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN",
		"iptables -I FORWARD -p tcp -j ACCEPT",
		// All at once: a chain to which a repair has just brought back a jump cannot be deleted.
		`printf '*filter\nCOMMIT\n*nat\nCOMMIT\n' | iptables-restore`,
		"nft flush ruleset",
	},
	"nftables": {
		"nft flush chain ip flannel-ipv4 postrtg",
		"nft delete table ip flannel-ipv4",
		"nft delete rule ip flannel-ipv4 postrtg handle $(nft -a list chain ip flannel-ipv4 postrtg | sed -n '/return/s/.*# handle //p' | head -n 1)",
		"iptables -F FORWARD",
		"iptables -I FORWARD -p tcp -j ACCEPT",
		"iptables -P FORWARD ACCEPT && iptables -P FORWARD DROP",
		"nft flush ruleset && iptables -P FORWARD DROP",
	},
}

// TestDockerRules loads what docker of two generations leaves on a host.
func TestDockerRules(t *testing.T) {
	t.Parallel()
	need(t, "iptables", "nft")
	for _, f := range filters {
		for _, docker := range []string{"docker-20", "docker-28"} {
			t.Run(f.name+"/"+docker, func(t *testing.T) {
				t.Parallel()
				dump, err := filepath.Abs(filepath.Join("../../pkg/iptables/testdata", docker+".rules"))
				if err != nil {
					t.Fatal(err)
				}
				c := newCluster(t, lab.Options{Hosts: 2})
				// The dump is of a host with this subnet.
				c.put("config", f.config)
				c.put("subnets/10.42.7.0-24", fmt.Sprintf(`{"PublicIP":"%s"}`, c.Hosts[0].Addr))
				c.sh(c.Hosts[0], "iptables-restore < "+dump)
				c.must(c.StartAll(c.ctx))
				c.connect()
				if got := c.containers[0].Addr; got != netip.MustParseAddr("10.42.7.2") {
					t.Fatalf("the first container is %s", got)
				}
				// As for another network of docker's.
				c.sh(c.Hosts[0], "iptables -I FORWARD -i br-new -o br-new -j ACCEPT && iptables -t nat -I POSTROUTING -s 172.30.0.0/16 ! -o br-new -j MASQUERADE")
				c.within(6*time.Second, "our rules are first again", func() error {
					rules := strings.Split(c.sh(c.Hosts[0], "iptables -S FORWARD"), "\n")
					first := slices.IndexFunc(rules, func(r string) bool { return strings.Contains(r, "flanneld") })
					theirs := slices.IndexFunc(rules, func(r string) bool { return strings.Contains(r, "br-new") })
					if first < 0 || theirs < 0 || first > theirs {
						return errors.New(strings.Join(rules, "\n"))
					}
					return nil
				})
				if !strings.Contains(c.sh(c.Hosts[0], "iptables -t nat -S POSTROUTING"), "br-new") {
					t.Error("docker's new rule is gone")
				}
				c.waitAllPairs()
			})
		}
	}
}

// TestRulesLeftBehind: the way back to v0.8 to v0.19, which do not know our chains, with another
// subnet afterwards. Our rules of the subnet before stand ahead of theirs, and containers of two
// hosts still reach each other by their own addresses.
func TestRulesLeftBehind(t *testing.T) {
	t.Parallel()
	for _, f := range filters {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			c, outside := startFiltered(t, 2, f.config, "-ip-masq=true")
			h := c.Hosts[0]
			before := c.subnet(h)
			dump := filepath.Join(t.TempDir(), "rules")
			c.sh(h, map[string]string{
				"iptables": "iptables-save > " + dump,
				"nftables": "(echo delete table ip flannel-ipv4; nft -s list table ip flannel-ipv4) > " + dump,
			}[f.name])
			c.stop(h.Flanneld())
			key, _ := c.lease(h)
			c.must(c.Etcd.Delete(c.ctx, key))
			c.must(os.Remove(h.SubnetFile))
			c.must(os.Remove(h.SubnetFile + ".lease"))
			c.put("subnets/10.42.200.0-24", fmt.Sprintf(`{"PublicIP":"%s"}`, h.Addr))
			c.start(h, "-ip-masq=true")
			if now := c.subnet(h); now == before {
				t.Fatalf("the subnet is %s as before", now)
			}
			c.stop(h.Flanneld())
			c.sh(h, map[string]string{"iptables": "iptables-restore < " + dump, "nftables": "nft -f " + dump}[f.name])
			for _, rule := range []string{
				"-s 10.42.0.0/16 -d 10.42.0.0/16 -j RETURN", "-s 10.42.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE",
				"! -s 10.42.0.0/16 -d 10.42.200.0/24 -j RETURN", "! -s 10.42.0.0/16 -d 10.42.0.0/16 -j MASQUERADE",
			} {
				c.sh(h, "iptables -t nat -A POSTROUTING "+rule)
			}
			a := c.container(h)
			b := c.containers[1]
			c.within(10*time.Second, "ping", func() error {
				_, err := a.Ping(c.ctx, b.Addr, lab.PingOptions{Timeout: 250 * time.Millisecond})
				return err
			})
			for _, s := range []struct {
				from, by *lab.Endpoint
				want     netip.Addr
			}{{&a.Endpoint, &b.Endpoint, a.Addr}, {&b.Endpoint, &a.Endpoint, b.Addr}, {&a.Endpoint, &outside.Endpoint, h.Addr}} {
				if got := c.seen(s.from, s.by); got != s.want {
					t.Errorf("%s is seen by %s as %s, want %s", s.from.Name, s.by.Name, got, s.want)
				}
			}
		})
	}
}

// TestFormerRules starts with the rules that an original has left for the same network, and for the
// one in subnet.env.
func TestFormerRules(t *testing.T) {
	t.Parallel()
	need(t, "iptables")
	c := newCluster(t, lab.Options{Hosts: 1})
	h := c.Hosts[0]
	old := func(n, s string) {
		for _, rule := range []string{
			"POSTROUTING -s %[1]s -d %[1]s -j RETURN", "POSTROUTING -s %[1]s ! -d 224.0.0.0/4 -j MASQUERADE",
			"POSTROUTING ! -s %[1]s -d %[2]s -j RETURN", "POSTROUTING ! -s %[1]s -d %[1]s -j MASQUERADE",
		} {
			c.sh(h, "iptables -t nat -A "+fmt.Sprintf(rule, n, s))
		}
		c.sh(h, fmt.Sprintf("iptables -A FORWARD -s %[1]s -j ACCEPT; iptables -A FORWARD -d %[1]s -j ACCEPT", n))
	}
	foreign := func() string { return c.sh(h, "iptables-save | grep -v -e FLANNEL -e '^#' -e '^:'") }
	c.sh(h, "iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE; iptables -A FORWARD -i eth9 -j ACCEPT")
	before := foreign()
	old("10.42.0.0/16", "10.42.9.0/24")
	old("10.99.0.0/16", "10.99.3.0/24")
	c.must(os.MkdirAll(filepath.Dir(h.SubnetFile), 0o755))
	c.must(os.WriteFile(h.SubnetFile, []byte("FLANNEL_NETWORK=10.99.0.0/16\nFLANNEL_SUBNET=10.99.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"), 0o644))
	c.put("config", vxlanConfig)
	c.put("subnets/10.42.9.0-24", fmt.Sprintf(`{"PublicIP":"%s"}`, h.Addr))
	c.must(c.StartAll(c.ctx, "-ip-masq=true"))
	if after := foreign(); after != before {
		t.Errorf("rules of others were\n%s\nand are\n%s", before, after)
	}
	ours := c.sh(h, filters[0].rules)
	if n := strings.Count(ours, "\n"); n != 1+5+3+3+3 { // FORWARD's first, POSTRTG, FWD, INPUT, and a jump to each
		t.Errorf("%d rules are ours:\n%s", n, ours)
	}

	// The other keeper, without masquerading: the rules of the first one must be removed.
	c.stop(h.Flanneld())
	c.put("config", filters[1].config)
	c.must(c.StartAll(c.ctx))
	if left := c.sh(h, "iptables-save | grep -c FLANNEL || true"); left != "0\n" {
		t.Errorf("iptables still holds %s", c.sh(h, "iptables-save"))
	}
	if table := c.sh(h, "nft list table ip flannel-ipv4"); strings.Contains(table, "masquerade") || !strings.Contains(table, "10.42.0.0/16 ") {
		t.Errorf("nftables holds\n%s", table)
	}
	if after := c.sh(h, "iptables-save | grep -v -e flanneld -e '^#' -e '^:'"); after != before {
		t.Errorf("rules of others were\n%s\nand are\n%s", before, after)
	}
	c.stop(h.Flanneld())
	c.put("config", vxlanConfig)
	c.must(c.StartAll(c.ctx, "-ip-masq=true"))
	if now := c.sh(h, filters[0].rules); now != ours {
		t.Errorf("iptables holds\n%s\nwant\n%s", now, ours)
	}
	if tables := c.sh(h, "nft list tables"); strings.Contains(tables, "flannel") {
		t.Errorf("nftables still has\n%s", tables)
	}
}

// TestIdleRules: with nothing to do, iptables is listed once a resync and never
// written, and nftables takes no process at all.
func TestIdleRules(t *testing.T) {
	t.Parallel()
	need(t, "iptables", "nft")
	t.Run("iptables", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t, lab.Options{Hosts: 1})
		dir, calls := t.TempDir(), filepath.Join(t.TempDir(), "calls")
		for _, name := range []string{"iptables", "iptables-save", "iptables-restore"} {
			real, err := exec.LookPath(name)
			c.must(err)
			c.must(os.WriteFile(filepath.Join(dir, name), []byte(fmt.Sprintf("#!/bin/sh\necho %s >> %s\nexec %s \"$@\"\n", name, calls, real)), 0o755))
		}
		c.put("config", filters[0].config)
		p, err := c.Hosts[0].Run(lab.Command{
			Args: []string{"-etcd-endpoints=" + c.Etcd.Endpoint(), "-subnet-file=" + c.Hosts[0].SubnetFile, "-iptables-resync=1", "-ip-masq=true"},
			Env:  []string{"PATH=" + dir + ":" + os.Getenv("PATH")},
		})
		c.must(err)
		c.must(p.WaitReady(c.ctx))
		listings := func() (n int) {
			b, err := os.ReadFile(calls)
			c.must(err)
			return strings.Count(string(b), "iptables-save\n")
		}
		// The event of our own write may cause another one.
		settled, start := listings()+2, time.Now()
		c.within(10*time.Second, "listings", func() error {
			if n := listings(); n < settled+4 {
				return fmt.Errorf("%d", n-settled)
			}
			return nil
		})
		if most := 3 + int(time.Since(start)/time.Second); listings()-settled > most {
			t.Errorf("%d listings in %v with a resync of 1 s", listings()-settled, time.Since(start))
		}
		b, err := os.ReadFile(calls)
		c.must(err)
		if n := strings.Count(string(b), "iptables-restore\n"); n != 1 {
			t.Errorf("written %d times:\n%s", n, b)
		}
	})
	t.Run("nftables", func(t *testing.T) {
		t.Parallel()
		c, h := oneHost(t, filters[1].config)
		c.must(c.StartAll(c.ctx, "-ip-masq=true", "-iptables-resync=1"))
		ran := func() int {
			u := c.usage(h.Flanneld())
			return u.ChildrenFaults
		}
		before, ruleset := ran(), c.sh(h, "nft -a list ruleset")
		start := time.Now()
		c.within(10*time.Second, "idleness", func() error {
			if ran() != before {
				t.Fatal("it has run another process")
			}
			if time.Since(start) < 3*time.Second {
				return errors.New("too early to tell")
			}
			return nil
		})
		// Handles never return: rules written again would have others.
		if now := c.sh(h, "nft -a list ruleset"); now != ruleset {
			t.Errorf("was\n%s\nis\n%s", ruleset, now)
		}
	})
}

// TestObstacles: settings that lose packets are named once, and left as they are.
func TestObstacles(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 1})
	h := c.Hosts[0]
	const strict, off = "/proc/sys/net/ipv4/conf/default/rp_filter", "/proc/sys/net/ipv4/ip_forward"
	c.sh(h, "echo 1 > "+strict+"; echo 0 > "+off)
	c.put("config", vxlanConfig)
	c.must(c.StartAll(c.ctx))
	for _, command := range []string{"sysctl -w net.ipv4.ip_forward=1", "sysctl -w net/ipv4/conf/flannel.1/rp_filter=2"} {
		c.saysTimes(h.Flanneld(), 1, "level=WARN", command)
	}
	if got := c.sh(h, "cat "+strict+" "+off); got != "1\n0\n" {
		t.Errorf("the settings are %q", got)
	}
}

// TestBlackhole: without a bridge, packets to the subnet are dropped.
func TestBlackhole(t *testing.T) {
	t.Parallel()
	need(t, "ip")
	c := startCluster(t, 2, vxlanConfig, "-ip-blackhole-route")
	h := c.Hosts[0]
	get := func() error {
		return h.Do(func() error {
			_, err := netlink.RouteGet(c.containers[0].Addr.AsSlice())
			return err
		})
	}
	c.must(get())
	c.sh(h, "ip link del docker0")
	if err := get(); !errors.Is(err, syscall.EINVAL) { // what a blackhole says
		t.Errorf("without a bridge: %v", err)
	}
}
