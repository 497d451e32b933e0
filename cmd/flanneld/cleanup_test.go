package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"flanneld/pkg/lab"
)

// cleanup runs flanneld cleanup on a host.
func (c *cluster) cleanup(h *lab.Host, args ...string) (code int, said string) {
	c.t.Helper()
	p, err := h.Run(lab.Command{Args: append([]string{"cleanup"}, args...)})
	c.must(err)
	code, err = p.Wait(c.ctx)
	c.must(err)
	return code, p.Logs()
}

// traces are the lines in which a host mentions a network, by the start of its addresses.
func (c *cluster) traces(h *lab.Host, network string) string {
	c.t.Helper()
	out, _ := c.try(h, `ip -d addr; ip -d route show table all; ip -d neigh; ip -d nexthop; bridge fdb; iptables-nft-save; nft list ruleset`)
	var found []string
	for line := range strings.Lines(out + c.legacyRules(h)) {
		if strings.Contains(line, network) {
			found = append(found, counters.ReplaceAllString(line, ""))
		}
	}
	return strings.Join(found, "")
}

// counters are the counts of packets of a rule, which those of probes change.
var counters = regexp.MustCompile(` counter packets \d+ bytes \d+`)

// legacyRules lists the rules of iptables' legacy variant, without making tables.
func (c *cluster) legacyRules(h *lab.Host) string {
	c.t.Helper()
	return c.sh(h, `for table in $(cat /proc/thread-self/net/ip_tables_names 2>/dev/null); do iptables-legacy-save -t $table; done`)
}

// TestCleanup: everything that a daemon of each backend has created is removed, by the command or
// by the commands that it prints. Another network on the host is not changed.
func TestCleanup(t *testing.T) {
	t.Parallel()
	for _, s := range []struct {
		name, config string
		args         []string
		signal       syscall.Signal
		device       string
		legacy       bool // iptables is that of the legacy variant for the daemon, and not for cleanup
	}{
		{"vxlan", vxlanConfig, []string{"-ip-masq"}, syscall.SIGTERM, "flannel.1", false},
		{"vxlan, nftables, killed", `{"Network":"10.42.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}`, []string{"-ip-masq", "-ip-blackhole-route"}, syscall.SIGKILL, "flannel.1", false},
		{"host-gw", `{"Network":"10.42.0.0/16","Backend":{"Type":"host-gw"}}`, []string{"-ip-masq", "-ip-blackhole-route"}, syscall.SIGTERM, "", true},
		{"udp", udpConfig, []string{"-ip-masq"}, syscall.SIGKILL, "", false},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			need(t, "ip", "bridge", "iptables", "iptables-legacy", "nft")
			c := newCluster(t, lab.Options{Hosts: 2})
			h := c.Hosts[0]
			var env []string
			if s.legacy {
				env = []string{"PATH=" + pathWith(t, "legacy")}
			}
			other := c.network("/other", `{"Network":"10.43.0.0/16","Backend":{"Type":"vxlan","VNI":2}}`)
			for _, on := range c.Hosts {
				c.must(other.start(on, nil, "-ip-masq").WaitReady(c.ctx))
			}
			c.put("config", s.config)
			c.start(c.Hosts[1], s.args...)
			var p *lab.Process
			start := func() {
				t.Helper()
				p = c.startCommand(h, lab.Command{Env: env, Args: s.args})
			}
			stop := func() { c.end(p, s.signal) }
			start()
			file := "-subnet-file=" + h.SubnetFile
			before := c.traces(h, "10.42.")
			if legacy := strings.Contains(c.legacyRules(h), "10.42."); legacy != s.legacy {
				t.Errorf("rules are kept by iptables-legacy: %v", legacy)
			}
			if code, said := c.cleanup(h, file); code != 1 || !strings.Contains(said, "refused: there is the flanneld of network 10.42.0.0/16 (PID ") {
				t.Errorf("while it runs: exit code %d, %s", code, said)
			}
			if now := c.traces(h, "10.42."); now != before {
				t.Errorf("refused, and yet there was\n%sand there is\n%s", before, now)
			}
			kept := c.traces(h, "10.43.")

			stop()
			before = c.traces(h, "10.42.")
			code, commands := c.cleanup(h, file, "-dry-run", "--files")
			if now := c.traces(h, "10.42."); code != 0 || now != before || before == "" {
				t.Errorf("dry run: exit code %d, there was\n%sand there is\n%s", code, before, now)
			}
			if s.device != "" && !strings.Contains(commands, "ip link del "+s.device+"\n") || !strings.Contains(commands, "\nrm "+h.SubnetFile+"\n") {
				t.Errorf("commands:\n%s", commands)
			}
			if _, err := c.try(h, "set -e\n"+commands); err != nil {
				t.Errorf("commands:\n%s\n%v", commands, err)
			}
			if left := c.traces(h, "10.42."); left != "" {
				t.Errorf("the commands\n%sleave\n%s", commands, left)
			}

			start()
			stop()
			code, said := c.cleanup(h, file)
			if left := c.traces(h, "10.42."); code != 0 || left != "" {
				t.Errorf("exit code %d,\n%sleaves\n%s", code, said, left)
			}
			if code, said := c.cleanup(h, file); code != 0 || said != "nothing of the network 10.42.0.0/16 is left\n" {
				t.Errorf("once more: exit code %d, %s", code, said)
			}
			if now := c.traces(h, "10.43."); now != kept {
				t.Errorf("the other network had\n%sand has\n%s", kept, now)
			}
			_, to := c.device(c.Hosts[1], 43)
			c.must(c.pingIP(h, to))
			c.cleanup(h, file, "-files")
			if left, _ := filepath.Glob(h.SubnetFile + "*"); len(left) > 0 {
				t.Errorf("files left: %s", left)
			}
			if code, said := c.cleanup(h, file); code != 1 || !strings.Contains(said, "no network is named in") {
				t.Errorf("without files: exit code %d, %s", code, said)
			}
		})
	}
}

