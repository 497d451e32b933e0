package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
)

const (
	nftablesStandIn = "iptables failed, using nftables for packet filter rules meanwhile"
	iptablesStandIn = "nftables failed, using iptables for packet filter rules meanwhile"
	noAccept        = "iptables-legacy may drop overlay packets, failed to add accept rules to it"
)

// startWithPath starts a daemon on each host, with a PATH.
func (c *cluster) startWithPath(path string, hosts ...*lab.Host) []*lab.Process {
	c.t.Helper()
	return c.startEach(lab.Command{Args: []string{"-ip-masq=true", "-iptables-resync=1"}, Env: []string{"PATH=" + path}}, hosts...)
}

// startIPTablesNFT starts a daemon with a PATH that makes iptables-nft the keeper of its rules.
func startIPTablesNFT(t *testing.T, path string) (*cluster, *lab.Host, *lab.Process) {
	t.Helper()
	c, h := oneHost(t, vxlanConfig)
	p := c.startWithPath(path, h)[0]
	c.must(c.keptBy(h, "iptables-nft"))
	return c, h, p
}

// keptBy wants the rules of a host in one place and in no other.
func (c *cluster) keptBy(h *lab.Host, keeper string) error {
	rules := map[string]string{}
	for name, list := range map[string]string{
		"iptables-nft": "iptables-nft-save -t nat", "iptables-legacy": "iptables-legacy-save -t nat", "nftables": "nft list table ip flannel-ipv4",
	} {
		rules[name], _ = c.try(h, list) // an error is of what is not there, or not understood
	}
	for name, text := range rules {
		if has := strings.Contains(strings.ToLower(text), "masquerade"); has != (name == keeper) {
			return fmt.Errorf("%s masquerades: %t, want the rules by %s:\n%s", name, has, keeper, text)
		}
	}
	return nil
}

// holdLock holds the lock of a host's iptables. unlock releases it and keeps the file open; release
// closes that, too.
func (c *cluster) holdLock(h *lab.Host) (unlock, release func()) {
	c.t.Helper()
	f, err := os.OpenFile(filepath.Join(c.Dir, h.Name, "xtables.lock"), os.O_CREATE|os.O_RDONLY, 0o600)
	c.must(err)
	c.t.Cleanup(func() { f.Close() })
	c.must(unix.Flock(int(f.Fd()), unix.LOCK_EX))
	return func() { c.must(unix.Flock(int(f.Fd()), unix.LOCK_UN)) }, func() { f.Close() }
}

// TestLockOfIPTablesHeldForLong: while another program holds the lock of iptables-legacy, at the
// start or later, nftables is the fallback; what it cannot override is logged. Both end as soon as
// the lock is free.
func TestLockOfIPTablesHeldForLong(t *testing.T) {
	t.Parallel()
	need(t, "iptables-nft", "iptables-legacy", "nft")
	c := newCluster(t, lab.Options{Hosts: 3})
	outside := c.Hosts[2]
	c.Hosts = c.Hosts[:2]
	h := c.Hosts[0]
	c.put("config", vxlanConfig)
	c.must(os.MkdirAll(filepath.Join(c.Dir, h.Name), 0o755))
	c.sh(h, "iptables-legacy -P FORWARD DROP")
	unlock, _ := c.holdLock(h)
	all := c.startWithPath(variantPath(t, "legacy"), c.Hosts...)
	p := all[0]
	if took := p.ReadyAfter(); took > slow(6*time.Second) {
		t.Errorf("READY after %v", took)
	} else {
		t.Logf("READY after %v, %v where the lock is free", took.Round(time.Millisecond), all[1].ReadyAfter().Round(time.Millisecond))
	}
	c.says(p, "level=WARN", nftablesStandIn, fmt.Sprintf("PID %d)", os.Getpid()), fmt.Sprintf(`command="ps -fp %d"`, os.Getpid()))
	c.says(p, "level=WARN", noAccept, "holds the lock", `command="iptables -w -I FORWARD -s 10.42.0.0/16 -j ACCEPT; `)
	c.must(c.keptBy(h, "nftables"))
	c.addContainers()
	if c.pingBothWays() == nil {
		t.Error("the policy of iptables-legacy drops nothing")
	}
	unlock()
	took := c.within(5*time.Second, "pings once the lock is free", func() error { return c.pingBothWays() })
	t.Logf("pings %v after the lock was free", took.Round(time.Millisecond))
	c.says(p, "no longer: "+nftablesStandIn)
	c.says(p, "no longer: "+noAccept)
	c.within(5*time.Second, "the rules are where they belong", func() error { return c.keptBy(h, "iptables-legacy") })

	// A program that ignores the lock deletes the rules.
	_, release := c.holdLock(h)
	c.sh(h, "export XTABLES_LOCKFILE="+filepath.Join(c.Dir, "another.lock")+"; iptables-legacy -P FORWARD ACCEPT; "+
		"for t in nat filter; do iptables-legacy -t $t -F; iptables-legacy -t $t -X; done")
	c.within(10*time.Second, "nftables keeps the rules", func() error { return c.keptBy(h, "nftables") })
	c.must(c.pingBothWays())
	if got := c.seen(&c.containers[0].Endpoint, &outside.Endpoint); got != h.Addr {
		t.Errorf("seen from outside as %s", got)
	}
	written := lines(p, "packet filter rules\"")
	if share := c.share(3*time.Second, p); share > 0.05 {
		t.Errorf("%.2f %% of a processor while it waits", 100*share)
	}
	if n := lines(p, "packet filter rules\"") - written; n > 0 {
		t.Errorf("%d times written meanwhile:\n%s", n, p.Logs())
	}
	release()
	took = c.within(5*time.Second, "the rules are back", func() error { return c.keptBy(h, "iptables-legacy") })
	t.Logf("rules are back %v after the lock was free", took.Round(time.Millisecond))
	c.said(p, 2, "level=WARN", nftablesStandIn)
}

