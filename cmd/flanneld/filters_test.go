package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// keepers are the ways in which a daemon may keep its rules.
var keepers = []struct{ name, config, iptables string }{
	{"iptables-nft", vxlanConfig, "nft"},
	{"iptables-legacy", vxlanConfig, "legacy"},
	{"nftables", `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"},"EnableNFTables":true}`, "nft"},
	{"nftables, without iptables", vxlanConfig, ""},
}

// foreignFilters are commands of other programs that drop the overlay's packets, and commands that
// undo them.
var foreignFilters = []struct {
	name, apply, undo string
	unreachable       string // for a daemon without iptables: the command it has to suggest
}{
	{"policy of iptables-nft", "iptables-nft -P FORWARD DROP", "iptables-nft -P FORWARD ACCEPT", ""},
	{"policy of iptables-legacy", "iptables-legacy -P FORWARD DROP", "iptables-legacy -P FORWARD ACCEPT", "iptables-legacy -w -I FORWARD -s 10.42.0.0/16 -j ACCEPT"},
	{"docker in iptables-legacy", "iptables-legacy-restore --noflush <../../pkg/iptables/testdata/docker-20.rules",
		"iptables-legacy -P FORWARD ACCEPT; iptables-legacy -F; iptables-legacy -X; iptables-legacy -t nat -F; iptables-legacy -t nat -X", "iptables-legacy -w -I FORWARD"},
	{"ruleset by hand", `echo 'table inet filter { chain forward { type filter hook forward priority 0; policy drop; ct state established,related accept; }; }' | nft -f -`,
		"nft delete table inet filter", ""},
	{"firewalld", "nft -f ../../pkg/nftables/testdata/firewalld-1.3.nft; nft insert rule inet firewalld filter_INPUT accept", "nft delete table inet firewalld", ""},
	{"docker 29 in nftables", "nft -f testdata/docker-29.nft", "nft delete table ip docker-bridges", ""},
	{"both variants", "iptables-legacy -A FORWARD -j REJECT; iptables-nft -A FORWARD -j REJECT", "iptables-legacy -D FORWARD -j REJECT; iptables-nft -D FORWARD -j REJECT",
		"iptables-legacy -w -I FORWARD"},
}

// TestForeignPacketFilters: with any keeper, and any other rules that drop forwarded packets, from
// before or after the start of the daemon, packets of the overlay pass.
func TestForeignPacketFilters(t *testing.T) {
	t.Parallel()
	need(t, "iptables-nft", "iptables-legacy", "nft")
	for _, k := range keepers {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, lab.Options{Hosts: 2})
			h := c.Hosts[0]
			c.put("config", k.config)
			first := foreignFilters[0]
			c.sh(h, first.apply)
			p := c.startEach(lab.Command{Args: []string{"-ip-masq=true"}, Env: []string{"PATH=" + variantPath(t, k.iptables)}}, c.Hosts...)[0]
			c.connect()
			for _, f := range foreignFilters {
				if f.name != first.name {
					c.sh(h, f.apply)
				}
				if f.unreachable != "" && k.iptables == "" {
					c.says(p, "level=WARN", f.unreachable)
				} else {
					c.within(10*time.Second, "pings with "+f.name, func() error { return c.pingBothWays() })
				}
				c.sh(h, f.undo)
			}
			if k.iptables == "" {
				return
			}
			rules := c.sh(h, "{ iptables-nft-save; iptables-legacy-save; nft list table ip flannel-ipv4; } 2>/dev/null | "+
				"grep -e '! -s 10.42.0.0/16 -d 10.42.0.0/16.* MASQUERADE' -e 'ip saddr != 10.42.0.0/16 ip daddr 10.42.0.0/16 .*masquerade'")
			if n := strings.Count(rules, "\n"); n != 1 {
				t.Errorf("%d places masquerade:\n%s", n, rules)
			}
		})
	}
}

// pingBothWays waits a second for an answer each way between the containers of two hosts.
func (c *cluster) pingBothWays() error {
	for i, k := range c.containers {
		other := c.containers[1-i]
		ctx, cancel := context.WithTimeout(c.ctx, time.Second)
		defer cancel()
		if _, err := k.WaitPing(ctx, other.Addr); err != nil {
			return fmt.Errorf("%s does not reach %s: %w", k.Name, other.Name, err)
		}
	}
	return nil
}

