package filter

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/firewall"
	"flanneld/pkg/iptables"
	"flanneld/pkg/lab/netns"
	"flanneld/pkg/nftables"
)

// TestKeepersFulfilTheContract checks the assumptions of a filter for each keeper, in a real
// kernel.
func TestKeepersFulfilTheContract(t *testing.T) {
	if testing.Short() {
		t.Skip("writes into a kernel")
	}
	ipt := func() *iptables.Tools { return iptables.NewTools(time.Second) }
	for _, c := range []struct {
		name    string
		command string // that is installed as iptables
		make    func() firewall.Keeper
		place   firewall.Place
	}{
		{"iptables is iptables-legacy", "iptables-legacy", func() firewall.Keeper { return ipt().Installed() }, firewall.Legacy},
		{"iptables is iptables-nft", "iptables-nft", func() firewall.Keeper { return ipt().Installed() }, firewall.Compat},
		{"iptables-legacy", "", func() firewall.Keeper { return ipt().Legacy() }, firewall.Legacy},
		{"iptables-nft", "", func() firewall.Keeper { return ipt().Compat() }, firewall.Compat},
		{"nftables", "", func() firewall.Keeper { return new(nftables.Keeper) }, firewall.Native},
	} {
		t.Run(c.name, func(t *testing.T) {
			install(t, c.command)
			netns.Enter(t)
			// As in daemons, both families have the same keepers. An abandoned one would close its lock
			// file whenever it is collected, which looks like a change by others.
			k, neighbour := c.make(), c.make()
			for _, k := range []firewall.Keeper{k, neighbour} {
				if k, ok := k.(*nftables.Keeper); ok {
					defer k.Close()
				}
			}
			for _, o := range []firewall.Overlay{four, six} {
				keep(t, o, k, neighbour, c.place)
			}
		})
	}
}

// install makes the iptables commands of one variant the installed ones for the rest of a test.
func install(t *testing.T, command string) {
	t.Helper()
	dir := t.TempDir()
	for _, to := range []string{command, "ip6" + command[min(2, len(command)):]} {
		for _, does := range []string{"", "-save", "-restore"} {
			if command == "" {
				continue
			}
			path, err := exec.LookPath(to + does)
			if err != nil {
				t.Skipf("needs iptables: %v", err)
			}
			name := map[bool]string{true: "iptables", false: "ip6tables"}[to == command]
			if err := os.Symlink(path, filepath.Join(dir, name+does)); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "xtables.lock"))
}

// hasNFT reports whether nft(8) is installed.
func hasNFT() bool {
	_, err := exec.LookPath("nft")
	return err == nil
}

// keep syncs the rules of two networks in one place, each with its keeper.
func keep(t *testing.T, o firewall.Overlay, k, neighbour firewall.Keeper, place firewall.Place) {
	t.Helper()
	theirs := firewall.Overlay{Network: old.Network, Subnet: old.Subnet}
	if firewall.FamilyOf(o.Network.Addr()) == firewall.IPv6 {
		theirs = firewall.Overlay{Network: other6.Network, Subnet: other6.Subnet}
	}
	ruleset := func(o firewall.Overlay) firewall.Ruleset {
		return firewall.Ruleset{
			Family: firewall.FamilyOf(o.Network.Addr()), Owner: firewall.Owner{Network: o.Network, Overlays: []firewall.Overlay{o}},
			Chains: firewall.Rules(firewall.Options{Overlay: o, Masquerade: true, RandomPorts: true, Forward: true, Tunnel: firewall.Tunnel{Port: 8472}}),
		}
	}
	ours, others := ruleset(o), ruleset(theirs)
	none := ours
	none.Chains = nil
	sync := func(k firewall.Keeper, r firewall.Ruleset, writes bool) {
		t.Helper()
		changes, err := k.Sync(t.Context(), r)
		if firewall.Absent(err) {
			t.Skip(err)
		}
		if err != nil || len(changes) > 0 != writes {
			t.Fatalf("%s: changes %q, %v; want some: %t", r.Owner.Network, changes, err, writes)
		}
	}
	plans := func(r firewall.Ruleset, some bool) (commands []string) {
		t.Helper()
		changes, err := k.Plan(t.Context(), r)
		if firewall.Absent(err) {
			t.Skip(err)
		}
		if err != nil || len(changes) > 0 != some {
			t.Fatalf("plan %q, %v; want some: %t", changes, err, some)
		}
		for _, c := range changes {
			if c.Kind == "" || c.Verb == "" || !strings.HasPrefix(c.Object, c.Kind+" ") {
				t.Errorf("%+v", c)
			}
			commands = append(commands, c.Command)
		}
		return commands
	}
	paste := func(r firewall.Ruleset) {
		t.Helper()
		commands := strings.Join(plans(r, true), "\n")
		if out, err := exec.Command("sh", "-ec", commands).CombinedOutput(); err != nil {
			t.Fatalf("%s\n%v: %s", commands, err, out)
		}
		plans(r, false)
		sync(k, r, false)
	}
	plans(none, false)
	if place != firewall.Native || hasNFT() {
		paste(ours)
		paste(none)
	}
	sync(k, ours, true)
	sync(k, ours, false)
	if got := k.Traits(ours.Family); got.Place != place || got.Name == "" || got.Resync == 0 {
		t.Errorf("traits %+v, want place %d", got, place)
	}
	sync(neighbour, others, true)
	sync(k, ours, false)
	plans(none, true)
	if place != firewall.Native || hasNFT() {
		paste(none)
		paste(ours)
	}
	sync(k, ours, false) // nothing was removed
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	signals, err := k.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if signals != nil {
		defer func() {
			stop()
			for range signals { // until it has ended, for it recreates a lock file that is removed
			}
		}()
	}
	sync(k, none, true)
	sync(k, none, false)
	plans(none, false)
	select {
	case <-signals:
		t.Error("our own changes are signalled as those of others")
	case <-time.After(100 * time.Millisecond):
	}
	sync(neighbour, others, false)
	others.Chains = nil
	sync(neighbour, others, true)
	if place == firewall.Compat { // nftables tell
		return
	}
	select {
	case <-signals:
	case <-time.After(10 * time.Second):
		t.Error("changes by others are not signalled")
	}
}
