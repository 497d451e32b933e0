package iptables

import "flanneld/pkg/firewall"

// LegacyTables returns the names of the legacy tables that the kernel has. It does not call the
// commands, because they create the tables that they list.
func LegacyTables(f firewall.Family) ([]string, error) { return legacyTables(f) }

// Listing is all rules of the legacy variant in one family.
type Listing struct {
	command string
	tables  listing
	drops   policies
}

// ParseListing parses the output of iptables-save. command is the name of the iptables command that
// changes these rules.
func ParseListing(command, text string) (*Listing, error) {
	l, drops, err := parseListing(text)
	if err != nil {
		return nil, err
	}
	return &Listing{command, l, drops}, nil
}

// BaseChains returns the built-in chains. A nil Listing has none.
func (l *Listing) BaseChains() []firewall.BaseChain {
	if l == nil {
		return nil
	}
	return l.tables.baseChains(l.command, l.drops, false)
}

// RuleText returns a rule as iptables-save prints it, or "" if it is not in the listing.
func (l *Listing) RuleText(table string, r firewall.RuleRef) string {
	if l == nil {
		return ""
	}
	return l.tables.ruleText(table, r)
}
