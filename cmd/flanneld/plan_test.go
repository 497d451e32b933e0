package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/plan"
)

// planBed is a cluster on one of whose hosts plans are made.
type planBed struct {
	*cluster
	h    *lab.Host
	hold *hold // of the host's daemon
	env  []string
	args []string // of the daemon
}

// startHeld starts the daemon of the host under the hold.
func (b *planBed) startHeld() *lab.Process {
	b.t.Helper()
	path, err := built()
	b.must(err)
	return b.startCommand(b.h, b.hold.command(b.t, path, b.args...))
}

// plan returns the plan of the host, which must have an exit code. With flags, it is that of a start.
func (b *planBed) plan(want int, flags ...string) (said string) {
	b.t.Helper()
	said, code := b.runs(b.h, b.env, append([]string{"plan", "--exit-code", "-subnet-file=" + b.h.SubnetFile}, flags...)...)
	if code != want {
		b.t.Errorf("plan: exit code %d, want %d:\n%s", code, want, said)
	}
	return said
}

// all returns everything that a plan could change, as far as it is of the network.
func (b *planBed) all() string {
	b.t.Helper()
	keys, err := b.keys.List(b.ctx, b.prefix+"/subnets")
	b.must(err)
	var names []string
	for _, k := range keys {
		names = append(names, k.Key+k.Value)
	}
	files, err := filepath.Glob(filepath.Dir(b.h.SubnetFile) + "/*")
	b.must(err)
	files = slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, ".log") })
	text, _ := os.ReadFile(b.h.SubnetFile)
	return learned.ReplaceAllString(b.traces(b.h, "10.42."), "") + strings.Join(append(names, files...), "\n") + string(text)
}

// learned are the neighbours that the kernel has found out.
var learned = regexp.MustCompile(`(?m)^.* (INCOMPLETE|REACHABLE|STALE|DELAY|PROBE|FAILED) ?\n`)

// planFault is a damage, as a shell command.
type planFault struct {
	name, command string
	stopped       bool // only while the daemon is stopped
}

// Faults of a host with vxlan, of one with host-gw, of one with udp, and of rules.
var (
	vxlanPlanFaults = []planFault{
		{"routes", "ip route flush dev flannel.1", false},
		{"neighbours", "ip neigh flush dev flannel.1 nud permanent", false},
		{"forwarding entries", `bridge fdb show dev flannel.1 | while read mac rest; do bridge fdb del $mac dev flannel.1 self; done`, false},
		{"device", "ip link del flannel.1", false},
		{"device down", "ip link set flannel.1 down", false},
		{"address and MTU", "ip addr flush dev flannel.1; ip link set flannel.1 mtu 1300", false},
		{"MAC address", "ip link set flannel.1 address 02:00:00:00:00:42", false},
		{"device of another VNI", "ip link del flannel.1; ip link add flannel.1 type vxlan id 9 dstport 8472 nolearning; ip link set flannel.1 up", false},
		{"sysctl", "sysctl -qw net/ipv6/conf/flannel.1/accept_ra=1", false},
		{"stale entries", "ip route add 10.42.251.0/24 via 10.42.251.0 dev flannel.1 onlink; ip neigh add 10.42.251.0 lladdr 02:00:00:00:00:51 dev flannel.1; " +
			"bridge fdb add 02:00:00:00:00:51 dev flannel.1 dst 203.0.113.51 self permanent", false},
		{"everything", "ip link del flannel.1; iptables -F; iptables -t nat -F; nft delete table ip flannel-ipv4 2>/dev/null; rm $FILE", false},
		{"lease", "", true},
	}
	hostGWPlanFaults = []planFault{
		{"routes", "ip route flush root 10.42.0.0/16 proto 70", false},
		{"a route by another gateway", "ip route show root 10.42.0.0/16 proto 70 | while read dst rest; do ip route replace $dst via 172.31.200.254 dev eth0 proto 70; done", false},
		{"a route that is not wanted", "ip route add 10.42.251.0/24 via 172.31.200.254 dev eth0 proto 70", false},
		{"forward rules, legacy", "iptables-legacy -F FLANNEL-FWD", false},
		{"jump and rules, legacy", "iptables-legacy -F FORWARD; iptables-legacy -F FLANNEL-FWD; iptables-legacy -X FLANNEL-FWD", false},
		{"masquerading, legacy", "iptables-legacy -t nat -F", false},
		{"lease", "", true},
	}
	udpPlanFaults = []planFault{ // without a daemon there is no device
		{"route", "ip route flush dev flannel0 || true", false},
		{"address", "ip addr flush dev flannel0 || true", false},
		{"device down", "ip link set flannel0 down || true", false},
		{"MTU", "ip link set flannel0 mtu 1300 || true", false},
		{"forward rules", "iptables -F FLANNEL-FWD", false},
	}
	iptablesPlanFaults = []planFault{
		{"forward rules", "iptables -F FLANNEL-FWD", false},
		{"jump", "iptables -F FORWARD", false},
		{"chain and jump", "iptables -F FORWARD; iptables -F FLANNEL-FWD; iptables -X FLANNEL-FWD", false},
		{"a rule in our chain", "iptables -I FLANNEL-FWD -s 10.42.0.0/16 -m comment --comment '$(touch /tmp/x) \"`false`' -j DROP", false},
		{"masquerading", "iptables -t nat -F", false},
		{"order of the masquerading", `rule=$(iptables -t nat -S FLANNEL-POSTRTG | sed -n 's/^-A/-D/; 3p'); eval iptables -t nat $rule; eval iptables -t nat $(echo "$rule" | sed s/^-D/-A/)`, false},
		{"blackhole route", "ip route flush type blackhole", false},
		{"subnet file", "rm $FILE", false},
	}
	nftPlanFaults = []planFault{
		{"table", "nft delete table ip flannel-ipv4", false},
		{"rules", "nft flush table ip flannel-ipv4", false},
		{"chain", "nft flush chain ip flannel-ipv4 postrtg; nft delete chain ip flannel-ipv4 postrtg", false},
		{"policy", "nft chain ip flannel-ipv4 forward '{ policy drop; }'", false},
		{"a rule in our chain", "nft insert rule ip flannel-ipv4 forward ip saddr 10.42.0.0/16 drop", false},
		{"a set in our table", "nft add set ip flannel-ipv4 mine '{ type ipv4_addr; }'", false},
		{"accepts in another chain", "iptables -F FORWARD", false},
		{"lock", "nft delete table ip flannel-lock-10.42.0.0/16", false},
		{"rules of the lock", "nft flush chain ip flannel-lock-10.42.0.0/16 input", false},
		{"peers of the lock", "nft flush set ip flannel-lock-10.42.0.0/16 peers; nft add element ip flannel-lock-10.42.0.0/16 peers '{ 203.0.113.9 }'", false},
		{"device and rules", "ip link del flannel.1; nft delete table ip flannel-ipv4", false},
	}
)

