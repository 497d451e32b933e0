package iptables

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
)

const strangers = `
	iptables -P FORWARD DROP
	iptables -N MINE
	iptables -A MINE -p tcp --dport 22 -m comment --comment 'it'"'"'s "mine" \ -j FLANNEL-FWD' -j ACCEPT
	iptables -A FORWARD -i eth7 -j MINE
	iptables -A FORWARD -s 10.42.0.0/16 -d 10.42.0.0/16 -j ACCEPT
	iptables -t nat -A POSTROUTING -s 10.42.0.0/16 -o eth7 -j MASQUERADE
	iptables -t nat -A POSTROUTING -s 10.42.0.0/16 -d 198.51.100.0/24 -m comment --comment "flanneld masquerade" -j RETURN
	iptables -t nat -A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 8080
	iptables -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
`

// twoLines is a rule that iptables-save prints in a form that iptables-restore cannot parse.
const twoLines = `
	iptables -A FORWARD -m comment --comment 'two
lines' -s 192.0.2.0/24 -j DROP
`

func TestSyncFromNothing(t *testing.T) {
	eachVariant(t, func(b *bed) {
		t := b.t
		want := everything(four)
		b.ran()
		changes := b.sync(want, four)
		if len(changes) != 6 {
			t.Errorf("changes: %q", changes)
		}
		b.differ("commands", strings.Join(b.ran(), "\n"), "iptables-save\niptables-restore --noflush --wait=5\niptables-save")
		rules := b.rules()
		b.differ("jump", chain(rules, "nat", "POSTROUTING"), "-m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n")
		b.differ("jump", chain(rules, "filter", "FORWARD"), "-m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n")
		if strings.Contains(rules, "*raw") {
			t.Errorf("table raw was loaded:\n%s", rules)
		}
		b.settled(want, four)
		b.differ("commands of a second pass", strings.Join(b.ran(), "\n"), "iptables-save")

		b.sync(nil, four)
		b.differ("rules after removal", foreign(b.rules()), "")
		if rules := b.rules(); strings.Contains(rules, "FLANNEL") {
			t.Errorf("left:\n%s", rules)
		}
		b.settled(nil, four)
	})
}

func TestIPv6(t *testing.T) {
	eachVariant(t, func(b *bed) {
		tables, err := newTables(firewall.IPv6)
		b.must(err)
		b.Tables = tables
		b.others("ip6tables -A FORWARD -d fd42::9 -j DROP; ip6tables -t raw -A PREROUTING -d fd42:0:0:7::2 -j DROP")
		if changes := b.sync(everything(six), six, four); len(changes) != 8 {
			b.t.Errorf("changes: %q", changes)
		}
		b.settled(everything(six), six)
		b.sync(nil, six)
		b.settled(nil)
	})
}

// TestDamage: another program changes our rules in every way. Each sync restores exactly the same
// listing.
func TestDamage(t *testing.T) {
	damages := map[string]string{
		"nat flushed":          "iptables -t nat -F",
		"forward flushed":      "iptables -F FORWARD",
		"all of filter gone":   "iptables -F; iptables -X",
		"all of nat gone":      "iptables -t nat -F; iptables -t nat -X",
		"chain emptied":        "iptables -t nat -F FLANNEL-POSTRTG",
		"rule deleted":         "iptables -t nat -D FLANNEL-POSTRTG 4",
		"last rule deleted":    "iptables -D FLANNEL-FWD 2",
		"reordered":            "iptables -t nat -D FLANNEL-POSTRTG 1; iptables -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment 'flanneld masq' -j RETURN",
		"rule added":           "iptables -I FLANNEL-FWD -p tcp -j DROP",
		"rule doubled":         "iptables -A FLANNEL-FWD -d 10.42.0.0/16 -m comment --comment 'flanneld forward' -j ACCEPT",
		"comment lost":         "iptables -R FLANNEL-FWD 2 -d 10.42.0.0/16 -j ACCEPT",
		"other ports":          "iptables -t nat -R FLANNEL-POSTRTG 5 ! -s 10.42.0.0/16 -d 10.42.0.0/16 -m comment --comment 'flanneld masq' -j MASQUERADE",
		"other mark":           "iptables -t nat -R FLANNEL-POSTRTG 1 -m mark --mark 0x4000 -m comment --comment 'flanneld masq' -j RETURN",
		"jump deleted":         "iptables -t nat -D POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG",
		"jumps doubled":        "iptables -A FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD; iptables -t nat -A POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG",
		"plain jumps":          "iptables -I FORWARD -j FLANNEL-FWD; iptables -t nat -A POSTROUTING -j FLANNEL-POSTRTG",
		"plain jump instead":   "iptables -D FORWARD 1; iptables -I FORWARD -j FLANNEL-FWD",
		"jumps of three kinds": "for c in a 'flanneld masq' b 'flanneld masq'; do iptables -t nat -I POSTROUTING -m comment --comment \"$c\" -j FLANNEL-POSTRTG; done",
	}
	eachVariant(t, func(b *bed) {
		want := everything(four)
		b.others("iptables -N MINE")
		b.sync(want, four)
		right := b.rules()
		for _, name := range slices.Sorted(maps.Keys(damages)) {
			b.others(damages[name])
			if b.rules() == right {
				b.t.Errorf("%s: no damage", name)
			}
			if strings.Contains(damages[name], "iptables -X") {
				b.others("iptables -N MINE")
			}
			b.sync(want, four)
			b.differ(name, b.rules(), right)
			b.settled(want, four)
		}
	})
}

