package firewall

import (
	"fmt"
	"strings"
)

// Barrier is a base chain of others that may drop a packet.
type Barrier struct {
	Kind  string // "nftables", or the name of the iptables command that lists it
	Table string // with its family in nftables: "inet firewalld"
	Chain string
	// Certain says that nothing in it may let the packet pass. Else it has rules whose
	// conditions cannot be judged from outside.
	Certain bool
	Owned   bool   // only the program that made the table may change it
	Tool    string // that keeps the rules, if it is known: "firewalld" or "ufw"
	Zone    string // of firewalld, that the packet came to
}

// DetectTool says which tool has made the chains that the packet has walked.
func (b *Barrier) DetectTool(w *Walk) {
	firewalld := strings.HasSuffix(b.Table, " firewalld")
	for chain := range w.fates {
		if strings.HasPrefix(chain, "ufw-") {
			b.Tool = "ufw"
		}
		// With its iptables backend, firewalld has chains in everybody's table.
		firewalld = firewalld || chain == "INPUT_ZONES" || chain == "FORWARD_IN_ZONES"
	}
	if !firewalld {
		return
	}
	b.Tool = "firewalld"
	for chain := range w.fates {
		zone, allows := strings.CutSuffix(chain, "_allow")
		zone = strings.TrimPrefix(zone, "filter_")
		if zone, in := strings.CutPrefix(zone, "IN_"); allows && in && !strings.HasPrefix(zone, "policy_") {
			b.Zone = zone
		}
	}
}

// String names the chain as one would look for it.
func (b Barrier) String() string { return fmt.Sprintf("%s %s %s", b.Kind, b.Table, b.Chain) }

// OpenCommand returns the command that has the tool let a UDP port of this host be
// reached, now and after the next boot where the tool keeps that.
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