// TestPlanRepairs: after each damage, with the daemon stopped and with one that is held, the plan has
// commands. Pasted into a shell, they make the state whole: containers reach each other, and the next
// plan is empty. A plan itself changes nothing, and that of a healthy host is empty.
func TestPlanRepairs(t *testing.T) {
	t.Parallel()
	for _, s := range []struct {
		name, config string
		args         []string
		legacy, tun  bool
		faults       []planFault
	}{
		{"vxlan", vxlanConfig, []string{"-ip-masq"}, false, false, vxlanPlanFaults},
		{"iptables", vxlanConfig, []string{"-ip-masq", "-ip-blackhole-route"}, false, false, iptablesPlanFaults},
		{"nftables", `{"Network":"10.42.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}`, []string{"-ip-masq", "-underlay-lock"}, false, false, nftPlanFaults},
		{"host-gw", `{"Network":"10.42.0.0/16","Backend":{"Type":"host-gw"}}`, []string{"-ip-masq"}, true, false, hostGWPlanFaults},
		{"udp", udpConfig, []string{"-ip-masq"}, false, true, udpPlanFaults},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			need(t, "ip", "bridge", "sysctl", "iptables", "iptables-legacy", "nft")
			c := newCluster(t, lab.Options{Hosts: 2})
			c.use("v3")
			b := &planBed{cluster: c, h: c.Hosts[0], args: s.args}
			etcdctl := t.TempDir()
			c.must(lab.Etcdctl(etcdctl))
			c.path = etcdctl + ":" + os.Getenv("PATH")
			if s.legacy {
				c.path = etcdctl + ":" + pathWith(t, "legacy")
			}
			b.env = []string{"PATH=" + c.path}
			for _, h := range c.Hosts {
				c.must(os.MkdirAll(filepath.Join(c.Dir, h.Name), 0o755)) // for the lock of iptables
				c.sh(h, "iptables -P FORWARD DROP")                      // as docker does
			}
			c.put("config", s.config)
			b.hold = newHold(t)
			b.startHeld()
			c.start(c.Hosts[1], s.args...)
			c.connect()
			if said := b.plan(0); said != "" {
				t.Errorf("plan of a healthy host:\n%s", said)
			}
			for _, f := range s.faults {
				for _, held := range []bool{false, true} {
					if !held || !f.stopped {
						b.repair(f, held, s.tun)
					}
				}
			}
			if said := b.plan(0); said != "" {
				t.Errorf("plan at the end:\n%s", said)
			}
			if n := b.hold.refused.Load(); n == 0 {
				t.Error("the daemon has not tried to repair anything while it was held")
			}
		})
	}
}