// TestBesideOthers has rules of others before, between and behind ours.
func TestBesideOthers(t *testing.T) {
	eachVariant(t, func(b *bed) {
		b.others(strangers + twoLines)
		before := b.rules()
		for _, o := range []firewall.Overlay{four, other, four} {
			want := everything(o)
			b.sync(want, four, other)
			b.differ("rules of others", foreign(b.rules()), foreign(before))
			b.others("iptables -I FORWARD -i eth8 -j DROP; iptables -t nat -I POSTROUTING -o eth8 -j ACCEPT; iptables -t nat -A POSTROUTING -o eth9 -j ACCEPT")
			b.sync(want, four, other)
			rules := chain(b.rules(), "filter", "FORWARD")
			if !strings.HasPrefix(rules, "-m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n-i eth8 -j DROP\n") {
				b.t.Errorf("jump is not first:\n%s", rules)
			}
			b.others("iptables -D FORWARD -i eth8 -j DROP; iptables -t nat -D POSTROUTING -o eth8 -j ACCEPT; iptables -t nat -D POSTROUTING -o eth9 -j ACCEPT")
			b.differ("rules of others", foreign(b.rules()), foreign(before))
			b.settled(want, four, other)
		}
		b.sync(nil, four, other)
		b.differ("rules of others after removal", b.rules(), before)
	})
}

// TestRemoveWhatOthersUse finds a chain of ours that the kernel cannot delete.
func TestRemoveWhatOthersUse(t *testing.T) {
	eachVariant(t, func(b *bed) {
		b.sync(everything(four))
		b.others("iptables -N MINE; iptables -A MINE -j FLANNEL-FWD; iptables -t nat -A POSTROUTING -o eth7 -g FLANNEL-POSTRTG")
		changes := b.sync(nil)
		if len(changes) != 3 || !strings.Contains(strings.Join(changes, ""), "other rules still reference") {
			b.t.Errorf("changes: %q", changes)
		}
		rules := b.rules()
		b.differ("our chain", chain(rules, "filter", "FLANNEL-FWD"), "")
		b.differ("another's chain", chain(rules, "filter", "MINE"), "-j FLANNEL-FWD\n")
		b.differ("forward", chain(rules, "filter", "FORWARD"), "")
		b.differ("postrouting", chain(rules, "nat", "POSTROUTING"), "-o eth7 -g FLANNEL-POSTRTG\n")
		b.settled(nil)
		b.others("iptables -F MINE; iptables -t nat -F POSTROUTING")
		b.sync(nil)
		if rules := b.rules(); strings.Contains(rules, "FLANNEL") {
			b.t.Errorf("left:\n%s", rules)
		}
	})
}

// TestRaw asks for the rules in table raw, which are there while needed.
func TestRaw(t *testing.T) {
	eachVariant(t, func(b *bed) {
		want := everything(four)
		b.others("iptables -t raw -A PREROUTING -i eth7 -j ACCEPT")
		b.sync(want)
		b.differ("raw without a drop", chain(b.rules(), "raw", "PREROUTING"), "-i eth7 -j ACCEPT\n")
		b.others("iptables -t raw -I PREROUTING -d 10.42.7.2 ! -i docker0 -j DROP")
		b.sync(want)
		b.differ("raw with a drop", chain(b.rules(), "raw", "PREROUTING"),
			"-m comment --comment \"flanneld forward\" -j FLANNEL-PRERTG\n-d 10.42.7.2/32 ! -i docker0 -j DROP\n-i eth7 -j ACCEPT\n")
		b.settled(want)
		b.others("iptables -t raw -D PREROUTING -d 10.42.7.2 ! -i docker0 -j DROP")
		b.sync(want)
		b.differ("raw after it", chain(b.rules(), "raw", "PREROUTING"), "-i eth7 -j ACCEPT\n")
		if rules := b.rules(); strings.Contains(rules, "FLANNEL-PRERTG") {
			b.t.Errorf("left:\n%s", rules)
		}
	})
}

