package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"flanneld/pkg/firewall"
)

// daemonOf is the owner of one overlay, on a host with several.
func daemonOf(o firewall.Overlay) firewall.Owner {
	return firewall.Owner{Network: o.Network, Overlays: []firewall.Overlay{o}}
}

// TestTwoNetworks gives tables to the daemon of 10.42.0.0/16 that also contain rules of others. N
// stands for a rule of its network, M for the same of 10.43.0.0/16; no lines mean that everything
// is right.
func TestTwoNetworks(t *testing.T) {
	const (
		jump   = `-m comment --comment "flanneld forward" -j FLANNEL-FWD`
		masq   = `-m comment --comment "flanneld masq" -j FLANNEL-POSTRTG`
		mark   = `-m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN`
		n1, n2 = `-s 10.42.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT`, `-d 10.42.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT`
		m1, m2 = `-s 10.43.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT`, `-d 10.43.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT`
		accept = `-s 10.43.0.0/16 -m comment --comment flanneld -j ACCEPT`
		docker = "-j DOCKER-USER"
		theirs = "-s 10.43.0.0/16 -p tcp -m tcp --dport 22 -j DROP"
		drop   = "-p tcp -j DROP"
		del    = "-D FORWARD " + jump
	)
	postrouting := func(o firewall.Overlay) (rules []string) {
		for _, r := range firewall.Rules(firewall.Options{Overlay: o, Masquerade: true})[0].Rules[1:] {
			rules = append(rules, specOf(r, "flanneld masq").String())
		}
		return rules
	}
	n, m := postrouting(four), postrouting(other)
	all := func(verb string, rules ...string) (lines []string) {
		for _, r := range rules {
			lines = append(lines, verb+" "+r)
		}
		return lines
	}
	lines := func(groups ...any) (all []string) {
		for _, g := range groups {
			switch g := g.(type) {
			case string:
				all = append(all, g)
			case []string:
				all = append(all, g...)
			}
		}
		return all
	}
	place := func(rules ...string) listing { return listing{"filter": {"FORWARD": rules, "FLANNEL-FWD": {n1, n2}}} }
	forward, masquerade := firewall.Rules(firewall.Options{Overlay: four, Forward: true})[:1], firewall.Rules(firewall.Options{Overlay: four, Masquerade: true})
	tests := []struct {
		name string
		have listing
		want []firewall.Chain
		out  []string
	}{
		{"nothing there", listing{}, forward,
			lines("*filter", "-N FLANNEL-FWD", "-A FLANNEL-FWD "+n1, "-A FLANNEL-FWD "+n2, "-I FORWARD 1 "+jump)},
		{"the other's are there", listing{"filter": {"FORWARD": {jump}, "FLANNEL-FWD": {m1, m2}}}, forward,
			lines("*filter", "-A FLANNEL-FWD "+n1, "-A FLANNEL-FWD "+n2)},
		{"both, the other's first", listing{"filter": {"FORWARD": {jump}, "FLANNEL-FWD": {m1, m2, n1, n2}}}, forward, nil},
		{"both, ours first", listing{"filter": {"FORWARD": {jump}, "FLANNEL-FWD": {n1, n2, m1, m2}}}, forward, nil},
		{"both mingled", listing{"filter": {"FORWARD": {jump}, "FLANNEL-FWD": {n1, m1, m2, n2}}}, forward, nil},
		{"half of the other's", listing{"filter": {"FORWARD": {jump}, "FLANNEL-FWD": {n1, n2, m2}}}, forward, nil},
		{"a stranger's that names the other network", listing{"filter": {"FORWARD": {jump}, "FLANNEL-FWD": {theirs, n1, n2}}}, forward, nil},
		{"half of ours", listing{"filter": {"FORWARD": {jump}, "FLANNEL-FWD": {m1, n2, m2}}}, forward,
			lines("*filter", "-D FLANNEL-FWD "+n2, "-A FLANNEL-FWD "+n1, "-A FLANNEL-FWD "+n2)},
		{"nobody's", listing{"filter": {"FORWARD": {jump}, "FLANNEL-FWD": {drop, m1, m2, n1, n2}}}, forward,
			lines("*filter", "-D FLANNEL-FWD "+drop)},
		{"the jump is gone", listing{"filter": {"FLANNEL-FWD": {m1, m2, n1, n2}}}, forward,
			lines("*filter", "-I FORWARD 1 "+jump)},
		{"the chain is left, empty", listing{"filter": {"FLANNEL-FWD": {}}}, forward,
			lines("*filter", "-A FLANNEL-FWD "+n1, "-A FLANNEL-FWD "+n2, "-I FORWARD 1 "+jump)},
		{"the other keeps its accepts by nftables", place(accept, jump), forward, nil},
		{"the same, behind docker's", place(accept, docker, accept, jump), forward, nil},
		{"the same, no jump", place(accept, docker), forward,
			lines("*filter", "-I FORWARD 3 "+jump)},
		{"the same, a stranger's between", place(accept, drop, jump), forward,
			lines("*filter", "-D FORWARD "+jump, "-I FORWARD 1 "+jump)},

		{"alone", place(jump), forward, nil},
		{"first", place(jump, drop), forward, nil},
		{"behind Docker's", place(docker, jump, drop), forward, nil},
		{"no jump", place(), forward, lines("*filter", "-I FORWARD 1 "+jump)},
		{"no jump, others", place(drop), forward, lines("*filter", "-I FORWARD 1 "+jump)},
		{"no jump, Docker's", place(docker, drop), forward, lines("*filter", "-I FORWARD 2 "+jump)},
		{"Docker's behind us", place(jump, docker), forward, lines("*filter", del, "-I FORWARD 2 "+jump)},
		{"Docker's not first", place(jump, drop, docker), forward, nil},
		{"Docker's with a condition", place("-i eth7 "+docker, jump), forward, lines("*filter", del, "-I FORWARD 1 "+jump)},
		{"pushed down", place(drop, jump), forward, lines("*filter", del, "-I FORWARD 1 "+jump)},
		{"doubled", place(jump, drop, jump), forward, lines("*filter", del, del, "-I FORWARD 1 "+jump)},
		{"with a condition", place(jump, "-i eth7 -j FLANNEL-FWD"), forward, nil},
		{"other comment", place("-j FLANNEL-FWD"), forward, lines("*filter", "-D FORWARD -j FLANNEL-FWD", "-I FORWARD 1 "+jump)},

		{"masquerade: the other's are there", listing{"nat": {"POSTROUTING": {masq}, "FLANNEL-POSTRTG": lines(mark, m)}}, masquerade,
			lines("*nat", all("-A FLANNEL-POSTRTG", n...))},
		{"masquerade: both", listing{"nat": {"POSTROUTING": {masq}, "FLANNEL-POSTRTG": lines(mark, m, n)}}, masquerade, nil},
		{"masquerade: mingled", listing{"nat": {"POSTROUTING": {masq}, "FLANNEL-POSTRTG": lines(mark, n[:2], m, n[2:])}}, masquerade, nil},
		{"masquerade: other order of ours", listing{"nat": {"POSTROUTING": {masq}, "FLANNEL-POSTRTG": lines(mark, n[1:], m, n[0])}}, masquerade,
			lines("*nat", all("-D FLANNEL-POSTRTG", lines(n[1:], n[0])...), all("-A FLANNEL-POSTRTG", n...))},
		{"masquerade: the mark not first", listing{"nat": {"POSTROUTING": {masq}, "FLANNEL-POSTRTG": lines(m, mark, n)}}, masquerade,
			lines("*nat", "-D FLANNEL-POSTRTG "+mark, "-I FLANNEL-POSTRTG 1 "+mark)},
		{"masquerade: the mark twice", listing{"nat": {"POSTROUTING": {masq}, "FLANNEL-POSTRTG": lines(mark, m, mark, n)}}, masquerade,
			lines("*nat", "-D FLANNEL-POSTRTG "+mark, "-D FLANNEL-POSTRTG "+mark, "-I FLANNEL-POSTRTG 1 "+mark)},
		{"masquerade: another subnet before", listing{"nat": {"POSTROUTING": {masq},
			"FLANNEL-POSTRTG": lines(mark, postrouting(overlay("10.42.0.0/16", "10.42.9.0/24")), m)}}, masquerade,
			lines("*nat", all("-D FLANNEL-POSTRTG", postrouting(overlay("10.42.0.0/16", "10.42.9.0/24"))...), all("-A FLANNEL-POSTRTG", n...))},

		{"none wanted, none there", listing{}, nil, nil},
		{"none wanted, the other's only", listing{
			"filter": {"FORWARD": {jump}, "FLANNEL-FWD": {m1, m2}}, "nat": {"POSTROUTING": {masq}, "FLANNEL-POSTRTG": lines(mark, m)}}, nil, nil},
		{"none wanted, both", listing{
			"filter": {"FORWARD": {jump}, "FLANNEL-FWD": {m1, m2, n1, n2}}, "nat": {"POSTROUTING": {masq}, "FLANNEL-POSTRTG": lines(mark, m, n)}}, nil,
			lines("*nat", all("-D FLANNEL-POSTRTG", n...), "*filter", "-D FLANNEL-FWD "+n1, "-D FLANNEL-FWD "+n2)},
		{"none wanted, ours are the last", listing{
			"filter": {"FORWARD": {jump}, "FLANNEL-FWD": {n1, n2}}, "nat": {"POSTROUTING": {masq}, "FLANNEL-POSTRTG": lines(mark, n)}}, nil,
			lines("*nat", "-D POSTROUTING "+masq, all("-D FLANNEL-POSTRTG", lines(mark, n)...), "-X FLANNEL-POSTRTG",
				"*filter", "-D FORWARD "+jump, "-D FLANNEL-FWD "+n1, "-D FLANNEL-FWD "+n2, "-X FLANNEL-FWD")},
		{"none wanted, a stranger's that names another network", listing{"filter": {"FORWARD": {jump}, "FLANNEL-FWD": {theirs, n1, n2}}}, nil,
			lines("*filter", "-D FLANNEL-FWD "+n1, "-D FLANNEL-FWD "+n2)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := makePlan(tt.have, daemonOf(four), tt.want, true)
			got := strings.ReplaceAll(p.input(), "COMMIT\n", "")
			if want := strings.Join(append(tt.out, ""), "\n"); got != want || (len(p.changes) > 0) != (len(tt.out) > 0) {
				t.Errorf("changes %q: got\n%s\nwant\n%s", p.changes, got, want)
			}
			apply(t, tt.have, p.input())
			if again := makePlan(tt.have, daemonOf(four), tt.want, true); again.input() != "" {
				t.Errorf("a second pass has\n%s", again.input())
			}
		})
	}
}

