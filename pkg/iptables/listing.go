package iptables

import (
	"errors"
	"fmt"
	"strings"
)

// listing is what iptables-save has printed, by table.
type listing map[string]table

// table is a table's chains by name. One that the kernel has not loaded is nil
// and counts as one of empty chains.
type table map[string][]string

// parseListing reads the output of iptables-save. It is not picky about chains
// and rules of others, but about their frame: to take half a listing for the
// whole would be to write rules twice.
func parseListing(text string) (listing, error) {
	l := listing{}
	var current table
	for text != "" {
		var line string
		if line, text = nextLine(text); line == "" {
			continue
		}
		switch {
		case line[0] == '#':
			if name, ok := incompatible(line); ok {
				return nil, fmt.Errorf("table %s holds rules that only nft can list", name)
			}
		case line[0] == '*' && current == nil:
			current = table{}
			l[line[1:]] = current
		case line == "COMMIT" && current != nil:
			current = nil
		case line[0] == ':' && current != nil:
			name, _, _ := strings.Cut(line[1:], " ")
			if _, double := current[name]; !double {
				current[name] = nil
			}
		case strings.HasPrefix(line, "-A ") && current != nil:
			name, rule, _ := strings.Cut(line[3:], " ")
			current[name] = append(current[name], rule)
		default:
			return nil, fmt.Errorf("not understood: %.80q", line)
		}
	}
	if current != nil {
		return nil, errors.New("incomplete listing")
	}
	return l, nil
}

// nextLine takes a line off the text, or several when a comment in quotes goes on
// over their ends.
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

// incompatible reads the remark that stands for a table's listing when nft has
// changed the table's frame. Tables that are not used here may be so.
func incompatible(line string) (table string, ok bool) {
	rest, ok := strings.CutPrefix(line, "# Table `")
	table, said, _ := strings.Cut(rest, "'")
	if !ok || !strings.HasPrefix(said, " is incompatible") {
		return "", false
	}
	for _, a := range anchors() {
		if table == a.table {
			return table, true
		}
	}
	return "", false
}

// has tells whether a table has a chain.
func (t table) has(chain string) bool {
	_, ok := t[chain]
	return ok
}

// references counts the rules that lead to a chain.
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