// TestRuleThatIPTablesCannotRead: while a rule of nftables prevents iptables from listing its
// tables, nftables is the fallback, and iptables is used again when the rule is gone.
func TestRuleThatIPTablesCannotRead(t *testing.T) {
	t.Parallel()
	need(t, "iptables-nft", "nft")
	c := newCluster(t, lab.Options{Hosts: 2})
	h := c.Hosts[0]
	c.put("config", vxlanConfig)
	c.sh(h, "iptables-nft -P FORWARD DROP")
	p := c.startWithPath(variantPath(t, "nft"), c.Hosts...)[0]
	c.connect()
	for range 2 {
		c.must(c.keptBy(h, "iptables-nft"))
		c.sh(h, "nft add rule ip filter FORWARD meta cpu 77 drop; nft flush chain ip filter FLANNEL-FWD; nft flush chain ip nat FLANNEL-POSTRTG")
		c.within(10*time.Second, "nftables keeps the rules", func() error { return c.keptBy(h, "nftables") })
		c.says(p, "level=WARN", nftablesStandIn, "iptables-save")
		c.within(5*time.Second, "pings", func() error { return c.pingBothWays() })
		rule := "nft delete rule ip filter FORWARD handle $(nft -a list chain ip filter FORWARD | sed -n '/meta cpu/s/.*# handle //p')"
		c.sh(h, rule)
		took := c.within(10*time.Second, "iptables keeps the rules", func() error { return c.keptBy(h, "iptables-nft") })
		t.Logf("back after %v", took.Round(time.Millisecond))
		c.must(c.pingBothWays())
	}
	c.saysTimes(p, 2, "level=WARN", nftablesStandIn)
	c.saysTimes(p, 2, "no longer: "+nftablesStandIn)
}

