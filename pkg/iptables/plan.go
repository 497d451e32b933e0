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

// anchor is where a hook's rules are: in a chain of our own, to which a jump
// leads from the hook's chain. The names are the original's since v0.20.
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
		{hook: firewall.PostRouting, own: "FLANNEL-POSTRTG"},
		{hook: firewall.Forward, own: "FLANNEL-FWD", first: true},
		{hook: firewall.PreRouting, own: "FLANNEL-PRERTG", first: true},
	}
	for i, a := range all {
		all[i].table, all[i].chain = a.hook.Table(), a.hook.Chain()
	}
	return all
}

// plan is what iptables-restore has to read, and the same in words. Both are
// empty when nothing is to be done.
type plan struct {
	input   string
	changes []string
}

func makePlan(l listing, want []firewall.Chain, former []firewall.Overlay) plan {
	var p plan
	for _, a := range anchors() {
		e := edit{anchor: a, have: l[a.table]}
		e.clean(former)
		i := slices.IndexFunc(want, func(c firewall.Chain) bool { return c.Hook == a.hook })
		if i >= 0 && e.needed() {
			e.fill(want[i].Rules)
			e.lead()
		} else {
			e.remove()
		}
		if len(e.lines) > 0 {
			p.input += "*" + a.table + "\n" + strings.Join(e.lines, "\n") + "\nCOMMIT\n"
			p.changes = append(p.changes, e.changes...)
		}
	}
	return p
}

// edit changes one table.
type edit struct {
	anchor
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

// fill writes our chain anew unless it has exactly the wanted rules.
func (e *edit) fill(rules []firewall.Rule) {
	var want []spec
	for _, r := range rules {
		want = append(want, specOf(r, e.hook.Comment()))
	}
	if e.have.has(e.own) && equal(e.have[e.own], want) {
		return
	}
	if e.have.has(e.own) {
		e.change("chain %s corrected", e.own)
	} else {
		e.change("chain %s made", e.own)
	}
	e.line(":%s - [0:0]", e.own) // empties one that is there
	for _, s := range want {
		e.line("-A %s %s", e.own, s)
	}
}

func equal(rules []string, want []spec) bool {
	return slices.EqualFunc(rules, want, func(rule string, w spec) bool {
		s, known := parseRule(rule)
		return known && s == w
	})
}

// lead sees to it that one jump leads to our chain, and that it is where it
// belongs.
func (e *edit) lead() {
	jump := spec{target: e.own, comment: e.hook.Comment()}
	ours, others, right := e.jumps(jump)
	place := e.place(others)
	switch {
	case len(ours) == 1 && right == 1 && (!e.first || e.rest[place-1] == ours[0]):
		return
	case e.first:
		e.delete(ours)
		e.line("-I %s %d %s", e.chain, place, jump)
	default:
		// Any place is right, so that the last of equal ones may stay: the first
		// is what a deletion finds.
		for _, rule := range ours {
			if s, _ := parseRule(rule); s != jump {
				e.delete([]string{rule})
			} else if right > 1 {
				right--
				e.delete([]string{rule})
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

// place is the number of the rule that our jump has to be among the others.
func (e *edit) place(others []string) int {
	if e.hook == firewall.Forward && len(others) > 0 {
		s, known := parseRule(others[0])
		if known && s.target == dockerUser && s.rule == (firewall.Rule{}) {
			return 2
		}
	}
	return 1
}

// remove takes our chain and the jumps to it away. While rules of others lead to
// it the kernel keeps it, and so do we, empty.
func (e *edit) remove() {
	ours, _, _ := e.jumps(spec{})
	e.delete(ours)
	switch {
	case !e.have.has(e.own):
	case e.have.references(e.own) == len(ours):
		e.line("-F %s", e.own)
		e.line("-X %s", e.own)
		e.change("chain %s removed", e.own)
	case len(ours) > 0 || len(e.have[e.own]) > 0:
		e.line("-F %s", e.own)
		e.change("chain %s emptied, but kept for rules of others that lead to it", e.own)
	}
}

// delete names rules as they were listed, not by number: another program may
// have moved them since.
func (e *edit) delete(rules []string) {
	for _, rule := range rules {
		e.line("-D %s %s", e.chain, rule)
	}
}