// TestCleanupRefusesUnderAnOriginal: such a flanneld is not registered.
func TestCleanupRefusesUnderAnOriginal(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 2})
	h := c.Hosts[0]
	sleep, err := os.ReadFile("/bin/sleep")
	c.must(err)
	path := filepath.Join(t.TempDir(), "flanneld")
	c.must(os.WriteFile(path, sleep, 0o755))
	c.must(os.MkdirAll(filepath.Dir(h.SubnetFile), 0o755))
	c.must(os.WriteFile(h.SubnetFile, []byte("FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.7.1/24\n"), 0o644))
	for _, o := range []struct {
		on      *lab.Host
		file    string
		refused bool
	}{
		{h, h.SubnetFile, true},
		{h, h.SubnetFile + ".other", false},
		{c.Hosts[1], h.SubnetFile, false},
	} {
		p, err := o.on.Run(lab.Command{Path: path, Args: []string{"1000"}, Env: []string{"FLANNELD_SUBNET_FILE=" + o.file}})
		c.must(err)
		c.within(5*time.Second, "exec", func() error {
			if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.PID())); err != nil || string(comm) != "flanneld\n" {
				return fmt.Errorf("%q, %v", comm, err)
			}
			return nil
		})
		code, said := c.cleanup(h, "-subnet-file="+h.SubnetFile)
		if refused := code == 1 && strings.Contains(said, fmt.Sprintf("refused: a flanneld runs with this subnet file (PID %d)", p.PID())); refused != o.refused {
			t.Errorf("%s with %s: exit code %d, %s", o.on.Name, o.file, code, said)
		}
		c.must(p.Kill(c.ctx))
	}
}

// TestWayBackToMisses: up to 0.8 the daemon answers the kernel's questions for the neighbours of
// containers. After the README's commands, and after cleanup, the kernel asks; before, what ours
// has left answers in its place.
func TestWayBackToMisses(t *testing.T) {
	t.Parallel()
	const flush = "ip route flush dev flannel.1; ip neigh flush dev flannel.1 nud permanent"
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), flush) {
		t.Errorf("the README does not say %q", flush)
	}
	for _, s := range []struct {
		name string
		do   func(*cluster, *lab.Host)
		asks bool
	}{
		{"nothing done", func(*cluster, *lab.Host) {}, false},
		{"the commands", func(c *cluster, h *lab.Host) {
			c.sh(h, flush)
		}, true},
		{"cleanup", func(c *cluster, h *lab.Host) {
			if code, said := c.cleanup(h, "-subnet-file="+h.SubnetFile); code != 0 {
				t.Errorf("exit code %d: %s", code, said)
			}
			// The old daemon creates the device.
			c.sh(h, "ip link add flannel.1 type vxlan id 1 dev eth0 dstport 8472 nolearning; ip link set flannel.1 up")
		}, true},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, lab.Options{Hosts: 2})
			c.put("config", vxlanConfig)
			c.must(c.StartAll(c.ctx))
			h := c.Hosts[0]
			peer := c.subnet(c.Hosts[1]).Addr().Next().Next()
			c.within(5*time.Second, "the peer's entries", func() error {
				if s := c.snapshot(h, "10.42.0.0/16", "flannel.1"); len(s.Neighs) != 1 || len(s.Routes) != 1 {
					return fmt.Errorf("the kernel holds\n%s", s.Text())
				}
				return nil
			})
			c.stop(h.Flanneld())
			s.do(c, h)
			// As releases up to 0.8 have the device.
			subnet := c.subnet(h)
			c.sh(h, fmt.Sprintf("ip addr add %[1]s/16 dev flannel.1; ip addr del %[1]s/32 dev flannel.1 2>/dev/null || true; echo 3 >/proc/sys/net/ipv4/neigh/flannel.1/app_solicit", subnet.Addr()))
			asked := make(chan netlink.NeighUpdate, 64)
			done := make(chan struct{})
			defer close(done)
			c.must(h.Do(func() error { return netlink.NeighSubscribe(asked, done) }))
			h.Ping(c.ctx, peer, lab.PingOptions{Timeout: 300 * time.Millisecond})
			asks := false
			for end := time.After(300 * time.Millisecond); ; {
				select {
				case u := <-asked:
					asks = asks || u.Type == syscall.RTM_GETNEIGH && bytes.Equal(u.IP.To4(), peer.AsSlice())
					if !asks {
						continue
					}
				case <-end:
				}
				break
			}
			if asks != s.asks {
				t.Errorf("the kernel asks for %s: %v\n%s", peer, asks, c.traces(h, "10.42."))
			}
		})
	}
}