// repair damages the host while its daemon is stopped, or is held so that it cannot repair anything,
// pastes the plan, and lets the daemon continue, which has nothing to repair.
func (b *planBed) repair(f planFault, held, tun bool) {
	t, p := b.t, b.h.Flanneld()
	t.Helper()
	name := f.name + map[bool]string{false: ", stopped", true: ", held"}[held]
	flags := append([]string{"-etcd-endpoints=" + b.Etcd.Endpoint()}, b.args...)
	did := 0
	if held {
		did, flags = changes(p), nil // the flags are those of the daemon
		b.hold.on.Store(true)
	} else {
		b.stop(p)
	}
	if f.command == "" {
		b.del("subnets/" + strings.Replace(b.subnet(b.h).String(), "/", "-", 1))
	} else {
		b.sh(b.h, "FILE="+b.h.SubnetFile+"; "+f.command)
	}
	before := b.all()
	said := b.plan(planSome, flags...)
	if after := b.all(); after != before {
		t.Errorf("%s: the plan changes\n%s\nto\n%s", name, before, after)
	}
	var d plan.Document
	text, _ := b.runs(b.h, b.env, append([]string{"plan", "--json", "-subnet-file=" + b.h.SubnetFile}, flags...)...)
	if err := json.Unmarshal([]byte(text), &d); err != nil || d.Version != 1 || len(d.Unknown) > 0 {
		t.Errorf("%s: %v: %s", name, err, text)
	}
	for _, o := range d.Operations {
		if o.Kind == "" || o.Verb == "" || o.Object == "" || !strings.Contains(said, o.Command+"\n") {
			t.Errorf("%s: %+v is not in\n%s", name, o, said)
		}
	}
	if out, err := b.try(b.h, "set -e\n"+said); err != nil {
		t.Errorf("%s: the plan\n%s\nfails: %v: %s", name, said, err, out)
	}
	if again := b.plan(0, flags...); again != "" {
		t.Errorf("%s: after\n%sthe plan is\n%s", name, said, again)
	}
	if held || !tun { // whose packets need the daemon
		b.waitAllPairs()
	}
	if held {
		b.hold.on.Store(false)
	} else {
		p = b.startHeld()
	}
	b.waitAllPairs()
	if n := changes(p); n > did && !tun {
		t.Errorf("%s: after\n%sthe daemon has done something:\n%s", name, said, p.Logs())
	}
}

// changes returns how often a daemon has changed something.
func changes(p *lab.Process) int {
	return lines(p, "repaired") + lines(p, "programmed the kernel") + lines(p, "wrote packet filter rules") + lines(p, "wrote subnet file")
}

// TestDryRunOfTheFirstStart: it prints everything that the first start would do, and does nothing.
// Pasted, nothing is left to do, for the next dry run and for the daemon.
func TestDryRunOfTheFirstStart(t *testing.T) {
	need(t, "ip", "bridge", "sysctl", "iptables", "nft")
	eachAPI(t, lab.Options{Hosts: 2}, func(t *testing.T, c *cluster) {
		b := &planBed{cluster: c, h: c.Hosts[0]}
		etcdctl := t.TempDir()
		c.must(lab.Etcdctl(etcdctl))
		c.path = etcdctl + ":" + os.Getenv("PATH")
		b.env = []string{"PATH=" + c.path}
		dry := []string{"--dry-run", "-etcd-endpoints=" + c.Etcd.Endpoint(), "-subnet-file=" + b.h.SubnetFile, "-ip-masq"}
		if said, code := b.runs(b.h, b.env, dry...); code != 1 || !strings.Contains(said, "no network config at") {
			t.Errorf("without a config: exit code %d, %s", code, said)
		}
		c.put("config", vxlanConfig)
		c.start(c.Hosts[1], "-ip-masq")
		before := b.all()
		said, code := b.runs(b.h, b.env, dry...)
		for _, want := range []string{"ETCDCTL_API=" + c.api[1:] + " etcdctl ", "ip link add flannel.1 ", "ip addr replace 10.42.", "bridge fdb replace ", "ip neigh replace 10.42.", "ip route replace 10.42.", "sysctl -w ", "iptables -w -t filter -N FLANNEL-FWD\n", "FLANNEL_SUBNET=10.42."} {
			if !strings.Contains(said, want) {
				t.Errorf("there is no %q in\n%s", want, said)
			}
		}
		if after := b.all(); code != 0 || after != before {
			t.Errorf("exit code %d; there was\n%s\nand there is\n%s", code, before, after)
		}
		if out, err := b.try(b.h, "set -e\n"+said); err != nil {
			t.Fatalf("%s\nfails: %v: %s", said, err, out)
		}
		if again, code := b.runs(b.h, b.env, dry...); code != 0 || again != "" {
			t.Errorf("after\n%sexit code %d, %s", said, code, again)
		}
		p := c.start(b.h, "-ip-masq")
		if n := changes(p) + lines(p, "allocated lease"); n > 0 {
			t.Errorf("after\n%sthe daemon has done something:\n%s", said, p.Logs())
		}
		c.connect()
	})
}

