package iptables

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"flanneld/pkg/firewall"
)

// script writes the rules of releases of the original: N and S stand for the network and the
// subnet, ELSE for another program's rule in between.
func script(o firewall.Overlay, lines ...string) string {
	r := strings.NewReplacer("s N", "s "+o.Network.String(), "d N", "d "+o.Network.String(), "s S", "s "+o.Subnet.String(),
		"d S", "d "+o.Subnet.String(), "MASQ", "MASQUERADE", "ELSE", "-o eth5 -j ACCEPT", "'", `"`)
	b := strings.Builder{}
	b.WriteString("iptables-restore --noflush <<END\n")
	for _, table := range []string{"nat ", "filter "} {
		b.WriteString("*" + table[:len(table)-1] + "\n")
		for _, l := range lines {
			if rule, ok := strings.CutPrefix(l, table); ok {
				b.WriteString(r.Replace(rule) + "\n")
			}
		}
		b.WriteString("COMMIT\n")
	}
	return b.String() + "END\n"
}

// commented adds the comments of releases since v0.16.2 to the rules.
func commented(lines ...string) []string {
	var out []string
	for _, l := range lines {
		comment := "'flanneld masq'"
		if strings.HasPrefix(l, "filter") {
			comment = "'flanneld forward'"
		}
		before, target, _ := strings.Cut(l, " -j ")
		out = append(out, before+" -m comment --comment "+comment+" -j "+target)
	}
	return out
}

func v05() []string {
	return []string{
		"nat -N FLANNEL",
		"nat -A FLANNEL -d N -j ACCEPT",
		"nat -A FLANNEL ! -d 224.0.0.0/4 -j MASQ",
		"nat -A POSTROUTING -s N -j FLANNEL",
		"nat -A POSTROUTING ELSE",
		"nat -A POSTROUTING ! -s N -d N -j MASQ",
	}
}

func v056() []string {
	return []string{
		"nat -A POSTROUTING -s N -d N -j RETURN",
		"nat -A POSTROUTING -s N ! -d 224.0.0.0/4 -j MASQ",
		"nat -A POSTROUTING ELSE",
		"nat -A POSTROUTING ! -s N -d N -j MASQ",
	}
}

func v08() []string {
	return []string{
		"nat -A POSTROUTING -s N -d N -j RETURN",
		"nat -A POSTROUTING ELSE",
		"nat -A POSTROUTING -s N ! -d 224.0.0.0/4 -j MASQ",
		"nat -A POSTROUTING ! -s N -d S -j RETURN",
		"nat -A POSTROUTING ! -s N -d N -j MASQ",
	}
}

func v09() []string {
	return append(v08(),
		"filter -A FORWARD -s N -j ACCEPT",
		"filter -A FORWARD ELSE",
		"filter -A FORWARD -d N -j ACCEPT")
}

func randomly(lines []string) []string {
	for i, l := range lines {
		if strings.HasSuffix(l, "MASQ") {
			lines[i] += " --random-fully"
		}
	}
	return lines
}

func without(lines []string, left ...string) []string {
	return slices.DeleteFunc(lines, func(l string) bool { return slices.Contains(left, l) })
}

// v016 is v0.16.2 to v0.19.
func v016() []string {
	return append(commented(without(randomly(v09()), "nat -A POSTROUTING ELSE", "filter -A FORWARD ELSE")...), "nat -A POSTROUTING ELSE", "filter -A FORWARD ELSE")
}

// chains is v0.20 and later: how the jump is added, and the rules of FLANNEL-POSTRTG.
func chains(jump string, rules ...string) []string {
	lines := []string{"nat -N FLANNEL-POSTRTG", "filter -N FLANNEL-FWD"}
	for _, r := range rules {
		lines = append(lines, commented("nat -A FLANNEL-POSTRTG "+r)...)
	}
	lines = append(lines, "nat -A POSTROUTING ELSE", "filter -A FORWARD ELSE")
	return append(lines, commented("filter -A FLANNEL-FWD -s N -j ACCEPT", "filter -A FLANNEL-FWD -d N -j ACCEPT",
		"nat "+jump+" POSTROUTING -j FLANNEL-POSTRTG", "filter "+jump+" FORWARD -j FLANNEL-FWD")...)
}

func generations() map[string][]string {
	four := []string{"-s N -d N -j RETURN", "-s N ! -d 224.0.0.0/4 -j MASQ --random-fully", "! -s N -d S -j RETURN", "! -s N -d N -j MASQ --random-fully"}
	const mark = "-m mark --mark 0x4000/0x4000 -j RETURN"
	six := []string{mark, "-s S -d N -j RETURN", "-s N -d S -j RETURN", "! -s N -d S -j RETURN", four[1], four[3]}
	return map[string][]string{
		"v0.5.0":       v05(),
		"v0.5.6":       v056(),
		"v0.8":         v08(),
		"v0.9":         v09(),
		"v0.11":        randomly(v09()),
		"v0.16":        v016(),
		"v0.20.0":      chains("-I", four...),
		"v0.20.2":      chains("-I", append([]string{mark}, four...)...),
		"v0.21.2":      chains("-I", six...),
		"v0.21.3":      chains("-A", six...),
		"v0.8 twice":   append(v08(), v08()...),
		"v0.5.6, v0.8": append(v056(), v08()...),
		"two mingled":  {v056()[0], v056()[0], v056()[1], v056()[1], v056()[3], v056()[2], v056()[3]},
		"slip of v0.16.3": {
			"nat -A POSTROUTING -s N -d N -m comment --comment 'flannel masq' -j RETURN",
			"nat -A POSTROUTING ELSE", "filter -A FORWARD ELSE",
		},
		"one of v0.16": {v016()[2], "nat -A POSTROUTING ELSE", "filter -A FORWARD ELSE"},
	}
}

