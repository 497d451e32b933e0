package nftables

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
)

// plan is what turns the world into the wanted one. It is made without a look at
// anything else.
type plan struct {
	family   Family
	messages []message
	changes  []string
	barred   []string // chains that need guests and that we may not change
}

func newPlan(family Family, want []firewall.Chain, w world) *plan {
	p := &plan{family: family}
	p.table(want, w)
	for _, f := range w.foreign {
		var rules []rule
		for _, c := range want {
			if c.Hook == f.hook {
				rules = p.rules(c)
			}
		}
		for i := range rules {
			rules[i].Comment = guestComment
		}
		p.guests(f, rules)
	}
	return p
}

func (p *plan) rules(c firewall.Chain) []rule {
	var rules []rule
	for _, r := range c.Rules {
		rules = append(rules, newRule(p.family, c.Hook, r))
	}
	return rules
}

func (p *plan) add(m message) { p.messages = append(p.messages, m) }

func (p *plan) change(format string, args ...any) {
	p.changes = append(p.changes, fmt.Sprintf(format, args...))
}

// own describes the chain of our table that a hook has. There is none for
// PreRouting: an accept in it would not override anybody's drop.
func own(h firewall.Hook) (name string, at place, ok bool) {
	switch h {
	case firewall.PostRouting:
		return "postrtg", place{"nat", unix.NF_INET_POST_ROUTING, 100}, true
	case firewall.Forward:
		return "forward", place{"filter", unix.NF_INET_FORWARD, 0}, true
	}
	return "", place{}, false
}

// table makes our own table right.
func (p *plan) table(want []firewall.Chain, w world) {
	want = slices.DeleteFunc(slices.Clone(want), func(c firewall.Chain) bool {
		_, _, ok := own(c.Hook)
		return !ok
	})
	name := p.family.tableName()
	body := attrs{}.text(unix.NFTA_TABLE_NAME, name)
	gone := message{kind: unix.NFT_MSG_DELTABLE, family: p.family, body: body}
	if len(want) == 0 {
		if w.table != nil {
			p.add(gone)
			p.change("removed table %s %s", p.family, name)
		}
		return
	}
	have, verb := w.chains, "made"
	if w.table != nil && !sound(w) {
		p.add(gone)
		w.table, have, verb = nil, nil, "made anew"
	}
	if w.table == nil {
		p.add(message{kind: unix.NFT_MSG_NEWTABLE, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, family: p.family,
			body: body.u32(unix.NFTA_TABLE_FLAGS, 0)})
		p.change("%s table %s %s", verb, p.family, name)
	}
	for _, c := range have {
		if !slices.ContainsFunc(want, func(w firewall.Chain) bool { n, _, _ := own(w.Hook); return n == c.name }) {
			p.flush(c.chainName)
			p.add(message{kind: unix.NFT_MSG_DELCHAIN, family: p.family,
				body: c.attrs(unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME)})
			p.change("removed chain %s", c.chainName)
		}
	}
	for _, c := range want {
		p.chain(c, have)
	}
}

// sound tells whether our table can be made right chain by chain. What nothing
// of ours has in it, or in the wrong place, is best removed with the table.
func sound(w world) bool {
	if w.table.flags != 0 || w.table.uses != len(w.chains) {
		return false
	}
	for _, c := range w.chains {
		if !slices.ContainsFunc([]firewall.Hook{firewall.PostRouting, firewall.Forward}, func(h firewall.Hook) bool {
			name, at, _ := own(h)
			return c.base && c.name == name && c.place == at
		}) {
			return false
		}
	}
	return true
}

