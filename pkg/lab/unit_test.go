package lab

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestUnitRestricts runs commands on a host of a lab under the shipped unit. Each works or is
// refused as under systemd.
func TestUnitRestricts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces; run it with sudo")
	}
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("needs systemd-analyze, which tells what a unit's filter of system calls allows")
	}
	unit, err := ReadUnit("../../dist/flanneld.service")
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := New(ctx, Options{Hosts: 1, Flanneld: "/bin/sh", Unit: unit})
	must(t, err)
	defer l.Close()
	h := l.Hosts[0]
	for _, c := range []struct {
		command string
		works   bool
	}{
		{"grep -q 'CapEff:.0000000000003004' /proc/self/status && grep -q 'CapBnd:.0000000000003004' /proc/self/status", true},
		{"grep -q 'NoNewPrivs:.1' /proc/self/status && grep -q 'Seccomp:.2' /proc/self/status", true},
		{"[ $(ulimit -n) -le 65536 ]", true},
		{"ip link add x0 type veth peer name x1 && ip link del x0", true}, // NET_ADMIN
		{"cat /dev/null >/dev/null", true},
		{"echo 0 >/proc/sys/net/ipv4/conf/lo/forwarding", true},
		{"echo x >/proc/sys/kernel/core_pattern", false},
		{"echo x >" + filepath.Dir(h.SubnetFile) + "/x", true},
		{"echo x >" + filepath.Join(l.Dir, h.Name, "x"), false}, // outside the writable directory
		{"echo x >" + filepath.Join(l.Dir, h.Name, "xtables.lock"), true},
		{"rm " + filepath.Join(l.Dir, h.Name, "xtables.lock"), false},
		{"echo x >/etc/x-of-a-test", false},
		{"readlink /proc/1/exe", false},
		{"unshare -n true", false},
		{"nsenter --net=/proc/self/ns/net true", false},
		{"chown 1:1 " + filepath.Dir(h.SubnetFile), false},    // @privileged
		{"nice -n 5 true 2>&1 | grep -q 'cannot set'", true},  // @resources
		{"mount -t tmpfs tmpfs " + h.NS.Path() + "-x", false}, // SYS_ADMIN
	} {
		p, err := h.Run(Command{Args: []string{"-c", c.command}})
		must(t, err)
		code, err := p.Wait(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if works := code == 0; works != c.works || strings.Contains(p.Logs(), "unit:") {
			t.Errorf("%s: exit code %d\n%s", c.command, code, p.Logs())
		}
	}
}

// TestUnitWithAnUnknownSetting checks that a new setting of the unit must be applied by this
// package, or listed as not enforced.
func TestUnitWithAnUnknownSetting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.service")
	for content, want := range map[string]string{
		"[Service]\nPrivateNetwork=yes\n":                 "PrivateNetwork=yes: neither imposed",
		"[Service]\nCapabilityBoundingSet=CAP_SYS_BOOT\n": "CAP_SYS_BOOT is unknown",
		"[Unit]\nX=y\n[Service]\nType=\\\nnotify\n":       "restricts no capabilities",
	} {
		must(t, os.WriteFile(path, []byte(content), 0o644))
		if _, err := ReadUnit(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", content, err)
		}
	}
}