// TestIPTablesThatCannotBeUsed: while iptables fails for any reason, at the start or later,
// nftables is the fallback; the start does not wait for iptables.
func TestIPTablesThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	need(t, "iptables-nft", "nft")
	for _, f := range []struct {
		fault, said string
		standIn     bool // it is a fault, not a choice
	}{
		{"slow", `err="no end after 3s"`, true},
		{"fails", "exit status 111: broken", true},
		{"not executable", "permission denied", true},
		{"absent", `msg="selected packet filter" keeper=nftables reason="iptables is not installed`, false},
	} {
		t.Run(f.fault, func(t *testing.T) {
			t.Parallel()
			c, h := oneHost(t, vxlanConfig)
			programs := newFaultyIPTables(t)
			programs.be(f.fault)
			p := c.startWithPath(programs.dir, h)[0]
			if took := p.ReadyAfter(); took > slow(8*time.Second) {
				t.Errorf("READY after %v", took)
			}
			c.must(c.keptBy(h, "nftables"))
			c.says(p, f.said)
			if n := lines(p, nftablesStandIn); (n > 0) != f.standIn {
				t.Errorf("said %d times that nftables stands in:\n%s", n, p.Logs())
			}
			back := func() {
				t.Helper()
				programs.be("healthy")
				c.sh(h, "nft add table ip somebody; nft delete table ip somebody") // so that it looks
				c.within(15*time.Second, "iptables keeps the rules", func() error { return c.keptBy(h, "iptables-nft") })
				c.says(p, `msg="selected packet filter" keeper=iptables`)
			}
			back()
			if f.fault == "slow" {
				return // it is slow to see, too
			}
			programs.be(f.fault)
			c.sh(h, "nft flush chain ip nat FLANNEL-POSTRTG")
			c.within(10*time.Second, "nftables keeps the rules", func() error { return c.keptBy(h, "nftables") })
			back()
			if n := lines(p, nftablesStandIn); f.standIn && n != 4 || !f.standIn && n > 0 {
				t.Errorf("%d lines that nftables stands in:\n%s", n, p.Logs())
			}
		})
	}
}

// TestIPTablesThatHangs: a command that does not end is waited for once, for a bounded time;
// nothing waits for the later ones.
func TestIPTablesThatHangs(t *testing.T) {
	t.Parallel()
	need(t, "iptables-nft", "nft")
	programs := newFaultyIPTables(t)
	programs.be("healthy")
	c, h, p := startIPTablesNFT(t, programs.dir)
	programs.be("hangs")
	c.sh(h, "nft flush chain ip nat FLANNEL-POSTRTG")
	took := c.within(10*time.Second, "nftables keeps the rules", func() error { return c.keptBy(h, "nftables") })
	t.Logf("after %v", took.Round(time.Millisecond))
	c.says(p, "level=WARN", nftablesStandIn, "no end after 3s")
	for range 3 {
		c.sh(h, "nft delete table ip flannel-ipv4")
		c.within(3*time.Second, "a repair", func() error { return c.keptBy(h, "nftables") })
	}
}

// TestLongFirstLook: the start does not wait for the end of the first sync of the rules, which
// continues.
func TestLongFirstLook(t *testing.T) {
	t.Parallel()
	need(t, "iptables-nft", "nft")
	c, h := oneHost(t, vxlanConfig)
	programs := newFaultyIPTables(t)
	programs.be("slow")
	p := c.launchCommand(h, lab.Command{
		Args: []string{"-ip-masq=true", "-iptables-resync=1"}, Env: []string{"PATH=" + programs.dir},
	})
	c.says(p, "programmed the kernel")
	c.must(p.Pause()) // as on a machine that is busy with something else
	pauseFor(c.ctx, 6*time.Second)
	c.must(p.Signal(syscall.SIGCONT))
	programs.be("healthy")
	c.must(p.WaitReady(c.ctx))
	for range 2 {
		c.within(10*time.Second, "rules", func() error {
			if p.Exited() {
				t.Fatalf("flanneld has ended:\n%s", p.Logs())
			}
			return c.keptBy(h, "iptables-nft")
		})
		c.sh(h, "iptables-nft -t nat -F FLANNEL-POSTRTG")
	}
}

// TestIPTablesOfAnotherVariant: when the host's iptables is the other variant from now on, that one
// has the rules, and the one before no more.
func TestIPTablesOfAnotherVariant(t *testing.T) {
	t.Parallel()
	need(t, "iptables-nft", "iptables-legacy", "nft")
	dir := t.TempDir()
	linkIPTables(t, dir, "nft", "iptables")
	c, h, p := startIPTablesNFT(t, dir+":"+os.Getenv("PATH"))
	for _, variant := range []string{"legacy", "nft"} {
		linkIPTables(t, dir, variant, "iptables")
		c.within(5*time.Second, variant, func() error { return c.keptBy(h, "iptables-"+variant) })
	}
	c.said(p, 3, "selected packet filter", "keeper=iptables")
}