// TestDryRunOfAnotherNetwork: what a start would do after the network has been changed while the
// daemon was stopped, in each backend: pasted, nothing is left to do.
func TestDryRunOfAnotherNetwork(t *testing.T) {
	t.Parallel()
	need(t, "ip", "bridge", "sysctl", "iptables", "nft")
	for _, backend := range []string{"vxlan", "host-gw", "udp", "alloc"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, lab.Options{Hosts: 2})
			b := &planBed{cluster: c, h: c.Hosts[0]}
			c.use("v3")
			etcdctl := t.TempDir()
			c.must(lab.Etcdctl(etcdctl))
			c.path = etcdctl + ":" + os.Getenv("PATH")
			b.env = []string{"PATH=" + c.path}
			config := func(n int) string { return fmt.Sprintf(`{"Network":"10.%d.0.0/16","Backend":{"Type":%q}}`, n, backend) }
			c.put("config", config(42))
			c.start(c.Hosts[1], "-ip-masq")
			p := c.start(b.h, "-ip-masq", "-underlay-lock")
			c.stop(p)
			c.put("config", config(43))
			dry := []string{"--dry-run", "-etcd-endpoints=" + c.Etcd.Endpoint(), "-subnet-file=" + b.h.SubnetFile, "-ip-masq", "-underlay-lock"}
			before := b.all()
			said, code := b.runs(b.h, b.env, dry...)
			if now := b.all(); code != 0 || now != before {
				t.Errorf("exit code %d; there was\n%s\nand there is\n%s", code, before, now)
			}
			if out, err := b.try(b.h, "set -e\n"+said); err != nil {
				t.Fatalf("%s\nfails: %v: %s", said, err, out)
			}
			if again, code := b.runs(b.h, b.env, dry...); code != 0 || again != "" {
				t.Errorf("after\n%sexit code %d, %s", said, code, again)
			}
			p = c.start(b.h, "-ip-masq", "-underlay-lock")
			if n := changes(p) + lines(p, "allocated lease"); n > 0 && backend != "udp" {
				t.Errorf("after\n%sthe daemon has done something:\n%s", said, p.Logs())
			}
		})
	}
}

// TestPlanOfARunningDaemon: it has what the daemon defers because another program keeps undoing it,
// and is computed without a pass. Before there is a lease, nothing can be told. A daemon that hangs is
// not waited for.
func TestPlanOfARunningDaemon(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 1})
	b := &planBed{cluster: c, h: c.Hosts[0]}
	p := c.launch(b.h)
	c.says(p, "network config is missing")
	if said := b.plan(planUnknown); !strings.Contains(said, "# unknown: the wanted state: flanneld has no lease of a subnet yet\n") {
		t.Errorf("before there is a config:\n%s", said)
	}
	c.put("config", upperConfig)
	for n := range 20 {
		c.phantom(fmt.Sprintf("10.42.%d.0-24", n+1), fmt.Sprintf("203.0.113.%d", n+1), fmt.Sprintf("0a:00:00:00:00:%02x", n))
	}
	c.must(p.WaitReady(c.ctx))
	c.peers(b.h, 10*time.Second, 20)
	if said := b.plan(0); said != "" {
		t.Errorf("plan of a healthy host:\n%s", said)
	}
	stop := c.flushNeighbours(b.h)
	c.says(p, "keeps undoing changes to the kernel")
	stop()
	var said string
	c.within(10*time.Second, "a plan of what the daemon has put off", func() error {
		c.sh(b.h, "ip neigh flush dev flannel.1 nud permanent")
		code := 0
		if said, code = b.runs(b.h, b.env, "plan", "--exit-code", "-subnet-file="+b.h.SubnetFile); code != planSome {
			return fmt.Errorf("exit code %d, %s", code, said)
		}
		return nil
	})
	if n := strings.Count(said, "ip neigh replace 10.42."); strings.Count(said, "\n") != n {
		t.Errorf("while the daemon backs off:\n%s", said)
	}
	if out, err := b.try(b.h, "set -e\n"+said); err != nil {
		t.Errorf("%s\nfails: %v: %s", said, err, out)
	}
	b.plan(0)
	b.must(p.Pause())
	if said := b.plan(0); said != "# note: flanneld does not answer; this is what a start would change\n" {
		t.Errorf("of a daemon that hangs:\n%s", said)
	}
	b.must(p.Signal(syscall.SIGCONT))
}
