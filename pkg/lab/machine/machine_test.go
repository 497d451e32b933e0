//go:build system

package machine_test

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/machine"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m.Run)) }

// TestRoot creates the root file systems that the other tests need, if they do not exist, so that
// "make caches" can create them in advance.
func TestRoot(t *testing.T) {
	if err := machine.Missing(); err != nil {
		t.Fatal(err)
	}
	suite, err := machine.Suite()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []machine.Kind{
		{Suite: suite}, {Suite: machine.Bookworm, Managers: true}, {Suite: machine.Trixie, Managers: true},
	} {
		first, err := machine.RootOf(t.Context(), k, func(s string) { t.Log(s) })
		if err != nil {
			t.Fatal(err)
		}
		if again, err := machine.RootOf(t.Context(), k, func(s string) { t.Error(s) }); err != nil || again != first {
			t.Errorf("%s the second time, %s the first, %v", again, first, err)
		}
	}
}

// TestSystemMachine checks that a host keeps its disk over a reboot and nothing else, and leaves
// nothing behind.
func TestSystemMachine(t *testing.T) {
	if err := machine.Missing(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	root, err := machine.Root(ctx, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(ctx, lab.Options{Hosts: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	m, err := machine.New(ctx, machine.Options{
		Name: "m1", Addr: netip.MustParsePrefix("172.31.200.11/22"), Root: root, Lab: l, Holder: l.Hosts[0],
	})
	if err != nil {
		t.Fatal(err)
	}
	run := func(script string) string {
		t.Helper()
		out, err := m.Run(ctx, script)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	look := "systemctl is-system-running; hostname; ip -o -4 addr show eth0; ip -o link show type dummy; cat /etc/kept; ls /run/lost* || true"
	run("ip link add gone type bridge; echo kept >/etc/kept; echo lost >/run/lost; test -S /run/docker.sock")
	ping := "ping -c 1 -W 5 " + l.Hosts[0].Addr.String()
	run(ping)
	mac := run("cat /sys/class/net/eth0/address")
	if err := m.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	out := run(look)
	for _, want := range []string{"running", "m1", "172.31.200.11/22", "kept"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q lacks %q", out, want)
		}
	}
	if links := run("ip -o link"); strings.Contains(links, "gone") || strings.Contains(out, "lost") {
		t.Errorf("kept over a reboot: %s %s", out, links)
	}
	if now := run("cat /sys/class/net/eth0/address"); now != mac {
		t.Errorf("MAC %s, was %s", now, mac)
	}
	run(ping)

	if err := m.Close(ctx); err != nil {
		t.Error(err)
	}
	id := strings.TrimSuffix(l.Fabric.Name, "fabric")
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	for _, pattern := range []string{"/run/netns/", "/sys/fs/cgroup/", "/sys/fs/cgroup/*/", "/run/systemd/nspawn/propagate/"} {
		if left, _ := filepath.Glob(pattern + id + "*"); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}
}