// TestNoDescriptorsForIPTables: a daemon that has used up its file descriptors keeps its rules with
// the ones that it has, and receives events as before when there are some again.
func TestNoDescriptorsForIPTables(t *testing.T) {
	t.Parallel()
	need(t, "iptables-nft", "nft")
	c, h, p := startIPTablesNFT(t, variantPath(t, "nft"))
	descriptors := func(most uint64) {
		t.Helper()
		var limit unix.Rlimit
		c.must(unix.Prlimit(p.PID(), unix.RLIMIT_NOFILE, nil, &limit))
		limit.Cur = most
		c.must(unix.Prlimit(p.PID(), unix.RLIMIT_NOFILE, &limit, nil))
	}
	const damage = "nft flush chain ip nat FLANNEL-POSTRTG"
	descriptors(3)
	c.sh(h, damage)
	c.within(10*time.Second, "nftables keeps the rules", func() error { return c.keptBy(h, "nftables") })
	c.says(p, nftablesStandIn, "too many open files")
	c.says(p, "level=WARN", "cannot watch packet filter rules")
	descriptors(1024)
	c.within(15*time.Second, "iptables keeps the rules", func() error { return c.keptBy(h, "iptables-nft") })
	c.says(p, "no longer: cannot watch packet filter rules")
	c.sh(h, damage)
	c.within(5*time.Second, "a repair", func() error { return c.keptBy(h, "iptables-nft") })
}

// TestNFTablesThatCannotBeWritten is the reverse: another program owns the table that the config
// selects for the rules.
func TestNFTablesThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	need(t, "iptables-nft", "nft")
	c, h := oneHost(t, keepers[2].config)
	owner := c.nftOwner(h)
	owner("add table ip flannel-ipv4 { flags owner; }\n")
	c.within(5*time.Second, "the table is there", func() error {
		_, err := c.try(h, "nft list table ip flannel-ipv4")
		return err
	})
	p := c.startWithPath(variantPath(t, "nft"), h)[0]
	c.says(p, "level=WARN", iptablesStandIn, "operation not permitted")
	c.must(c.keptBy(h, "iptables-nft"))
	owner("delete table ip flannel-ipv4\n")
	c.within(10*time.Second, "nftables keeps the rules", func() error { return c.keptBy(h, "nftables") })
	c.says(p, "no longer: "+iptablesStandIn)
}

// TestLegacyIPTablesInstalledLater: tables of a variant that is not installed are noticed, and the
// variant is looked for again.
func TestLegacyIPTablesInstalledLater(t *testing.T) {
	t.Parallel()
	need(t, "iptables-legacy", "nft")
	c := newCluster(t, lab.Options{Hosts: 2})
	h, dir := c.Hosts[0], t.TempDir()
	c.put("config", keepers[2].config)
	p := c.startWithPath(dir, c.Hosts...)[0]
	c.connect()
	c.sh(h, "iptables-legacy -P FORWARD DROP") // by a lock that this daemon does not watch
	c.says(p, "level=WARN", noAccept, "iptables is not installed")
	if c.pingBothWays() == nil {
		t.Error("the policy of iptables-legacy drops nothing")
	}
	linkIPTables(t, dir, "legacy", "iptables-legacy")
	c.sh(h, "nft add table ip somebody; nft delete table ip somebody") // so that it looks
	c.within(10*time.Second, "pings", func() error { return c.pingBothWays() })
	c.says(p, "no longer: "+noAccept)
	c.must(c.keptBy(h, "nftables"))
}

// TestRulesThatCannotBeRemovedAtFirst: rules that iptables holds from an earlier choice are removed
// as soon as iptables works, and nothing else waits for that.
func TestRulesThatCannotBeRemovedAtFirst(t *testing.T) {
	t.Parallel()
	need(t, "iptables-nft", "nft")
	programs := newFaultyIPTables(t)
	programs.be("healthy")
	c, h, p := startIPTablesNFT(t, programs.dir)
	c.stop(p)
	c.put("config", keepers[2].config)
	programs.be("fails")
	p = c.startWithPath(programs.dir, h)[0]
	const left = "failed to remove earlier iptables rules, will retry"
	c.says(p, "level=WARN", left, "broken")
	c.said(p, 0, "failed to sync packet filter rules")
	c.sh(h, "nft delete table ip flannel-ipv4")
	c.within(5*time.Second, "a repair", func() error {
		_, err := c.try(h, "nft list table ip flannel-ipv4")
		return err
	})
	programs.be("healthy")
	c.within(15*time.Second, "only nftables keeps rules", func() error { return c.keptBy(h, "nftables") })
	c.says(p, "no longer: "+left)
}