// TestPreviousNetwork has the rules of 10.43.0.0/16 there, which are another daemon's unless this
// host has noted that it was of that network.
func TestPreviousNetwork(t *testing.T) {
	eachVariant(t, func(b *bed) {
		for _, noted := range []bool{false, true} {
			_, err := b.Sync(t.Context(), daemonOf(other), everything(other))
			b.must(err)
			alone := b.rules()
			owner := daemonOf(four)
			if noted {
				owner.Overlays = append(owner.Overlays, other)
			}
			_, err = b.Sync(t.Context(), owner, everything(four))
			b.must(err)
			if kept := strings.Contains(b.rules(), "10.43.0.0/16"); kept == noted {
				t.Errorf("noted: %v: the rules are\n%s", noted, b.rules())
			}
			_, err = b.Sync(t.Context(), owner, nil)
			b.must(err)
			if !noted {
				b.differ("the other's rules", b.rules(), alone)
			} else if strings.Contains(b.rules(), "FLANNEL") {
				t.Errorf("left:\n%s", b.rules())
			}
		}
	})
}

// TestDaemonsAtOnce: four daemons write and remove their rules at the same time, beside a fifth
// whose rules are complete in every listing.
func TestDaemonsAtOnce(t *testing.T) {
	eachVariant(t, func(b *bed) {
		rounds := 30
		if testing.Short() {
			rounds = 5
		}
		b.sync(everything(four))
		var writers sync.WaitGroup
		overlays := []firewall.Overlay{four}
		for i := range 4 {
			network := fmt.Sprintf("10.%d.0.0/16", 50+i)
			o := overlay(network, netip.MustParsePrefix(network).Addr().String()+"/24")
			overlays = append(overlays, o)
			writers.Go(func() {
				err := b.ns.Do(func() error {
					tables, err := newTables(firewall.IPv4)
					for round := range rounds {
						want := everything(o)
						if round%2 == 1 && round < rounds-2 {
							want = nil
						}
						if err == nil {
							_, err = tables.Sync(t.Context(), daemonOf(o), want)
						}
					}
					return err
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		listings := b.whileListing(writers.Wait, func(l listing) error {
			if p := makePlan(l, daemonOf(four), everything(four), false); len(p.changes) > 0 {
				return fmt.Errorf("%q is to be done", p.changes)
			}
			return nil
		})
		t.Logf("%d listings", listings)
		for _, o := range overlays {
			if p := makePlan(b.listing(), daemonOf(o), everything(o), true); len(p.changes) > 0 {
				t.Errorf("%s: still to be done: %q", o.Network, p.changes)
			}
		}
		for i, o := range slices.Backward(overlays) {
			_, err := b.Sync(t.Context(), daemonOf(o), nil)
			b.must(err)
			if left := strings.Contains(b.rules(), "FLANNEL"); left != (i > 0) {
				t.Errorf("with %d networks left:\n%s", i, b.rules())
			}
		}
	})
}
