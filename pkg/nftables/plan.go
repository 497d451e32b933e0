package nftables

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
)

// plan is the list of messages that turn the present ruleset into the wanted one. It is computed
// from these two alone.
type plan struct {
	family      Family
	owner       firewall.Owner
	messages    []message
	changes     []string
	ownerLocked []string // chains that need accepts and that we may not change
}

// ownerError returns the error that only the owners of tables can change some chains, or nil.
func (p *plan) ownerError() error {
	if len(p.ownerLocked) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", firewall.ErrOwnerLocked, strings.Join(p.ownerLocked, ", "))
}

func newPlan(r firewall.Ruleset, w ruleset) *plan {
	p := &plan{family: familyOf(r.Family), owner: r.Owner}
	own := r.Chains
	if r.HeldIn != firewall.Nowhere {
		own = nil
	}
	p.table(own, w)
	for _, f := range w.foreign {
		// The chains of iptables-nft need no accepts if it holds the rules.
		held := r.HeldIn == firewall.Compat &&
			f.chainName == chainName{p.family, f.hook.Table(), f.hook.Chain()}
		var rules []rule
		for _, c := range firewall.Accepts(r.Chains) {
			if c.Hook == f.hook && !held {
				rules = p.rules(c)
			}
		}
		for i := range rules {
			rules[i].Comment = firewall.ForeignComment
		}
		p.foreignAccepts(f, rules)
	}
	return p
}

// rules returns the rules in the form in which the kernel's are parsed. Their prefixes are masked
// and none matches all addresses, for which there is no expression: networks have 1 to 28 bits.
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

// ownChain is a chain of our table.
type ownChain struct {
	hook firewall.Hook
	name string
	at   place
}

// ownChains returns the chains of our table. PreRouting has none: an accept in it would not
// override another chain's drop.
func ownChains() []ownChain {
	return []ownChain{
		{firewall.PostRouting, "postrtg", place{"nat", unix.NF_INET_POST_ROUTING, 100}},
		{firewall.Forward, "forward", place{"filter", unix.NF_INET_FORWARD, 0}},
		{firewall.Input, "input", place{"filter", unix.NF_INET_LOCAL_IN, 0}},
		{firewall.Output, "output", place{"filter", unix.NF_INET_LOCAL_OUT, 0}},
	}
}

// ownership is the rules of a chain of our table by owner, in order.
type ownership struct {
	shared, ours, others, unowned []listed
}

func (p *plan) classify(have []listed, shared []rule) (h ownership) {
	for _, l := range have {
		switch {
		case l.ok && slices.Contains(shared, l.rule):
			h.shared = append(h.shared, l)
		case l.rule.Shared():
			h.unowned = append(h.unowned, l)
		case p.owner.Owns(l.rule.Rule):
			h.ours = append(h.ours, l)
		default:
			h.others = append(h.others, l)
		}
	}
	return h
}

// table plans our own table, which the networks of a host share.
func (p *plan) table(want []firewall.Chain, w ruleset) {
	name := p.family.tableName()
	var all []contents
	for _, own := range ownChains() {
		all = append(all, p.contents(own, want, w.chains))
	}
	if !slices.ContainsFunc(all, contents.needed) {
		if w.table != nil {
			p.add(deleteTable(p.family, name))
			p.change("removed table %s %s", p.family, name)
		}
		return
	}
	verb := "created"
	if w.table != nil && len(want) > 0 && !w.table.repairable(all) {
		p.add(deleteTable(p.family, name))
		w.table, verb = nil, "recreated"
		for i := range all {
			all[i].have = nil
		}
	}
	if w.table == nil {
		p.add(createTable(p.family, name))
		p.change("%s table %s %s", verb, p.family, name)
	}
	for _, c := range all {
		if c.have != nil && !c.needed() {
			// Before Linux 4.15, a chain must be empty.
			p.add(message{unix.NFT_MSG_DELRULE, 0, p.family, c.ruleAttrs()})
			p.add(message{unix.NFT_MSG_DELCHAIN, 0, p.family, c.attrs(unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME)})
			p.change("removed chain %s", c.chainName)
		}
	}
	for _, c := range all {
		if c.needed() {
			p.chain(c)
		}
	}
}

// contents is the present and wanted state of a chain of our table.
type contents struct {
	chainName
	at          place
	have        *chain // nil if it does not exist
	ownership          // of have
	wanted      bool   // the owner wants the chain, with
	shared, own []rule // these shared rules, and then these of its own
}

// needed reports whether any network has rules in the chain.
func (c contents) needed() bool { return c.wanted || len(c.others) > 0 }

func (p *plan) contents(own ownChain, want []firewall.Chain, have []chain) contents {
	c := contents{chainName: chainName{p.family, p.family.tableName(), own.name}, at: own.at}
	for _, w := range want {
		if w.Hook != own.hook {
			continue
		}
		c.wanted = true
		for _, r := range p.rules(w) {
			if r.Shared() {
				c.shared = append(c.shared, r)
			} else {
				c.own = append(c.own, r)
			}
		}
	}
	if i := slices.IndexFunc(have, func(h chain) bool { return h.name == own.name }); i >= 0 {
		c.have, c.ownership = &have[i], p.classify(have[i].rules, c.shared)
	}
	return c
}

