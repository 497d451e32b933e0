package iptables

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// listing is the output of iptables-save, by table.
type listing map[string]table

// policies are the chains of a listing whose policy is DROP, as TABLE CHAIN.
type policies map[string]bool

// table is a table's rules by chain. A table that the kernel has not loaded is nil, which is
// equivalent to empty chains.
type table map[string][]string

// parseListing parses the output of iptables-save. It is tolerant of other programs' chains and
// rules but not of the frame: a truncated listing must not count as complete, or rules would be
// written twice.
func parseListing(text string) (l listing, drops policies, err error) {
	l, drops = listing{}, policies{}
	var name string // of the current table
	var current table
	for text != "" {
		var line string
		if line, text = nextLine(text); line == "" {
			continue
		}
		switch {
		case line[0] == '#':
			if name, ok := incompatible(line); ok {
				return nil, nil, fmt.Errorf("table %s holds rules that only nft can list", name)
			}
		case line[0] == '*' && current == nil:
			name, current = line[1:], table{}
			l[name] = current
		case line == "COMMIT" && current != nil:
			current = nil
		case line[0] == ':' && current != nil:
			chain, policy, _ := strings.Cut(line[1:], " ")
			if !current.has(chain) {
				current[chain] = nil
			}
			if strings.HasPrefix(policy, "DROP") {
				drops[name+" "+chain] = true
			}
		case strings.HasPrefix(line, "-A ") && current != nil:
			chain, rule, _ := strings.Cut(line[3:], " ")
			current[chain] = append(current[chain], rule)
		default:
			return nil, nil, fmt.Errorf("not understood: %.80q", line)
		}
	}
	if current != nil {
		return nil, nil, errors.New("incomplete listing")
	}
	return l, drops, nil
}

// nextLine cuts the first line off the text, or several lines if a quoted comment contains line
// ends.
func nextLine(text string) (line, rest string) {
	var quoted bool
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\n' && !quoted:
			return text[:i], text[i+1:]
		case c == '"' && strings.HasPrefix(text, "-"):
			quoted = !quoted
		case c == '\\' && quoted:
			i++
		}
	}
	return text, ""
}

// incompatible parses the line that iptables-save prints instead of a table that nft has changed
// incompatibly. It reports false for tables that are not used here.
func incompatible(line string) (table string, ok bool) {
	rest, ok := strings.CutPrefix(line, "# Table `")
	table, said, _ := strings.Cut(rest, "'")
	if !ok || !strings.HasPrefix(said, " is incompatible") {
		return "", false
	}
	return table, slices.ContainsFunc(anchors(), func(a anchor) bool { return a.table == table })
}

// has reports whether a table has a chain.
func (t table) has(chain string) bool {
	_, ok := t[chain]
	return ok
}

// references returns the number of rules that jump to a chain.
func (t table) references(chain string) (n int) {
	for _, rules := range t {
		for _, rule := range rules {
			if strings.Contains(rule, chain) {
				if s, _ := parseRule(rule); s.target == chain {
					n++
				}
			}
		}
	}
	return n
}
