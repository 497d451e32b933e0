package nftables

import (
	"bytes"
	"context"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"flanneld/pkg/firewall"
	"flanneld/pkg/lab/golden"
	"flanneld/pkg/lab/netns"
)

const timeout = 10 * time.Second

var (
	four = firewall.Overlay{Network: netip.MustParsePrefix("10.42.0.0/16"), Subnet: netip.MustParsePrefix("10.42.7.0/24")}
	six  = firewall.Overlay{Network: netip.MustParsePrefix("fd42::/48"), Subnet: netip.MustParsePrefix("fd42:0:0:7::/64")}
	// odd has prefixes that end within a byte.
	odd  = firewall.Overlay{Network: netip.MustParsePrefix("10.32.0.0/11"), Subnet: netip.MustParsePrefix("10.42.7.64/26")}
	odd6 = firewall.Overlay{Network: netip.MustParsePrefix("fd42:8000::/19"), Subnet: netip.MustParsePrefix("fd42:8007::/44")}
)

// all is everything that an overlay can want.
func all(o firewall.Overlay) []firewall.Chain {
	return firewall.Rules(firewall.Options{Overlay: o, Masquerade: true, RandomPorts: true, Forward: true})
}

func forward(o firewall.Overlay) []firewall.Chain {
	return firewall.Rules(firewall.Options{Overlay: o, Forward: true})
}

// bed is a network namespace, seen by two parties: tables, which is tested, and the binaries, which
// stand for everybody else on the host.
type bed struct {
	t      testing.TB
	tables *Tables
	ns     *netns.Namespace
}

// newBed creates a namespace that exists as long as the descriptors of the test.
func newBed(t testing.TB) *bed {
	t.Helper()
	b := &bed{t: t, ns: netns.New(t)}
	b.tables = b.open()
	return b
}

// open opens the namespace's nftables with another socket.
func (b *bed) open() (t *Tables) {
	b.t.Helper()
	var err error
	b.within(func() { t, err = open(new(sync.Map)) })
	if err != nil {
		b.t.Skipf("needs a kernel with nftables: %v", err)
	}
	b.t.Cleanup(func() { t.Close() })
	return t
}

// within runs f in the namespace.
func (b *bed) within(f func()) {
	b.t.Helper()
	if err := b.ns.Do(func() error { f(); return nil }); err != nil {
		b.t.Fatal(err)
	}
}

// run runs a binary in the namespace and returns its output. If the binary is missing, the test
// ends.
func (b *bed) run(input string, args ...string) string {
	b.t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		b.t.Skipf("SKIPPED: no %s to look with", args[0])
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(input)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	var err error
	b.within(func() { err = cmd.Run() })
	if err != nil {
		b.t.Fatalf("%s: %v\n%s%s", strings.Join(args, " "), err, out.String(), errs.String())
	}
	for line := range strings.Lines(errs.String()) {
		if !strings.HasPrefix(line, "# Warning: table ip") { // managed by iptables-nft
			b.t.Errorf("%s: %s", strings.Join(args, " "), line)
		}
	}
	return out.String()
}

// sh runs a command without special characters.
func (b *bed) sh(command string) string {
	b.t.Helper()
	return b.run("", strings.Fields(command)...)
}

// nft runs lines of nft's language as one transaction.
func (b *bed) nft(lines string) {
	b.t.Helper()
	b.run(lines, "nft", "-f", "-")
}

// ruleset returns the output of nft; before 1.0 it printed "type" of a reject.
func (b *bed) ruleset() string {
	b.t.Helper()
	return strings.NewReplacer("icmpx type ", "icmpx ", "icmpv6 type addr", "icmpv6 addr").Replace(b.sh("nft -s list ruleset"))
}

// oneDaemon owns all overlays that the tests have, but those of other networks.
func oneDaemon() firewall.Owner {
	return firewall.Owner{Network: odd.Network, Overlays: []firewall.Overlay{four, six, odd, odd6}}
}

// sync applies rules, and fails the test if a second Sync still writes something.
func (b *bed) sync(family firewall.Family, want []firewall.Chain) []string {
	b.t.Helper()
	changes := b.syncFor(oneDaemon(), family, want)
	b.settled(family, want)
	return changes
}

func (b *bed) syncFor(owner firewall.Owner, family firewall.Family, want []firewall.Chain) []string {
	b.t.Helper()
	return b.apply(firewall.Ruleset{Family: family, Owner: owner, Chains: want})
}

func (b *bed) apply(r firewall.Ruleset) []string {
	b.t.Helper()
	changes, err := b.tables.Sync(context.Background(), r)
	if err != nil {
		b.t.Fatal(err)
	}
	return changes
}

