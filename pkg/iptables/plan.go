package iptables

import (
	"fmt"
	"slices"
	"strings"

	"flanneld/pkg/firewall"
)

// dockerUser is the chain that Docker keeps at the head of FORWARD for the operator's own rules,
// which come before ours.
const dockerUser = "DOCKER-USER"

// anchor is the place of a hook's rules: a chain that the networks of a host share, and a jump to
// it in the hook's chain.
type anchor struct {
	hook         firewall.Hook
	table, chain string
	own          string
	// first is set if the jump comes before the rules of others, because one of them may drop what
	// we accept. Masquerading comes after them, as in the original.
	first bool
}

func anchors() (all []anchor) {
	for h := range firewall.Hook(firewall.Hooks) {
		all = append(all, anchor{h, h.Table(), h.Chain(), h.SharedChain(), h != firewall.PostRouting})
	}
	return all
}

// plan is the edits of tables, and a description of the changes. Both are empty if nothing is to be
// done.
type plan struct {
	edits   []tableEdit // by table, because a table must change by one commit
	changes []string
}

// input returns the input of iptables-restore.
func (p plan) input() string {
	var b strings.Builder
	for i, e := range p.edits {
		if i == 0 || p.edits[i-1].table != e.table {
			b.WriteString("*" + e.table + "\n")
		}
		b.WriteString(e.line + "\n")
		if i == len(p.edits)-1 || p.edits[i+1].table != e.table {
			b.WriteString("COMMIT\n")
		}
	}
	return b.String()
}

// makePlan compares a listing with what the owner wants. If thorough is not set, rules without an
// owner are left in our chains.
func makePlan(l listing, owner firewall.Owner, want []firewall.Chain, thorough bool) plan {
	var p plan
	lines := map[string][]string{} // by table
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
		lines[a.table] = append(lines[a.table], e.lines...)
		p.changes = append(p.changes, e.changes...)
	}
	for _, a := range anchors() {
		for _, l := range lines[a.table] {
			p.edits = append(p.edits, tableEdit{a.table, l})
		}
		delete(lines, a.table)
	}
	return p
}

// edit is a change of one table.
type edit struct {
	anchor
	owner   firewall.Owner
	have    table
	rest    []string // rules of the hook's chain that deleteOldRules has left
	lines   []string
	changes []string
}

func (e *edit) line(format string, args ...any) {
	e.lines = append(e.lines, fmt.Sprintf(format, args...))
}

func (e *edit) change(format string, args ...any) {
	e.changes = append(e.changes, fmt.Sprintf(format, args...))
}

// needed reports whether the wanted rules have an effect. In table raw they only override another
// program's DROP; the table is not loaded without one.
func (e *edit) needed() bool {
	return e.hook != firewall.PreRouting || slices.ContainsFunc(e.rest, func(rule string) bool {
		s, _ := parseRule(rule)
		return s.target == "DROP"
	})
}

// ownership is the rules of our chain by owner, in order.
type ownership struct {
	shared, ours, others, unowned []string
}

