package iptables

import (
	"slices"
	"sort"

	"flanneld/pkg/firewall"
)

// releaseRules are the rules of earlier releases in the hook's chain, normalised, without comments
// and random ports.
type releaseRules struct {
	firewall.OldRuleset
	rules []spec
}

// deleteOldRules deletes the owner's rules of earlier releases from the hook's chain.
func (e *edit) deleteOldRules() {
	rules := e.have[e.chain]
	parsed := make([]spec, len(rules)) // zero for rules in an unknown form
	gone := make([]bool, len(rules))
	all := e.releaseRules(e.owner.Overlays)
	for i, rule := range rules {
		s, known := parseRule(rule)
		if !known {
			continue
		}
		s.random = false // the use depended on the version of iptables
		parsed[i] = s
		if isOldRule(parsed[i], all) {
			gone[i] = true
			e.change("removed a rule of an earlier release from chain %s", e.chain)
		}
	}
	jumps := map[string]int{} // that are deleted, by chain of a release
	for _, g := range all {
		for found := g.match(parsed, gone); found != nil; found = g.match(parsed, gone) {
			for _, i := range found {
				gone[first(rules, gone, rules[i])] = true
			}
			e.change("removed rules of %s from chain %s", g.Releases, e.chain)
			if g.Chain != "" {
				jumps[g.Chain]++
			}
		}
	}
	for i, rule := range rules {
		if gone[i] {
			e.delete(e.chain, rule)
		} else {
			e.rest = append(e.rest, rule)
		}
	}
	for chain, n := range jumps {
		if e.have.references(chain) == n {
			e.line("-F %s", chain)
			e.line("-X %s", chain)
			e.change("removed chain %s", chain)
		}
	}
}

// first returns the index of the rule that a deletion by this text removes.
func first(rules []string, gone []bool, text string) int {
	for i, rule := range rules {
		if !gone[i] && rule == text {
			return i
		}
	}
	return -1
}

// releaseRules returns the rules of earlier releases for the hook, the longest first, because a
// longer set may contain a shorter one. A release's own chain must be exactly as the release wrote
// it, otherwise it belongs to another program.
func (e *edit) releaseRules(former []firewall.Overlay) []releaseRules {
	var all []releaseRules
	for i, o := range former {
		// A network of all addresses would match rules of other programs.
		if !o.Network.IsValid() || o.Network.Bits() == 0 || slices.Contains(former[:i], o) {
			continue
		}
		for _, f := range firewall.OldRulesets(o) {
			if f.Hook != e.hook || f.Chain != "" && !equal(e.have[f.Chain], specs(f.ChainRules)) {
				continue
			}
			g := releaseRules{f, specs(f.Rules)}
			if f.Chain != "" {
				g.rules[0].target = f.Chain
			}
			all = append(all, g)
		}
	}
	sort.SliceStable(all, func(i, j int) bool { return len(all[i].rules) > len(all[j].rules) })
	return all
}

func specs(rules []firewall.Rule) (all []spec) {
	for _, r := range rules {
		all = append(all, specOf(r, ""))
	}
	return all
}

// isOldRule reports whether a rule with an old comment is one of the releases' rules. The comment
// identifies it even if the other rules are missing.
func isOldRule(s spec, all []releaseRules) bool {
	if !slices.Contains(firewall.OldComments(), s.comment) {
		return false
	}
	s.comment = ""
	return slices.ContainsFunc(all, func(g releaseRules) bool { return g.Chain == "" && slices.Contains(g.rules, s) })
}

// match returns the indexes of a release's rules, in order, or nil if some are missing.
func (g releaseRules) match(rules []spec, gone []bool) []int {
	var found []int
	for i, s := range rules {
		if !gone[i] && s == g.rules[len(found)] {
			if found = append(found, i); len(found) == len(g.rules) {
				return found
			}
		}
	}
	return nil
}
