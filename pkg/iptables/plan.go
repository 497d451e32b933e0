package iptables

import (
	"fmt"
	"slices"
	"strings"

	"flanneld/pkg/firewall"
)

// dockerUser is the chain that Docker keeps at the head of FORWARD for the
// operator's own rules; they go before ours.
const dockerUser = "DOCKER-USER"

// anchor is where a hook's rules are: in a chain that the networks of a host share,
// to which a jump leads from the hook's chain.
type anchor struct {
	hook         firewall.Hook
	table, chain string
	own          string
	// first says that the jump goes before the rules of others: there one may
	// drop what we accept. Masquerading goes behind them, as the original's does.
	first bool
}

func anchors() []anchor {
	all := []anchor{
		{hook: firewall.PostRouting},
		{hook: firewall.Forward, first: true},
		{hook: firewall.PreRouting, first: true},
		{hook: firewall.Input, first: true},
		{hook: firewall.Output, first: true},
	}
	for i, a := range all {
		all[i].table, all[i].chain, all[i].own = a.hook.Table(), a.hook.Chain(), a.hook.SharedChain()
	}
	return all
}

// plan is what iptables-restore has to read, and the same in words. Both are
// empty when nothing is to be done.
type plan struct {
	input   string
	changes []string
}

// makePlan compares a listing with what the owner wants. Rules that are nobody's
// are left in our chains unless it is thorough.
func makePlan(l listing, owner firewall.Owner, want []firewall.Chain, thorough bool) plan {
	var p plan
	var tables []string
	lines := map[string][]string{} // by table, which is to change by one commit
	for _, a := range anchors() {
		e := edit{anchor: a, owner: owner, have: l[a.table]}
		e.deleteOldRules()
		i := slices.IndexFunc(want, func(c firewall.Chain) bool { return c.Hook == a.hook })
		if i >= 0 && e.needed() {
			e.syncChain(want[i].Rules, thorough)
			e.syncJump()
		} else {
			e.remove()
		}
		if len(e.lines) > 0 {
			if lines[a.table] == nil {
				tables = append(tables, a.table)
			}
			lines[a.table] = append(lines[a.table], e.lines...)
			p.changes = append(p.changes, e.changes...)
		}
	}
	for _, t := range tables {
		p.input += "*" + t + "\n" + strings.Join(lines[t], "\n") + "\nCOMMIT\n"
	}
	return p
}

// edit changes one table.
type edit struct {
	anchor
	owner   firewall.Owner
	have    table
	rest    []string // rules of the hook's chain but those that clean has deleted
	lines   []string
	changes []string
}

func (e *edit) line(format string, args ...any) {
	e.lines = append(e.lines, fmt.Sprintf(format, args...))
}

func (e *edit) change(format string, args ...any) {
	e.changes = append(e.changes, fmt.Sprintf(format, args...))
}

// needed tells whether there is something that the wanted rules would help
// against. In table raw that is somebody's DROP; nobody else pays for the table.
func (e *edit) needed() bool {
	return e.hook != firewall.PreRouting || slices.ContainsFunc(e.rest, func(rule string) bool {
		s, _ := parseRule(rule)
		return s.target == "DROP"
	})
}

// ownership are the rules of our chain by whose they are, in order.
type ownership struct {
	shared, ours, others, unowned []string
}

func (e *edit) classify(shared []spec) (h ownership) {
	for _, rule := range e.have[e.own] {
		s, known := parseRule(rule)
		switch {
		case strings.Contains(rule, "\n"): // iptables-restore could not read it
			h.others = append(h.others, rule)
		case known && slices.Contains(shared, s):
			h.shared = append(h.shared, rule)
		case s.rule.Shared():
			h.unowned = append(h.unowned, rule)
		case e.owner.Owns(s.rule):
			h.ours = append(h.ours, rule)
		default:
			h.others = append(h.others, rule)
		}
	}
	return h
}

// syncChain has our chain hold the shared rules first and the owner's in their order, and
// leaves those of other networks as they are. Where the owner's stand among them
// makes no difference: rules of two networks meet no packet but one from a network
// to the other.
func (e *edit) syncChain(rules []firewall.Rule, thorough bool) {
	var shared, own []spec
	for _, r := range rules {
		if s := specOf(r, e.hook.Comment()); r.Shared() {
			shared = append(shared, s)
		} else {
			own = append(own, s)
		}
	}
	h := e.classify(shared)
	made := !e.have.has(e.own)
	if made {
		e.line("-N %s", e.own) // and fail if another daemon has made it meanwhile
		e.change("chain %s made", e.own)
	}
	before := len(e.lines)
	if thorough {
		e.delete(e.own, h.unowned)
	}
	if have := e.have[e.own]; len(h.shared) != len(shared) || !equal(have[:len(shared)], shared) {
		e.delete(e.own, h.shared)
		for i, s := range shared {
			e.line("-I %s %d %s", e.own, i+1, s)
		}
	}
	if !equal(h.ours, own) {
		e.delete(e.own, h.ours)
		for _, s := range own {
			e.line("-A %s %s", e.own, s)
		}
	}
	if len(e.lines) > before && !made {
		e.change("chain %s corrected", e.own)
	}
}