// chain makes one chain of our table right.
func (p *plan) chain(want firewall.Chain, have []chain) {
	name, at, _ := own(want.Hook)
	n := chainName{p.family, p.family.tableName(), name}
	body := n.attrs(unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME).u32(unix.NFTA_CHAIN_POLICY, nfAccept)
	rules := p.rules(want)
	i := slices.IndexFunc(have, func(c chain) bool { return c.name == name })
	if i < 0 {
		hook := attrs{}.u32(unix.NFTA_HOOK_HOOKNUM, at.hook).u32(unix.NFTA_HOOK_PRIORITY, uint32(at.priority))
		p.add(message{kind: unix.NFT_MSG_NEWCHAIN, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, family: p.family,
			body: body.nest(unix.NFTA_CHAIN_HOOK, hook).text(unix.NFTA_CHAIN_TYPE, at.kind)})
		p.append(n, rules)
		p.change("made chain %s with %d rules", n, len(rules))
		return
	}
	if have[i].policy != nfAccept {
		p.add(message{kind: unix.NFT_MSG_NEWCHAIN, family: p.family, body: body})
		p.change("set policy of chain %s", n)
	}
	if !slices.EqualFunc(have[i].rules, rules, func(l listed, r rule) bool { return l.ok && l.rule == r }) {
		p.flush(n)
		p.append(n, rules)
		p.change("replaced %d rules of chain %s by %d", len(have[i].rules), n, len(rules))
	}
}

func (p *plan) flush(n chainName) {
	p.add(message{kind: unix.NFT_MSG_DELRULE, family: p.family, body: n.attrs(unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN)})
}

func (p *plan) append(n chainName, rules []rule) {
	for _, r := range rules {
		p.add(r.request(n, unix.NLM_F_APPEND, 0))
	}
}

// guestComment marks guests. Rules with the hook's own comment, among those of
// iptables-nft, are what the original has left, and whoever keeps rules by
// iptables takes them for that.
const guestComment = "flanneld"

// isGuest tells whether a rule in somebody else's chain is ours: it has our
// comment, or the original's, and a form that we might have given it.
func (l listed) isGuest(h firewall.Hook) bool {
	return l.ok && (l.rule.Comment == guestComment || l.rule.Comment == h.Comment()) && l.rule.Verdict == firewall.Accept && l.rule.Mark == 0
}

// guests makes the guests of this family in one chain right. Those of the other
// family, which tables of both have, are as if they were not there.
func (p *plan) guests(f foreign, want []rule) {
	var here, mine, others []listed
	for _, l := range f.rules {
		switch {
		case !l.isGuest(f.hook):
			others = append(others, l)
			here = append(here, l)
		case l.rule.Family == p.family:
			mine = append(mine, l)
			here = append(here, l)
		}
	}
	if !f.needsGuests(p.family, others) {
		want = nil
	}
	lead := 0
	for lead < len(others) && precedes(others[lead].effect.jump) {
		lead++
	}
	if len(mine) == len(want) && standAt(here, lead, want) {
		return
	}
	if f.flags&owned != 0 {
		if len(want) > 0 {
			p.barred = append(p.barred, f.String())
		}
		return
	}
	for _, l := range mine {
		p.add(message{kind: unix.NFT_MSG_DELRULE, family: f.family,
			body: f.attrs(unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN).u64(unix.NFTA_RULE_HANDLE, l.handle)})
	}
	for _, r := range slices.Backward(want) {
		if lead > 0 {
			p.add(r.request(f.chainName, unix.NLM_F_APPEND, others[lead-1].handle))
		} else {
			p.add(r.request(f.chainName, 0, 0))
		}
	}
	switch {
	case len(want) == 0:
		p.change("removed %d rules from chain %s", len(mine), f)
	case len(mine) == 0:
		p.change("put %d rules into chain %s", len(want), f)
	default:
		p.change("put %d rules into chain %s for %d", len(want), f, len(mine))
	}
}

// standAt tells whether a chain has the wanted rules of ours from a place on.
func standAt(have []listed, at int, want []rule) bool {
	if at+len(want) > len(have) {
		return false
	}
	return slices.EqualFunc(have[at:at+len(want)], want, func(l listed, r rule) bool { return l.ok && l.rule == r })
}
