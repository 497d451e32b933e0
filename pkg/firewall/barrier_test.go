package firewall

import (
	"net/netip"
	"strings"
	"testing"
)

// TestCommandsOfHostileNames: other programs choose the names of zones, tables and chains. A shell takes
// them as words, and nft, which would read a semicolon in a name, is not given them.
func TestCommandsOfHostileNames(t *testing.T) {
	network, hostile := netip.MustParsePrefix("10.42.0.0/16"), "$(exit 1);x"
	for _, b := range []Barrier{
		{Kind: "iptables", Table: "filter", Chain: hostile}, {Kind: "iptables-legacy", Table: hostile, Chain: "FORWARD"},
		{Kind: "nftables", Table: "inet t", Chain: hostile}, {Kind: "nftables", Table: "ip " + hostile, Chain: "forward"},
		{Kind: "nftables", Table: "ip filter", Chain: "a;b"}, {Kind: "nftables", Table: "inet a b", Chain: "c"},
		{Kind: "nftables", Table: "inet firewalld", Chain: "c", Tool: "firewalld", Zone: hostile},
	} {
		for _, c := range []string{b.OpenCommand(8472), b.TrustCommand(network), b.ExemptCommand(network, network), b.NFT("-a list chain", "")} {
			unquoted := strings.ReplaceAll(strings.ReplaceAll(c, "'--zone="+hostile+"'", ""), "'"+hostile+"'", "")
			if strings.Contains(unquoted, "$") || strings.Contains(unquoted, ";x") || strings.Contains(unquoted, ";b") || b.Kind == "nftables" && strings.Contains(c, "nft ") && b.Tool == "" {
				t.Errorf("%+v: %s", b, c)
			}
		}
	}
	b := Barrier{Kind: "nftables", Table: "inet my-table", Chain: "in_put.0"}
	if c := b.OpenCommand(8472); c != "nft insert rule inet my-table in_put.0 udp dport 8472 accept" {
		t.Error(c)
	}
	if c := b.NFT("-a list chain", ""); c != "nft -a list chain inet my-table in_put.0" {
		t.Error(c)
	}
}