func equal(rules []string, want []spec) bool {
	return slices.EqualFunc(rules, want, func(rule string, w spec) bool {
		s, known := parseRule(rule)
		return known && s == w
	})
}

// syncJump sees to it that one jump leads to our chain, and that it is where it
// belongs.
func (e *edit) syncJump() {
	jump := spec{target: e.own, comment: e.hook.Comment()}
	ours, others, right := e.jumps(jump)
	behind := e.jumpPosition(others)
	switch {
	case len(ours) == 1 && right == 1 && (!e.first || e.jumpInPlace(ours[0], behind)):
		return
	case e.first:
		e.delete(e.chain, ours)
		e.line("-I %s %d %s", e.chain, behind+1, jump)
	default:
		// Any place is right, so that the last of equal ones may stay: the first
		// is what a deletion finds.
		for _, rule := range ours {
			if s, _ := parseRule(rule); s != jump {
				e.delete(e.chain, []string{rule})
			} else if right > 1 {
				right--
				e.delete(e.chain, []string{rule})
			}
		}
		if right == 0 {
			e.line("-A %s %s", e.chain, jump)
		}
	}
	what := "corrected"
	if len(ours) == 0 {
		what = "made"
	}
	e.change("jump from %s to %s %s", e.chain, e.own, what)
}

// jumps parts the rules of the hook's chain into our jumps, of which some have
// the right form, and the others. A jump with conditions is somebody else's, and
// so is one that iptables-restore could not read.
func (e *edit) jumps(form spec) (ours, others []string, right int) {
	for _, rule := range e.rest {
		s, known := parseRule(rule)
		if known && s.target == e.own && s.rule == (firewall.Rule{}) && !strings.Contains(rule, "\n") {
			ours = append(ours, rule)
			if s == form {
				right++
			}
			continue
		}
		others = append(others, rule)
	}
	return ours, others, right
}

// jumpPosition is how many of the other rules our jump has to stand behind.
func (e *edit) jumpPosition(others []string) int {
	i := slices.IndexFunc(others, func(rule string) bool { return !e.isForeignAccept(rule) })
	if e.hook == firewall.Forward && i >= 0 {
		s, known := parseRule(others[i])
		if known && s.target == dockerUser && s.rule == (firewall.Rule{}) {
			return i + 1
		}
	}
	return 0
}

// jumpInPlace reports whether only guests stand between our jump and its place: whoever keeps
// them wants to be first, too.
func (e *edit) jumpInPlace(jump string, behind int) bool {
	at := slices.Index(e.rest, jump)
	return at >= behind && !slices.ContainsFunc(e.rest[behind:at], func(rule string) bool { return !e.isForeignAccept(rule) })
}

// isForeignAccept reports whether a rule is an accept that the daemon of a network keeps in the
// hook's chain itself, as those do that keep their rules in nftables.
func (e *edit) isForeignAccept(rule string) bool {
	s, known := parseRule(rule)
	return known && s.target == "ACCEPT" && s.rule.Mark == 0 && !s.rule.Shared() &&
		(s.comment == firewall.ForeignComment || s.comment == e.hook.Comment())
}

// remove takes the owner's rules away, and with the last network's what all share: our
// chain and the jumps to it. While rules of others lead to it the kernel keeps it,
// and so do we, empty. Each rule is deleted by itself: what another daemon has
// written since the listing is still there, and makes the deletion of the chain
// fail.
func (e *edit) remove() {
	h := e.classify(nil)
	jumps, _, _ := e.jumps(spec{})
	if len(h.others) > 0 {
		if len(h.ours) > 0 {
			e.delete(e.own, h.ours)
			e.change("rules of %s removed from chain %s", e.owner.Network, e.own)
		}
		return
	}
	e.delete(e.chain, jumps)
	e.delete(e.own, e.have[e.own])
	switch {
	case !e.have.has(e.own):
	case e.have.references(e.own) == len(jumps):
		e.line("-X %s", e.own)
		e.change("chain %s removed", e.own)
	case len(jumps) > 0 || len(e.have[e.own]) > 0:
		e.change("chain %s emptied, but kept for rules of others that lead to it", e.own)
	}
}

// delete names rules as they were listed, not by number: another program may
// have moved them since. Of equal ones all are named or the first.
func (e *edit) delete(chain string, rules []string) {
	for _, rule := range rules {
		e.line("-D %s %s", chain, rule)
	}
}