func (b *bed) generation() uint32 {
	b.t.Helper()
	b.tables.mu.Lock()
	defer b.tables.mu.Unlock()
	id, err := b.tables.conn.generation()
	if err != nil {
		b.t.Fatal(err)
	}
	return id
}

// settled fails the test if a Sync still writes something.
func (b *bed) settled(family firewall.Family, want []firewall.Chain) {
	b.t.Helper()
	before := b.generation()
	if changes := b.syncFor(oneDaemon(), family, want); len(changes) > 0 || b.generation() != before {
		b.t.Errorf("a second Sync changed: %q", changes)
	}
}

func (b *bed) watch() <-chan struct{} {
	b.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	b.t.Cleanup(stop)
	news, err := b.tables.Watch(ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	return news
}

func equal(t testing.TB, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func has(t testing.TB, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("no %q in\n%s", p, text)
		}
	}
}

// TestGolden shows what nft(8) sees of each combination of options.
func TestGolden(t *testing.T) {
	for name, o := range map[string]firewall.Overlay{"ipv4": four, "ipv6": six, "odd": odd} {
		for options, o := range map[string]firewall.Options{
			"masquerade": {Overlay: o, Masquerade: true},
			"random":     {Overlay: o, Masquerade: true, RandomPorts: true},
			"forward":    {Overlay: o, Forward: true},
			"all":        {Overlay: o, Masquerade: true, RandomPorts: true, Forward: true},
			"vxlan":      {Overlay: o, Forward: true, Tunnel: firewall.Tunnel{Port: 8472}},
			"udp":        {Overlay: o, Forward: true, Tunnel: firewall.Tunnel{Port: 8285, Bound: true}},
		} {
			t.Run(name+"-"+options, func(t *testing.T) {
				t.Parallel()
				b := newBed(t)
				family, want := firewall.FamilyOf(o.Network.Addr()), firewall.Rules(o)
				if changes := b.sync(family, want); len(changes) == 0 {
					t.Error("Sync tells of no change")
				}
				golden.Equal(t, "testdata/"+name+"-"+options+".golden", b.ruleset())
				if len(b.sync(family, nil)) == 0 || b.ruleset() != "" {
					t.Errorf("after a Sync with nothing wanted there is\n%s", b.ruleset())
				}
			})
		}
	}
}

// TestFamilies: each family has its own table, and a Sync of one leaves the other's alone. With
// nothing changed nothing is written, and our own changes are no news.
func TestFamilies(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.nft(plainTable)
	news := b.watch()
	b.sync(firewall.IPv4, all(four))
	only4 := b.ruleset()
	if strings.Contains(only4, "table ip6") {
		t.Errorf("a Sync of IPv4 made\n%s", only4)
	}
	b.sync(firewall.IPv6, all(six))
	has(t, b.ruleset(), "table ip flannel-ipv4", "table ip6 flannel-ipv6")
	for range 20 {
		b.settled(firewall.IPv4, all(four))
		b.settled(firewall.IPv6, all(six))
	}
	b.sync(firewall.IPv6, nil)
	equal(t, b.ruleset(), only4)
	b.sync(firewall.IPv4, all(odd))
	b.quiet(news, "after nothing but Syncs")
}

// TestSteps syncs one wanted ruleset after another; chains whose rules stay are not written.
func TestSteps(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for _, s := range []struct {
		want    []firewall.Chain
		changes string
	}{
		{all(four), "created table ip flannel-ipv4; created chain ip flannel-ipv4 postrtg with 5 rules; created chain ip flannel-ipv4 forward with 2 rules"},
		{forward(four), "removed chain ip flannel-ipv4 postrtg"},
		{forward(odd), "replaced 2 rules of chain ip flannel-ipv4 forward by 2"},
		{firewall.Rules(firewall.Options{Overlay: odd, Masquerade: true}), "removed chain ip flannel-ipv4 forward; created chain ip flannel-ipv4 postrtg with 5 rules"},
		{all(odd), "replaced 4 rules of chain ip flannel-ipv4 postrtg by 4; created chain ip flannel-ipv4 forward with 2 rules"},
		{nil, "removed table ip flannel-ipv4"},
		{nil, ""},
	} {
		equal(t, strings.Join(b.sync(firewall.IPv4, s.want), "; "), s.changes)
	}
}

// TestCancelledSync: the end of the context is an error, and nothing is written.
func TestCancelledSync(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	before := b.generation()
	ctx, stop := context.WithCancel(context.Background())
	stop()
	if _, err := b.tables.Sync(ctx, firewall.Ruleset{Owner: oneDaemon(), Chains: all(four)}); err == nil || b.generation() != before {
		t.Error("something was written, or is no error: ", err)
	}
}
