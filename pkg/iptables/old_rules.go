package iptables

import (
	"cmp"
	"slices"

	"flanneld/pkg/firewall"
)

// releaseRules is what an earlier release has left in the hook's chain, in normal
// form without comments and ports at random.
type releaseRules struct {
	firewall.OldRuleset
	rules []spec
}

// deleteOldRules deletes the owner's rules of earlier generations from the hook's chain.
func (e *edit) deleteOldRules() {
	rules := e.have[e.chain]
	parsed := make([]spec, len(rules)) // without those of others
	gone := make([]bool, len(rules))
	all := e.releaseRules(e.owner.Overlays)
	for i, rule := range rules {
		s, known := parseRule(rule)
		if !known {
			continue
		}
		parsed[i] = anyPorts(s)
		if isOldRule(parsed[i], all) {
			gone[i] = true
			e.change("rule of an earlier release removed from %s", e.chain)
		}
	}
	var left []string // chains of generations, one for each deleted jump
	for _, g := range all {
		for {
			found := g.match(parsed, gone)
			if found == nil {
				break
			}
			for _, i := range found {
				gone[first(rules, gone, rules[i])] = true
			}
			e.change("rules of %s removed from %s", g.Releases, e.chain)
			if g.Chain != "" {
				left = append(left, g.Chain)
			}
		}
	}
	for i, rule := range rules {
		if gone[i] {
			e.delete(e.chain, []string{rule})
		} else {
			e.rest = append(e.rest, rule)
		}
	}
	e.dropChains(left)
}

// first gives the place of the rule that a deletion by this text takes.
func first(rules []string, gone []bool, text string) int {
	for i, rule := range rules {
		if !gone[i] && rule == text {
			return i
		}
	}
	return -1
}

// dropChains removes chains to which no rule leads any more.
func (e *edit) dropChains(left []string) {
	for i, chain := range left {
		if slices.Index(left, chain) == i && e.have.references(chain) == count(left, chain) {
			e.line("-F %s", chain)
			e.line("-X %s", chain)
			e.change("chain %s removed", chain)
		}
	}
}

func count(all []string, one string) (n int) {
	for _, s := range all {
		if s == one {
			n++
		}
	}
	return n
}

// releaseRules are those of the hook, the longest first: a longer one may hold a
// shorter one's rules among its own. A chain of a generation's own must be
// exactly as it was left, else it is somebody else's of the same name.
func (e *edit) releaseRules(former []firewall.Overlay) []releaseRules {
	var all []releaseRules
	for i, o := range former {
		// A network of all addresses would match rules of everybody.
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
	slices.SortStableFunc(all, func(a, b releaseRules) int { return cmp.Compare(len(b.rules), len(a.rules)) })
	return all
}

func specs(rules []firewall.Rule) []spec {
	var all []spec
	for _, r := range rules {
		all = append(all, specOf(r, ""))
	}
	return all
}

// isOldRule knows a rule by its comment, so that it need not be in company.
func isOldRule(s spec, all []releaseRules) bool {
	if !slices.Contains(firewall.OldComments(), s.comment) {
		return false
	}
	s.comment = ""
	return slices.ContainsFunc(all, func(g releaseRules) bool { return g.Chain == "" && slices.Contains(g.rules, s) })
}

// match gives the places of a whole generation's rules, in order, or nil.
func (g releaseRules) match(rules []spec, gone []bool) []int {
	var found []int
	for i, s := range rules {
		if len(found) < len(g.rules) && !gone[i] && s == g.rules[len(found)] {
			found = append(found, i)
		}
	}
	if len(found) < len(g.rules) {
		return nil
	}
	return found
}

// anyPorts makes no difference between masquerading with and without ports at
// random, which depended on the version of iptables.
func anyPorts(s spec) spec {
	if s.options == randomPorts {
		s.options = ""
	}
	return s
}
