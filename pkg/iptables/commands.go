package iptables

import (
	"context"
	"strings"

	"flanneld/pkg/firewall"
	"flanneld/pkg/shell"
)

// Plan returns what a Sync would change, as commands. It changes nothing itself. If the kernel has
// no legacy tables, the commands are not called, because they would create some.
func (t *Tables) Plan(ctx context.Context, r firewall.Ruleset) ([]firewall.Change, error) {
	l, drops := listing{}, policies{}
	tables, err := []string{"any"}, error(nil)
	if t.legacy() {
		tables, err = legacyTables(r.Family)
	}
	if err == nil && len(tables) > 0 {
		l, drops, err = t.list(ctx)
	}
	if err != nil {
		return nil, err
	}
	var all []firewall.Change
	for _, e := range makePlan(l, r.Owner, t.wanted(r)(l, drops), true).edits {
		all = append(all, e.change(t.command))
	}
	return all, nil
}

// wanted returns the function that returns the wanted chains for a listing.
func (t *Tables) wanted(r firewall.Ruleset) func(listing, policies) []firewall.Chain {
	if r.HeldIn == firewall.Nowhere {
		return func(listing, policies) []firewall.Chain { return t.supported(r.Chains) }
	}
	return func(l listing, drops policies) []firewall.Chain { return neededAccepts(r.Chains, l, drops) }
}

// tableEdit is a line of the input of iptables-restore, with its table.
type tableEdit struct{ table, line string }

// change returns an edit as a command.
func (e tableEdit) change(command string) firewall.Change {
	words, _ := split(e.line)
	c := firewall.Change{Kind: "rule", Command: shell.Command(append([]string{command, "-w", "-t", e.table}, words...)...)}
	if len(words) < 2 {
		return c
	}
	rest := words[2:]
	switch words[0] {
	case "-N":
		c.Kind, c.Verb = "chain", "add"
	case "-X":
		c.Kind, c.Verb = "chain", "delete"
	case "-F":
		c.Kind, c.Verb = "chain", "flush"
	case "-I":
		c.Verb = "insert"
		if len(rest) > 0 {
			rest = rest[1:] // the position
		}
	case "-D":
		c.Verb = "delete"
	default:
		c.Verb = "add"
	}
	c.Object = strings.TrimSpace(c.Kind + " " + e.table + " " + words[1] + " " + shell.Command(rest...))
	return c
}