// TestClosedTunnelPortIsNamed: at the start and when it becomes so, with a command that
// opens it for the tool that closes it.
func TestClosedTunnelPortIsNamed(t *testing.T) {
	t.Parallel()
	need(t, "iptables-nft", "iptables-legacy", "nft")
	const (
		input = `echo 'table inet filter { chain input { type filter hook input priority 0; policy drop; ct state established,related accept; ip protocol icmp accept; }; }' | nft -f -`
		said  = "drops packets to the tunnel port"
	)
	policy := func(iptables string) (string, string) {
		return fmt.Sprintf("%[1]s -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; %[1]s -A INPUT -p icmp -j ACCEPT; %[1]s -P INPUT DROP", iptables),
			fmt.Sprintf("%[1]s -P INPUT ACCEPT; %[1]s -F INPUT", iptables)
	}
	nft, undoNFT := policy("iptables-nft")
	legacy, undoLegacy := policy("iptables-legacy")
	c := newCluster(t, lab.Options{Hosts: 2})
	h := c.Hosts[0]
	c.put("config", vxlanConfig)
	c.sh(h, input)
	c.must(c.StartAll(c.ctx))
	c.addContainers()
	for i, f := range []struct{ name, apply, command, instead, undo string }{
		{"ruleset by hand", "true", "nft insert rule inet filter input udp dport 8472 accept", "", "nft delete table inet filter"},
		{"iptables-nft", nft, "iptables-nft -I INPUT -p udp --dport 8472 -j ACCEPT", "", undoNFT},
		{"iptables-legacy", legacy, "iptables-legacy -t filter -I INPUT -p udp --dport 8472 -j ACCEPT", "", undoLegacy},
		{"firewalld", "nft -f ../../pkg/nftables/testdata/firewalld-2.3.nft", "firewall-cmd --zone=public --add-port=8472/udp; firewall-cmd --permanent --zone=public --add-port=8472/udp",
			"nft add rule inet firewalld filter_IN_public_allow udp dport 8472 accept", "nft delete table inet firewalld"},
		{"ufw", "iptables-nft-restore <../../pkg/nftables/testdata/ufw.iptables", "ufw allow 8472/udp", "iptables-nft -A ufw-user-input -p udp -m udp --dport 8472 -j ACCEPT",
			"iptables-nft -P INPUT ACCEPT; iptables-nft -P FORWARD ACCEPT; iptables-nft -F; iptables-nft -X"},
	} {
		c.sh(h, f.apply)
		c.saysTimes(h.Flanneld(), 1, "level=WARN", said, `command="`+f.command+`"`)
		if c.pingBothWays() == nil {
			t.Errorf("%s: the port is open", f.name)
		}
		c.sh(h, map[bool]string{true: f.command, false: f.instead}[f.instead == ""])
		c.within(10*time.Second, f.name+" is over", func() error {
			if n := logged(h, "no longer: ", said); n != i+1 {
				return fmt.Errorf("%d are over:\n%s", n, h.Flanneld().Logs())
			}
			return c.pingBothWays()
		})
		c.sh(h, f.undo)
	}
}

// TestOwnedTables: a chain that only its owner can change is reported as long as it drops the
// overlay's packets, with the command if there is one. Here firewalld has no D-Bus.
func TestOwnedTables(t *testing.T) {
	t.Parallel()
	need(t, "nft")
	c := newCluster(t, lab.Options{Hosts: 2})
	h := c.Hosts[0]
	c.put("config", vxlanConfig)
	p := c.startEach(lab.Command{Env: []string{"DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent"}}, c.Hosts...)[0]
	c.connect()
	for _, o := range []struct{ table, text, command string }{
		{"firewalld", "firewalld may drop overlay packets", `command="firewall-cmd --zone=trusted --add-source=10.42.0.0/16"`},
		{"theirs", "a chain that only its owner can change drops overlay packets", `chain="nftables inet theirs forward"`},
	} {
		owner := c.nftOwner(h)
		owner("add table inet %[1]s { flags owner; }\nadd chain inet %[1]s forward { type filter hook forward priority 10; policy accept; }\n"+
			"add rule inet %[1]s forward ct state established accept\nadd rule inet %[1]s forward reject\n", o.table)
		c.saysTimes(p, 1, "level=WARN", o.text, o.command)
		if c.pingBothWays() == nil {
			t.Errorf("%s does not drop packets", o.table)
		}
		owner("insert rule inet %s forward ip saddr 10.42.0.0/16 accept\n", o.table)
		c.within(10*time.Second, o.table+" is over", func() error {
			if n := lines(p, "no longer: "+o.text); n != 1 {
				return fmt.Errorf("over %d times:\n%s", n, p.Logs())
			}
			return c.pingBothWays()
		})
	}
	c.said(p, 0, "failed to sync packet filter rules")
}

// nftOwner starts a program on a host that owns the tables which it creates, and ends with the
// test. The returned writer feeds it lines of nft's language.
func (c *cluster) nftOwner(h *lab.Host) func(format string, args ...any) {
	c.t.Helper()
	cmd := exec.Command("nft", "-i")
	in, err := cmd.StdinPipe()
	c.must(err)
	c.must(h.Do(cmd.Start))
	c.t.Cleanup(func() {
		in.Close() // then it ends
		if err := cmd.Wait(); err != nil {
			c.t.Errorf("nft: %v", err)
		}
	})
	return func(format string, args ...any) {
		c.t.Helper()
		_, err := fmt.Fprintf(in, format, args...)
		c.must(err)
	}
}

// TestManyChainsOfOthers: if other programs have thousands of chains and keep changing them,
// evaluating the path of tunnel packets takes a small share of a processor.
func TestManyChainsOfOthers(t *testing.T) {
	t.Parallel()
	need(t, "nft")
	c, h := oneHost(t, vxlanConfig)
	c.sh(h, `{ echo "add table inet w; add chain inet w in { type filter hook input priority 0; policy accept; }"
		for i in $(seq 3000); do echo "add chain inet w c$i; add rule inet w c$i udp dport 9999 drop; add rule inet w in ip saddr 1.2.$((i/250)).$((i%250)) jump c$i"; done; } | nft -f -`)
	c.must(c.StartAll(c.ctx))
	before := c.usage(h.Flanneld())
	for start := time.Now(); time.Since(start) < 6*time.Second; {
		c.sh(h, "nft add rule inet w c1 udp dport 7 drop; sleep 0.1")
	}
	after := c.usage(h.Flanneld())
	if spent := after.CPU - before.CPU; spent > 900*time.Millisecond {
		t.Errorf("%v of a processor in 6 s", spent)
	} else {
		t.Logf("%v of a processor in 6 s", spent)
	}
}