// TestUpgradeFromOldReleases upgrades from every one, with the overlay as
// it was, with another subnet of it and with another one.
func TestUpgradeFromOldReleases(t *testing.T) {
	all := generations()
	moved := overlay("10.42.0.0/16", "10.42.9.0/24")
	eachVariant(t, func(b *bed) {
		b.others(strangers)
		start := b.start()
		for _, name := range slices.Sorted(maps.Keys(all)) {
			for _, was := range []firewall.Overlay{four, moved, other} {
				b.others(start + script(was, all[name]...))
				before := b.rules()
				want := everything(four)
				b.sync(want, four, was)
				rules := b.rules()
				b.differ(name+": rules of others", foreign(rules), foreign(withoutOldRules(before, was)))
				for _, a := range anchors()[:2] {
					if left := chain(rules, a.table, a.chain); strings.Count(left, "FLANNEL") != 1 || strings.Count(left, `"flannel`) != strings.Count(left, `"flanneld masquerade"`)+1 {
						b.t.Errorf("%s: more or less than one jump is ours:\n%s", name, left)
					}
				}
				b.settled(want, four, was)
			}
		}
	})
}

// start returns a script that restores the present rules.
func (b *bed) start() string {
	b.others("iptables -t nat -P OUTPUT ACCEPT; iptables -P OUTPUT ACCEPT") // the tables are there
	return "iptables-restore <<'END'\n" + b.others("iptables-save") + "END\n"
}

// withoutOldRules removes the lines of a script from a listing, by their text, which foreign rules
// do not have.
func withoutOldRules(rules string, o firewall.Overlay) string {
	var b strings.Builder
	n, s := " "+o.Network.String(), " "+o.Subnet.String()
	for line := range strings.Lines(rules) {
		old := line == ":FLANNEL -\n" || strings.HasPrefix(line, "-A FLANNEL ") || strings.Contains(line, `"flannel masq"`)
		for _, l := range []string{"-s" + n + " -d" + n + " -j RETURN", "-s" + n + " ! -d 224.0.0.0/4", "! -s" + n + " -d" + s + " -j RETURN",
			"! -s" + n + " -d" + n + " -j MASQUERADE", "-s" + n + " -j FLANNEL", "-s" + n + " -j ACCEPT", "FORWARD -d" + n + " -j ACCEPT"} {
			old = old || strings.Contains(line, l)
		}
		if !old {
			b.WriteString(line)
		}
	}
	return b.String()
}

// TestSimilarRulesAreKept leaves alone what only resembles an earlier generation.
func TestSimilarRulesAreKept(t *testing.T) {
	tests := map[string][]string{
		"incomplete":         {"nat -A POSTROUTING -s N -d N -j RETURN", "nat -A POSTROUTING ! -s N -d N -j MASQ"},
		"half of forward":    {"filter -A FORWARD -s N -j ACCEPT"},
		"other order":        {v056()[1], v056()[0], v056()[3]},
		"one with an option": {v056()[0], v056()[1], "nat -A POSTROUTING ! -s N -d N -o eth0 -j MASQ"},
		"one not quite":      {v056()[0], v056()[1], "nat -A POSTROUTING ! -s N -d N -j MASQ --random"},
		"another's comments": {v056()[0], v056()[1], "nat -A POSTROUTING ! -s N -d N -m comment --comment mine -j MASQ"},
		"chain with more":    append(v05(), "nat -A FLANNEL -j RETURN"),
		"chain with less":    without(v05(), v05()[1]),
		"chain, no jump":     without(v05(), v05()[3]),
		"our comment":        {"nat -A POSTROUTING -s N -d 198.51.100.0/24 -m comment --comment 'flanneld masq' -j RETURN"},
	}
	eachVariant(t, func(b *bed) {
		start := b.start()
		for _, name := range slices.Sorted(maps.Keys(tests)) {
			b.others(start + script(four, tests[name]...))
			before := b.rules()
			if changes := b.sync(nil, four, other); len(changes) > 0 {
				b.t.Errorf("%s: %q", name, changes)
			}
			b.differ(name, b.rules(), before)
		}
		b.others(start + script(four, v09()...))
		before := b.rules()
		every := overlay("0.0.0.0/0", "0.0.0.0/0")
		b.sync(nil, other, firewall.Overlay{}, every)
		b.differ("another overlay", b.rules(), before)
		b.others("iptables -A FORWARD -j ACCEPT; iptables -A FORWARD -j ACCEPT")
		before = b.rules()
		b.sync(nil, firewall.Overlay{}, every)
		b.differ("no overlay", b.rules(), before)
	})
}

// TestOldChainInUseIsKept keeps a chain, with its rules, that a foreign rule references.
func TestOldChainInUseIsKept(t *testing.T) {
	eachVariant(t, func(b *bed) {
		b.others(script(four, append(v05(), "nat -A POSTROUTING -o eth4 -j FLANNEL")...))
		b.sync(nil, four)
		b.differ("chain", chain(b.rules(), "nat", "FLANNEL"), "-d 10.42.0.0/16 -j ACCEPT\n! -d 224.0.0.0/4 -j MASQUERADE\n")
		b.differ("postrouting", chain(b.rules(), "nat", "POSTROUTING"), "-o eth5 -j ACCEPT\n-o eth4 -j FLANNEL\n")
		b.settled(nil, four)
	})
}