// repairable reports whether our table can be repaired chain by chain. If it contains anything
// else, or a chain in the wrong place, it is deleted and created again in the same transaction,
// with the rules of other networks.
func (t table) repairable(all []contents) bool {
	sound := 0
	for _, c := range all {
		if c.have != nil && c.have.base && c.have.place == c.at {
			sound++
		}
	}
	return t.flags == 0 && t.uses == sound
}

// chain plans one chain of our table. The rules of other networks stay where they are: a packet can
// match rules of two networks only if it goes from one network to the other.
func (p *plan) chain(c contents) {
	n := c.chainName
	if c.have == nil {
		p.add(n.create(c.at))
		rules := slices.Concat(c.shared, parsedRules(c.others), c.own)
		if !c.wanted {
			rules = parsedRules(append(c.unowned, c.others...)) // shared rules are among the unowned ones
		}
		p.append(n, rules)
		p.change("created chain %s with %d rules", n, len(rules))
		return
	}
	if c.wanted && c.have.policy != nfAccept {
		body := n.attrs(unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME).Uint32BE(unix.NFTA_CHAIN_POLICY, nfAccept)
		p.add(message{unix.NFT_MSG_NEWCHAIN, 0, p.family, body})
		p.change("set policy of chain %s", n)
	}
	var gone []listed
	var first, last []rule
	if c.wanted {
		gone = c.unowned
		n := len(c.shared)
		if len(c.ownership.shared) != n || !equalRules(c.have.rules[:n], c.shared) {
			gone, first = append(gone, c.ownership.shared...), c.shared
		}
	}
	if !equalRules(c.ours, c.own) {
		gone, last = append(gone, c.ours...), c.own
	}
	for _, l := range gone {
		p.delete(n, l)
	}
	for _, r := range slices.Backward(first) {
		p.add(r.request(n, 0, 0))
	}
	p.append(n, last)
	if len(gone)+len(first)+len(last) > 0 {
		p.change("replaced %d rules of chain %s by %d", len(gone), n, len(first)+len(last))
	}
}

// parsedRules returns the rules that could be parsed. No daemon has written the others.
func parsedRules(rules []listed) (known []rule) {
	for _, l := range rules {
		if l.ok {
			known = append(known, l.rule)
		}
	}
	return known
}

func equalRules(have []listed, want []rule) bool {
	return slices.EqualFunc(have, want, func(l listed, r rule) bool { return l.ok && l.rule == r })
}

func (p *plan) append(n chainName, rules []rule) {
	for _, r := range rules {
		p.add(r.request(n, unix.NLM_F_APPEND, 0))
	}
}

func (p *plan) delete(n chainName, l listed) {
	body := n.ruleAttrs().Uint64BE(unix.NFTA_RULE_HANDLE, l.handle)
	p.add(message{unix.NFT_MSG_DELRULE, 0, n.family, body})
}

// isForeignAccept reports whether a rule in another program's chain is an accept that a network's
// daemon maintains there: it has our comment, or the original's, and a form that we might have
// written. Rules with the hook's own comment are left from the original, and daemons that use
// iptables treat them so.
func (l listed) isForeignAccept(h firewall.Hook) bool {
	return l.ok && (l.rule.Comment == firewall.ForeignComment || l.rule.Comment == h.Comment()) &&
		l.rule.Verdict == firewall.Accept && l.rule.Mark == 0
}

// foreignAccepts plans the owner's accepts of this family in one foreign chain. Rules ahead of them
// that also want to be first are ignored: accepts of the other family in inet tables, accepts of
// other networks' daemons, and the jump to the chain that these share by iptables.
func (p *plan) foreignAccepts(f foreign, want []rule) {
	var here, mine, others []listed
	for _, l := range f.rules {
		switch {
		case l.effect.jump == f.hook.SharedChain():
		case !l.isForeignAccept(f.hook):
			others = append(others, l)
			here = append(here, l)
		case l.rule.Family == p.family && p.owner.Owns(l.rule.Rule):
			mine = append(mine, l)
			here = append(here, l)
		}
	}
	if !f.needsAccepts(p.family, others) {
		want = nil
	}
	lead := 0
	for lead < len(others) && goesBeforeAccepts(others[lead].effect.jump) {
		lead++
	}
	here = here[lead:] // has the others
	if len(mine) == len(want) && len(here) >= len(want) && equalRules(here[:len(want)], want) {
		return
	}
	if f.flags&owned != 0 {
		if len(want) > 0 {
			p.ownerLocked = append(p.ownerLocked, f.String())
		}
		return
	}
	for _, l := range mine {
		p.delete(f.chainName, l)
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
		p.change("added %d rules to chain %s", len(want), f)
	default:
		p.change("replaced %d rules of chain %s by %d", len(mine), f, len(want))
	}
}