func (e *edit) classify(shared []spec) (h ownership) {
	for _, rule := range e.have[e.own] {
		s, known := parseRule(rule)
		switch {
		case strings.Contains(rule, "\n"): // iptables-restore could not parse it
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

// syncChain makes our chain hold the shared rules first and the owner's in their order, and leaves
// those of other networks as they are. Their relative position makes no difference: a packet can
// match rules of two networks only if it goes from one network to the other.
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
		e.line("-N %s", e.own) // fails if another daemon has created it meanwhile
		e.change("created chain %s", e.own)
	}
	before := len(e.lines)
	if thorough {
		e.delete(e.own, h.unowned...)
	}
	if have := e.have[e.own]; len(h.shared) != len(shared) || !equal(have[:len(shared)], shared) {
		e.delete(e.own, h.shared...)
		for i, s := range shared {
			e.line("-I %s %d %s", e.own, i+1, s)
		}
	}
	if !equal(h.ours, own) {
		e.delete(e.own, h.ours...)
		for _, s := range own {
			e.line("-A %s %s", e.own, s)
		}
	}
	if len(e.lines) > before && !made {
		e.change("repaired chain %s", e.own)
	}
}

func equal(rules []string, want []spec) bool {
	return slices.EqualFunc(rules, want, func(rule string, w spec) bool {
		s, known := parseRule(rule)
		return known && s == w
	})
}

// syncJump ensures that exactly one jump leads to our chain, in the right position.
func (e *edit) syncJump() {
	jump := spec{target: e.own, comment: e.hook.Comment()}
	ours, others, right := e.jumps(jump)
	behind := e.jumpPosition(others)
	switch {
	case len(ours) == 1 && right == 1 && (!e.first || e.jumpInPlace(ours[0], behind)):
		return
	case e.first:
		e.delete(e.chain, ours...)
		e.line("-I %s %d %s", e.chain, behind+1, jump)
	default:
		// Any position is right, so the last of equal jumps is kept: a deletion removes the first.
		for _, rule := range ours {
			if s, _ := parseRule(rule); s != jump {
				e.delete(e.chain, rule)
			} else if right > 1 {
				right--
				e.delete(e.chain, rule)
			}
		}
		if right == 0 {
			e.line("-A %s %s", e.chain, jump)
		}
	}
	what := "repaired"
	if len(ours) == 0 {
		what = "created"
	}
	e.change("%s jump from %s to %s", what, e.chain, e.own)
}

// jumps splits the rules of the hook's chain into our jumps and the others, and counts the jumps in
// the right form. A jump with conditions is another program's, and so is one that iptables-restore
// could not parse.
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

// jumpPosition returns how many of the other rules come before our jump.
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

// jumpInPlace reports whether only foreign accepts are between our jump and its position: daemons
// that maintain them want them to be first, too.
func (e *edit) jumpInPlace(jump string, behind int) bool {
	at := slices.Index(e.rest, jump)
	return at >= behind && !slices.ContainsFunc(e.rest[behind:at], func(rule string) bool { return !e.isForeignAccept(rule) })
}

// isForeignAccept reports whether a rule is an accept that a network's daemon maintains in the
// hook's chain itself, as daemons that use nftables do.
func (e *edit) isForeignAccept(rule string) bool {
	s, known := parseRule(rule)
	return known && s.target == "ACCEPT" && s.rule.Mark == 0 && !s.rule.Shared() &&
		(s.comment == firewall.ForeignComment || s.comment == e.hook.Comment())
}

// remove deletes the owner's rules, and with the last network's rules our chain and the jumps to
// it. If other rules still reference the chain, it is kept empty, because the kernel cannot delete
// it. Each rule is deleted by itself: a rule that another daemon has written since the listing
// stays, and makes the deletion of the chain fail.
func (e *edit) remove() {
	h := e.classify(nil)
	jumps, _, _ := e.jumps(spec{})
	if len(h.others) > 0 {
		if len(h.ours) > 0 {
			e.delete(e.own, h.ours...)
			e.change("removed rules of %s from chain %s", e.owner.Network, e.own)
		}
		return
	}
	e.delete(e.chain, jumps...)
	e.delete(e.own, e.have[e.own]...)
	switch {
	case !e.have.has(e.own):
	case e.have.references(e.own) == len(jumps):
		e.line("-X %s", e.own)
		e.change("removed chain %s", e.own)
	case len(jumps) > 0 || len(e.have[e.own]) > 0:
		e.change("emptied chain %s, which other rules still reference", e.own)
	}
}

// delete deletes rules by their text, not by number: another program may have moved them since. Of
// equal rules, delete all or the first.
func (e *edit) delete(chain string, rules ...string) {
	for _, rule := range rules {
		e.line("-D %s %s", chain, rule)
	}
}