// TestDocker starts on hosts with rules of Docker, which continues to run.
func TestDocker(t *testing.T) {
	const jump = "-m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n"
	eachVariant(t, func(b *bed) {
		for _, release := range []string{"docker-20", "docker-28"} {
			want := everything(four)
			b.load(release + ".rules")
			before := b.rules()
			b.sync(want, four)
			b.differ(release+": rules of others", foreign(b.rules()), foreign(before))
			b.load(release + ".create")
			created := b.rules()
			b.sync(want, four)
			rules := b.rules()
			b.differ(release+": rules of others later", foreign(rules), foreign(created))
			if forward := chain(rules, "filter", "FORWARD"); !strings.HasPrefix(forward, "-j DOCKER-USER\n"+jump) {
				b.t.Errorf("%s: jump is not behind DOCKER-USER:\n%s", release, forward)
			}
			raw := chain(rules, "raw", "PREROUTING")
			if first := strings.HasPrefix(raw, strings.Replace(jump, "FWD", "PRERTG", 1)); first != (release == "docker-28") {
				b.t.Errorf("%s: table raw:\n%s", release, raw)
			}
			b.settled(want, four)
			b.sync(nil, four)
			b.differ(release+": removed", foreign(b.rules()), foreign(created))
		}
	})
}

// TestConcurrentDeletion: another program deletes a rule, twice, between the listing and the write,
// so that the transaction fails.
func TestConcurrentDeletion(t *testing.T) {
	eachVariant(t, func(b *bed) {
		rule := "FORWARD -s 10.42.0.0/16 -m comment --comment 'flanneld forward' -j ACCEPT"
		b.others("iptables -A " + rule)
		before := b.restore
		b.restore = filepath.Join(b.t.TempDir(), "overtaking")
		b.must(os.WriteFile(b.restore, []byte(`#!/bin/sh
			PATH=`+b.bin+`:$PATH
			if mkdir $0.1; then iptables -F FORWARD; iptables -A `+strings.Replace(rule, "-s", "-d", 1)+`
			elif mkdir $0.2; then iptables -F FORWARD; fi 2>&-
			exec `+before+` "$@"`), 0o700))
		b.ran()
		b.sync(everything(four), four)
		if ran := b.ran(); len(ran) != 7 {
			b.t.Errorf("commands: %q", ran)
		}
		b.settled(everything(four), four)
	})
}

// TestLocked: another program holds the lock for longer than the timeout: no command is started
// that would wait for it, too, and the error names the program.
func TestLocked(t *testing.T) {
	b := newBed(t, "legacy")
	if !b.lock.free() {
		t.Error("the lock is held before anybody has used it")
	}
	f, err := os.OpenFile(b.lock.path, os.O_CREATE|os.O_RDONLY, 0o600)
	b.must(err)
	defer f.Close()
	b.must(unix.Flock(int(f.Fd()), unix.LOCK_EX))
	b.ran()
	begun := time.Now()
	_, err = b.Sync(t.Context(), oneDaemon(), everything(four))
	locked := firewall.Locked(err)
	if locked == nil || firewall.Absent(err) || locked.PID != os.Getpid() || locked.Free() {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begun); took < lockTimeout || b.lock.free() {
		t.Errorf("after %v, while the lock is free: %t", took, b.lock.free())
	}
	b.differ("commands", strings.Join(b.ran(), "\n"), "iptables-save")
	b.must(os.Rename(b.lock.path, b.lock.path+".old")) // nobody waits for a file without the name
	if !b.lock.free() {
		t.Error("the lock is held under another name")
	}
	b.must(os.Rename(b.lock.path+".old", b.lock.path))
	if b.lock.free() {
		t.Error("the lock is free under its name")
	}
	b.must(unix.Flock(int(f.Fd()), unix.LOCK_UN))
	if !b.lock.free() {
		t.Error("the lock is held by nobody")
	}
	b.sync(everything(four))
	b.settled(everything(four))
}

// TestLockTakenMeanwhile is the same where the lock is taken after it was seen free.
func TestLockTakenMeanwhile(t *testing.T) {
	for says, locked := range map[string]bool{
		"Another app is currently holding the xtables lock.": true,
		"Fatal: can not open lock file":                      false,
	} {
		tables := fakeTables(t, anyVersion, "", "echo "+says+" >&2; exit 4")
		_, err := tables.Sync(t.Context(), oneDaemon(), everything(four))
		if err == nil || (firewall.Locked(err) != nil) != locked || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v", err)
		}
	}
}

func (b *bed) listing() listing {
	b.t.Helper()
	l, _, err := parseListing(b.others("iptables-save"))
	b.must(err)
	return l
}
