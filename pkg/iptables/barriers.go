package iptables

import (
	"context"
	"strings"

	"flanneld/pkg/firewall"
)

// builtin returns where a built-in chain of a table is attached, and its priority.
func builtin(table, chain string) (at firewall.Point, priority int32, ok bool) {
	priority, ok = map[string]int32{
		"raw": firewall.PriorityRaw, "mangle": firewall.PriorityMangle, "nat": firewall.PriorityNATDst,
		"filter": firewall.PriorityFilter, "security": firewall.PrioritySecurity,
	}[table]
	if !ok {
		return 0, 0, false
	}
	at, ok = map[string]firewall.Point{
		"PREROUTING": firewall.AtPreRouting, "INPUT": firewall.AtInput, "FORWARD": firewall.AtForward,
		"OUTPUT": firewall.AtOutput, "POSTROUTING": firewall.AtPostRouting,
	}[chain]
	if table == "nat" && (at == firewall.AtInput || at == firewall.AtPostRouting) {
		priority = firewall.PriorityNATSrc
	}
	return at, priority, ok
}

// Barriers returns the base chains that drop, or may drop, a packet to this host or through it,
// apart from flanneld's own rules.
func (t *Tables) Barriers(ctx context.Context, p firewall.Packet) ([]firewall.Barrier, error) {
	l, drops, err := t.list(ctx)
	if err != nil {
		return nil, err
	}
	return barriers(t.command, l, drops, p), nil
}

func barriers(command string, l listing, drops policies, p firewall.Packet) (all []firewall.Barrier) {
	// Reading cannot fail, because all rules are in the listing.
	all, _ = firewall.Dropping(p, l.baseChains(command, drops, true))
	return all
}

// baseChains returns the base chains of the listing. foreign leaves out flanneld's own rules.
func (l listing) baseChains(command string, drops policies, foreign bool) (all []firewall.BaseChain) {
	for name, rules := range l {
		reader := tableReader{rules: rules, words: map[string][]words{}}
		for chain := range rules {
			at, priority, ok := builtin(name, chain)
			if !ok {
				continue
			}
			c := firewall.BaseChain{
				Kind: command, Table: name, Name: chain, Point: at, Priority: priority,
				NAT: name == "nat", Policy: firewall.Passes,
				Steps: func(p firewall.Packet, chain string) ([]firewall.Step, error) {
					if foreign && chain == firewall.Input.SharedChain() {
						return nil, nil // ours, which drops no packets of peers
					}
					return reader.steps(p, chain), nil
				},
			}
			if drops[name+" "+chain] {
				c.Policy = firewall.Drops
			}
			all = append(all, c)
		}
	}
	return all
}

// tableReader evaluates the rules of a table. It splits each into words once.
type tableReader struct {
	rules table
	words map[string][]words // by chain
}

// words are the words of a rule.
type words struct {
	list []string
	ok   bool // the quotes are balanced
}

func (r *tableReader) steps(p firewall.Packet, chain string) []firewall.Step {
	rules, known := r.words[chain]
	if !known {
		rules = make([]words, 0, len(r.rules[chain]))
		for _, text := range r.rules[chain] {
			list, ok := split(text)
			rules = append(rules, words{list, ok})
		}
		r.words[chain] = rules
	}
	steps := make([]firewall.Step, 0, len(rules))
	for i, w := range rules {
		s := stepOf(w, r.rules, p)
		if s.Number = i + 1; s.Met != firewall.No && (s.Do != firewall.Next || s.Sets != 0) {
			steps = append(steps, s)
		}
	}
	return steps
}

// ruleText returns a rule as iptables-save prints it, or "" if there is none.
func (l listing) ruleText(table string, r firewall.RuleRef) string {
	if rules := l[table][r.Chain]; r.Number >= 1 && r.Number <= len(rules) {
		return strings.TrimSpace("-A " + r.Chain + " " + rules[r.Number-1])
	}
	return ""
}
