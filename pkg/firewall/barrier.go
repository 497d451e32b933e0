package firewall

import (
	"fmt"
	"strings"
)

// Barrier is a base chain that may drop a packet, or translate its addresses.
type Barrier struct {
	Kind  string // "nftables", or the name of the iptables command that lists it
	Table string // with its family in nftables: "inet firewalld"
	Chain string
	// Certain is set if no rule of the chain can accept the packet. Otherwise some rules have
	// conditions that cannot be evaluated from here.
	Certain bool
	Owned   bool   // the table has the owner flag: only the program that created it can change it
	Tool    string // that manages the rules: "firewalld" or "ufw"; empty if unknown
	Zone    string // firewalld's zone that the packet was in

	Point      Point
	Translates bool // it translates addresses; otherwise it drops
	// Rule is the last rule that drops or translates the packet. If Certain is not set, Unclear is
	// the first rule with a condition or an action that cannot be evaluated.
	Rule, Unclear RuleRef
}

// DetectTool sets Tool and Zone from the names of the chains that the packet has traversed.
func (b *Barrier) DetectTool(w *Walk) {
	firewalld := strings.HasSuffix(b.Table, " firewalld")
	for chain := range w.known {
		if strings.HasPrefix(chain, "ufw-") {
			b.Tool = "ufw"
		}
		// With its iptables backend, firewalld has its chains in the shared tables.
		firewalld = firewalld || chain == "INPUT_ZONES" || chain == "FORWARD_IN_ZONES"
	}
	if !firewalld {
		return
	}
	b.Tool = "firewalld"
	for chain := range w.known {
		zone, allows := strings.CutSuffix(chain, "_allow")
		zone = strings.TrimPrefix(zone, "filter_")
		if zone, in := strings.CutPrefix(zone, "IN_"); allows && in && !strings.HasPrefix(zone, "policy_") {
			b.Zone = zone
		}
	}
}

// String returns the chain's name with its table, as "nftables inet firewalld filter_INPUT".
func (b Barrier) String() string { return fmt.Sprintf("%s %s %s", b.Kind, b.Table, b.Chain) }

// OpenCommand returns the command that makes the tool accept packets to a UDP port of this host,
// permanently where the tool can save rules.
func (b Barrier) OpenCommand(port uint16) string {
	switch {
	case b.Tool == "ufw":
		return fmt.Sprintf("ufw allow %d/udp", port)
	case b.Tool == "firewalld":
		add := fmt.Sprintf("--add-port=%d/udp", port)
		if b.Zone != "" {
			add = "--zone=" + b.Zone + " " + add
		}
		return fmt.Sprintf("firewall-cmd %s; firewall-cmd --permanent %s", add, add)
	case b.Table == "ip filter" && b.Chain == "INPUT":
		return fmt.Sprintf("iptables-nft -I INPUT -p udp --dport %d -j ACCEPT", port)
	case b.Kind == "nftables":
		return fmt.Sprintf("nft insert rule %s %s udp dport %d accept", b.Table, b.Chain, port)
	}
	return fmt.Sprintf("%s -t %s -I %s -p udp --dport %d -j ACCEPT", b.Kind, b.Table, b.Chain, port)
}
