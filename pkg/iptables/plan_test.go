package iptables

import (
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"flanneld/pkg/firewall"
	"flanneld/pkg/lab/golden"
)

// TestInput compares what iptables-restore has to read, for empty tables but
// for a DROP in table raw.
func TestInput(t *testing.T) {
	all := firewall.Options{Overlay: four, Masquerade: true, RandomPorts: true, Forward: true}
	only := func(change func(o *firewall.Options)) firewall.Options {
		o := all
		change(&o)
		return o
	}
	for name, o := range map[string]firewall.Options{
		"all":       all,
		"ipv6":      only(func(o *firewall.Options) { o.Overlay = six }),
		"old-ports": only(func(o *firewall.Options) { o.RandomPorts = false }),
		"no-masq":   only(func(o *firewall.Options) { o.Masquerade = false }),
		"no-fwd":    only(func(o *firewall.Options) { o.Forward = false }),
		"vxlan":     only(func(o *firewall.Options) { o.Tunnel.Port = 8472 }),
		"udp": only(func(o *firewall.Options) {
			o.Tunnel = firewall.Tunnel{Port: 8285, Bound: true, Hosts: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/24")}}
		}),
		"nothing": only(func(o *firewall.Options) { o.Forward, o.Masquerade = false, false }),
	} {
		t.Run(name, func(t *testing.T) {
			raw := table{"PREROUTING": {"-i eth7 -j DROP"}}
			got := planned(listing{"raw": raw}, firewall.Rules(o), o.Overlay).input()
			golden.Equal(t, filepath.Join("testdata", name+".golden"), got)
		})
	}
}

// TestEqualRules has rules of an earlier generation more than once. A deletion
// by its text takes the first of equal ones, whichever of them was meant.
func TestEqualRules(t *testing.T) {
	const from, to = "-s 10.42.0.0/16 -j ACCEPT", "-d 10.42.0.0/16 -j ACCEPT"
	l := listing{"filter": {"FORWARD": {to, from, from, to}}}
	p := planned(l, nil, four)
	apply(t, l, p.input())
	if again := planned(l, nil, four); again.input() != "" {
		t.Errorf("a second pass has\n%s\nafter\n%s", again.input(), p.input())
	}
}

// apply does to a listing what iptables-restore would, and fails where it would, or where
// a chain that others may share is declared or flushed.
func apply(t *testing.T, l listing, input string) {
	t.Helper()
	var current table
	for line := range strings.Lines(input) {
		line = strings.TrimSuffix(line, "\n")
		if name, ok := strings.CutPrefix(line, "*"); ok {
			if current = l[name]; current == nil {
				current = table{}
				l[name] = current
			}
			continue
		}
		if line == "COMMIT" {
			continue
		}
		verb, rest, _ := strings.Cut(line, " ")
		name, rule, _ := strings.Cut(rest, " ")
		if verb == "-F" && strings.HasPrefix(name, "FLANNEL-") {
			t.Fatalf("%s: the rules of other networks are lost", line)
		}
		switch verb {
		case "-N":
			if current.has(name) {
				t.Fatalf("%s: it is there", line)
			}
			current[name] = nil
		case "-A":
			current[name] = append(current[name], rule)
		case "-I":
			place, rule, _ := strings.Cut(rule, " ")
			n, err := strconv.Atoi(place)
			if err != nil || n-1 > len(current[name]) {
				t.Fatalf("%s: %d rules there", line, len(current[name]))
			}
			current[name] = slices.Insert(current[name], n-1, rule)
		case "-D":
			i := slices.Index(current[name], rule)
			if i < 0 {
				t.Fatalf("%s: no such rule in %q", line, current[name])
			}
			current[name] = slices.Delete(current[name], i, i+1)
		case "-F":
			current[name] = nil
		case "-X":
			if !current.has(name) || len(current[name]) > 0 || current.references(name) > 0 {
				t.Fatalf("%s: the kernel would refuse", line)
			}
			delete(current, name)
		default:
			t.Fatalf("unknown line %q", line)
		}
	}
}

// TestAnyListing begins with rules at random, of ours, of earlier releases, of another network
// and of others. One pass is enough, and the rules of all others are in order.
func TestAnyListing(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	jumps := []string{`-m comment --comment "flanneld masq" -j FLANNEL-POSTRTG`, "-j FLANNEL-POSTRTG",
		`-m comment --comment "flanneld forward" -j FLANNEL-FWD`, "-j FLANNEL-FWD", "-j FLANNEL", "-s 10.42.0.0/16 -j FLANNEL"}
	pool := slices.Clone(jumps)
	for _, o := range []firewall.Overlay{four, other} {
		for _, f := range firewall.OldRulesets(o) {
			for _, rule := range slices.Concat(f.Rules, f.ChainRules) {
				pool = append(pool, specOf(rule, "").String(), specOf(rule, "flanneld masq").String())
			}
		}
		for _, c := range everything(o) {
			for _, rule := range c.Rules {
				pool = append(pool, specOf(rule, c.Hook.Comment()).String())
			}
		}
	}
	third := overlay("10.60.0.0/16", "10.60.9.0/24")
	for _, c := range everything(third) {
		for _, rule := range c.Rules {
			pool = append(pool, specOf(rule, c.Hook.Comment()).String())
		}
	}
	ofThird := func(rule string) bool { return strings.Contains(rule, "10.60.0.0/16") }
	stranger := func(rule string) bool {
		return strings.HasPrefix(rule, "-o eth") || rule == "-j DOCKER-USER" || ofThird(rule)
	}
	pool = append(pool, "-o eth1 -j DROP", "-o eth2 -j FLANNEL-FWD", "-o eth3 -g FLANNEL-POSTRTG", "-j DOCKER-USER")
	some := func() (rules []string) {
		for range r.IntN(20) {
			rules = append(rules, pool[r.IntN(len(pool))])
		}
		return rules
	}
	for range 500 {
		l := listing{}
		for _, a := range anchors() {
			l[a.table] = table{a.chain: some(), "OTHER": some()}
			for _, own := range []string{a.own, "FLANNEL"} {
				if r.IntN(2) == 0 {
					l[a.table][own] = some()
				}
			}
		}
		strangers := func() (all []string) {
			for _, a := range anchors() {
				for _, rule := range slices.Concat(l[a.table][a.chain], l[a.table]["OTHER"]) {
					if stranger(rule) {
						all = append(all, rule)
					}
				}
				for _, rule := range l[a.table][a.own] {
					if ofThird(rule) {
						all = append(all, a.own+": "+rule)
					}
				}
			}
			return all
		}
		before := strangers()
		for _, want := range [][]firewall.Chain{everything(four), everything(other)[:1], nil} {
			previous := []firewall.Overlay{four, other}[:r.IntN(3)]
			p := planned(l, want, previous...)
			apply(t, l, p.input())
			if again := planned(l, want, previous...); again.input() != "" || len(again.changes) > 0 {
				t.Fatalf("a second pass has\n%s\nafter\n%s", again.input(), p.input())
			}
			if after := strangers(); !slices.Equal(before, after) {
				t.Fatalf("rules of others: got %q, want %q", after, before)
			}
		}
	}
}
