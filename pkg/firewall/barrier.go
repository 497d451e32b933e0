package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"flanneld/pkg/shell"
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
	case b.Tool == "ufw" && b.Point == AtOutput:
		return fmt.Sprintf("ufw allow out %d/udp", port)
	case b.Tool == "ufw":
		return fmt.Sprintf("ufw allow %d/udp", port)
	case b.Tool == "firewalld":
		add := fmt.Sprintf("--add-port=%d/udp", port)
		if b.Zone != "" {
			add = shell.Word("--zone="+b.Zone) + " " + add
		}
		return fmt.Sprintf("firewall-cmd %s; firewall-cmd --permanent %s", add, add)
	}
	if command := b.iptables(); command != "" {
		return fmt.Sprintf("%s -I %s -p udp --dport %d -j ACCEPT", command, shell.Word(b.Chain), port)
	}
	return b.NFT("insert rule", fmt.Sprintf("udp dport %d accept", port))
}

// iptables returns the command for the chain's table, or "" if iptables does not see it.
func (b Barrier) iptables() string {
	if b.Kind != "nftables" {
		return b.Kind + " -t " + shell.Word(b.Table)
	}
	table, ip := strings.CutPrefix(b.Table, "ip ")
	builtin := slices.Contains([]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}, b.Chain)
	switch {
	case !ip || !builtin:
	case table == "filter":
		return "iptables-nft"
	case slices.Contains([]string{"raw", "mangle", "nat", "security"}, table):
		return "iptables-nft -t " + table
	}
	return ""
}

// TrustCommand returns the command that makes the tool accept packets of a network, permanently
// where the tool can save rules.
func (b Barrier) TrustCommand(network netip.Prefix) string {
	switch {
	case b.Tool == "ufw" && b.Point == AtForward:
		return fmt.Sprintf("ufw route allow from %s; ufw route allow to %s", network, network)
	case b.Tool == "firewalld":
		add := "--zone=trusted --add-source=" + network.String()
		return fmt.Sprintf("firewall-cmd %s; firewall-cmd --permanent %s", add, add)
	}
	if command := b.iptables(); command != "" {
		return fmt.Sprintf("%[1]s -I %[2]s -s %[3]s -j ACCEPT; %[1]s -I %[2]s -d %[3]s -j ACCEPT", command, shell.Word(b.Chain), network)
	}
	from, to := b.NFT("insert rule", fmt.Sprintf("ip saddr %s accept", network)), b.NFT("insert rule", fmt.Sprintf("ip daddr %s accept", network))
	if from == "" {
		return ""
	}
	return from + "; " + to
}

// ExemptCommand returns the command that makes the chain leave packets from one prefix to another
// as they are.
func (b Barrier) ExemptCommand(from, to netip.Prefix) string {
	if command := b.iptables(); command != "" {
		return fmt.Sprintf("%s -I %s -s %s -d %s -j ACCEPT", command, shell.Word(b.Chain), from, to)
	}
	return b.NFT("insert rule", fmt.Sprintf("ip saddr %s ip daddr %s accept", from, to))
}

// NFT returns a command of nft(8) with the chain, or "" if it cannot name the chain.
func (b Barrier) NFT(verb, rule string) string {
	names := append(strings.Fields(b.Table), b.Chain)
	if len(names) != 3 || !IsNFTName(names...) {
		return ""
	}
	return strings.TrimSpace("nft " + verb + " " + strings.Join(names, " ") + " " + rule)
}

// IsNFTName reports whether nft(8) can read names. The kernel permits any; nft(8) joins its arguments
// and would read a semicolon in one of them as the end of a command.
func IsNFTName(names ...string) bool {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_"
	return !slices.ContainsFunc(names, func(name string) bool {
		return name == "" || !strings.Contains(letters, name[:1]) || strings.Trim(name, letters+"0123456789./-") != ""
	})
}
