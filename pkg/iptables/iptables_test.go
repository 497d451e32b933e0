package iptables

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/firewall"
	"flanneld/pkg/lab/netns"
	"flanneld/pkg/lab/wait"
)

var (
	four  = overlay("10.42.0.0/16", "10.42.7.0/24")
	other = overlay("10.43.0.0/16", "10.43.9.0/24")
	six   = overlay("fd42::/48", "fd42:0:0:7::/64")
)

func overlay(network, subnet string) firewall.Overlay {
	return firewall.Overlay{Network: netip.MustParsePrefix(network), Subnet: netip.MustParsePrefix(subnet)}
}

// everything that can be wanted of an overlay.
func everything(o firewall.Overlay) []firewall.Chain {
	return firewall.Rules(firewall.Options{Overlay: o, Masquerade: true, RandomPorts: true, Forward: true, Tunnel: firewall.Tunnel{Port: 8472}})
}

// bed is a network namespace with the iptables of one variant and the programs
// of everybody else, who use the same.
type bed struct {
	*Tables
	t    *testing.T
	ns   *netns.Namespace
	bin  string // the directory of the others' commands
	runs string // a file with a line for each command that the Tables have run
}

// eachVariant creates a namespace for each installed variant of iptables.
func eachVariant(t *testing.T, test func(b *bed)) {
	for _, variant := range []string{"nft", "legacy"} {
		t.Run(variant, func(t *testing.T) { test(newBed(t, variant)) })
	}
}

// newBed takes the test's own thread into a new namespace; it ends with the
// test's goroutine.
func newBed(t *testing.T, variant string) *bed {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace and writes its rules")
	}
	b := &bed{t: t, runs: filepath.Join(t.TempDir(), "runs")}
	b.bin = t.TempDir()
	bin := t.TempDir()
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, does := range []string{"", "-save", "-restore"} {
			path, err := exec.LookPath(family + "-" + variant + does)
			if err != nil {
				t.Skipf("needs iptables: %v", err)
			}
			script := fmt.Sprintf("#!/bin/sh\necho %s $* >>%s\nexec %s \"$@\"\n", family+does, b.runs, path)
			b.must(os.WriteFile(filepath.Join(bin, family+does), []byte(script), 0o700))
			b.must(os.Symlink(path, filepath.Join(b.bin, family+does)))
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "xtables.lock")) // else all namespaces share one
	b.ns = netns.Enter(t)
	var err error
	b.Tables, err = newTables(firewall.IPv4)
	b.must(err)
	if b.legacy() != (variant == "legacy") || !strings.HasPrefix(b.version, "iptables v1.") || !b.randomPorts {
		t.Fatalf("version %q: legacy %t, random ports %t", b.version, b.legacy(), b.randomPorts)
	}
	return b
}

func (b *bed) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// whileListing calls change, and meanwhile check with one listing after another until it fails.
func (b *bed) whileListing(change func(), check func(listing) error) (listings int) {
	b.t.Helper()
	ended, done := make(chan struct{}), make(chan error)
	go func() {
		done <- b.ns.Do(func() error {
			for ; ; listings++ {
				select {
				case <-ended:
					return nil
				default:
				}
				out, err := exec.Command(filepath.Join(b.bin, "iptables-save")).Output()
				if err != nil {
					return err
				}
				l, _, err := parseListing(string(out))
				if err == nil {
					err = check(l)
				}
				if err != nil {
					return fmt.Errorf("after %d listings: %w in\n%s", listings, err, out)
				}
			}
		})
	}()
	change()
	close(ended)
	if err := <-done; err != nil {
		b.t.Error(err)
	}
	return listings
}

// others run a shell script, in which iptables is of this variant.
func (b *bed) others(script string) string {
	b.t.Helper()
	cmd := exec.Command("sh", "-ec", "PATH="+b.bin+":$PATH\n"+script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.t.Fatalf("%s\n%s%v", script, out, err)
	}
	return string(out)
}

// load passes a file to iptables-restore. A file of rules replaces its tables, one of changes does
// not.
func (b *bed) load(file string) {
	b.t.Helper()
	if strings.HasSuffix(file, ".rules") {
		b.others("iptables-restore <testdata/" + file)
	} else {
		b.others("iptables-restore --noflush <testdata/" + file)
	}
}

// oneDaemon owns the networks that the tests have, but those of other daemons, and has had
// the overlays.
func oneDaemon(had ...firewall.Overlay) firewall.Owner {
	return firewall.Owner{Network: four.Network, Overlays: append(had, other, six)}
}

// planned is what that daemon would write.
func planned(l listing, want []firewall.Chain, had ...firewall.Overlay) plan {
	return makePlan(l, oneDaemon(had...), want, true)
}

func (b *bed) sync(want []firewall.Chain, previous ...firewall.Overlay) []string {
	b.t.Helper()
	changes, err := b.Sync(b.t.Context(), oneDaemon(previous...), want)
	b.must(err)
	return changes
}

// settled fails the test when another Sync would write.
func (b *bed) settled(want []firewall.Chain, previous ...firewall.Overlay) {
	b.t.Helper()
	if changes := b.sync(want, previous...); len(changes) > 0 {
		b.t.Fatalf("the second pass is not empty: %q\n%s", changes, b.rules())
	}
}

// ran returns the commands since the last call.
func (b *bed) ran() []string {
	text, err := os.ReadFile(b.runs)
	b.must(err)
	b.must(os.Truncate(b.runs, 0))
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// rules lists everything, without counters and dates, the tables by name.
func (b *bed) rules() string {
	b.t.Helper()
	text := regexp.MustCompile(`(?m)^#.*\n| \[\d+:\d+\]$`).ReplaceAllString(b.others("iptables-save"), "")
	tables := strings.SplitAfter(text, "COMMIT\n")
	slices.Sort(tables)
	return strings.Join(tables, "")
}

// foreign returns a listing without our rules and without empty tables.
func foreign(rules string) string {
	rules = regexp.MustCompile(`(?m)^.*(FLANNEL-|"flanneld ).*\n`).ReplaceAllString(rules, "")
	return regexp.MustCompile(`(?m)^\*\w+\n(:\w+ ACCEPT\n)*COMMIT\n`).ReplaceAllString(rules, "")
}

// chain returns the rules of one chain of a listing.
func chain(rules, table, chain string) string {
	_, rest, _ := strings.Cut(rules, "*"+table+"\n")
	rest, _, _ = strings.Cut(rest, "COMMIT\n")
	var b strings.Builder
	for line := range strings.Lines(rest) {
		if rule, ok := strings.CutPrefix(line, "-A "+chain+" "); ok {
			b.WriteString(rule)
		}
	}
	return b.String()
}

// differ shows two texts when they are not the same.
func (b *bed) differ(what, got, want string) {
	b.t.Helper()
	if got != want {
		b.t.Errorf("%s: got\n%s\nwant\n%s", what, got, want)
	}
}

// newTables finds the commands that are installed, which may take longer on a slow machine.
func newTables(f firewall.Family) (*Tables, error) {
	tables, err := NewTools(time.Second).get(tool{f, firewall.Nowhere})
	if err == nil {
		tables.timeout *= time.Duration(wait.Slow())
	}
	return tables, err
}
