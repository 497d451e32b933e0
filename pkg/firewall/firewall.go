// Package firewall says which packet filter rules an overlay network needs, as
// data: what masquerades traffic to the outside, what lets the overlay's traffic
// through a forward policy of DROP, and which rules earlier generations of
// flannel have left for the same.
//
// It reads and writes no rules; iptables and nftables do, each in its own words.
// Several networks of a host share the chains that the rules are in; an Owner says
// which of the rules are one daemon's. Invariant: IPv4 and IPv6 have the same rules,
// but for their addresses.
package firewall

import (
	"fmt"
	"net/netip"
	"strings"
)

// Overlay is a network and this host's part of it, of one address family.
type Overlay struct {
	Network netip.Prefix
	Subnet  netip.Prefix
}

// Options say what is wanted of the packet filter.
type Options struct {
	Overlay
	Masquerade  bool // what leaves the overlay gets this host's address
	RandomPorts bool // masquerading chooses ports at random, against races between connections
	Forward     bool // the overlay's traffic is forwarded whatever others have decided
}

// Hook is where in the kernel a chain's rules are asked.
type Hook uint8

const (
	// PostRouting translates source addresses: table nat, chain POSTROUTING.
	PostRouting Hook = iota
	// Forward lets packets pass or not: table filter, chain FORWARD.
	Forward
	// PreRouting comes before all else: table raw, chain PREROUTING. Docker 28
	// drops there what comes from another host to a published container. The
	// rules are needed only where others drop packets.
	PreRouting

	Hooks = 3 // number of hooks
)

// Comment marks rules as ours; it is the original's.
func (h Hook) Comment() string {
	if h == PostRouting {
		return "flanneld masq"
	}
	return "flanneld forward"
}

// GuestComment marks accepts that stand in a chain of somebody else, one by one.
const GuestComment = "flanneld"

// Table and Chain are iptables' names of the hook.
func (h Hook) Table() string { return [Hooks]string{"nat", "filter", "raw"}[h] }

// Chain is iptables' name of the hook's chain.
func (h Hook) Chain() string { return [Hooks]string{"POSTROUTING", "FORWARD", "PREROUTING"}[h] }

// SharedChain is iptables' name of the chain that holds the hook's rules of all networks. It
// is the original's since v0.20.
func (h Hook) SharedChain() string {
	return [Hooks]string{"FLANNEL-POSTRTG", "FLANNEL-FWD", "FLANNEL-PRERTG"}[h]
}

// Chain is the rules of a hook, in order.
type Chain struct {
	Hook  Hook
	Rules []Rule
}

// Rule is a verdict on packets that match all of its conditions.
type Rule struct {
	Mark     uint32 // all these bits are set in the packet's mark; 0: any mark
	Src, Dst Match
	Verdict  Verdict
}

// Match is a condition on an address. The zero Match is met by all.
type Match struct {
	Prefix netip.Prefix
	Not    bool
}

// Verdict is what becomes of a packet.
type Verdict uint8

const (
	Return       Verdict = iota // to whoever asked the chain
	Accept                      // and ask no other rule of this hook's table
	Masquerade                  // give it the address of the device that it leaves by
	MasqueradeRP                // the same with ports at random
)

// keepMark is set in the mark of packets that another program wants to keep
// their source address.
const keepMark = 0x4000

// Rules gives the chains that are wanted.
func Rules(o Options) []Chain {
	var chains []Chain
	if o.Masquerade {
		chains = append(chains, Chain{PostRouting, o.postRouting()})
	}
	if o.Forward {
		chains = append(chains,
			Chain{Forward, []Rule{
				{Src: In(o.Network), Verdict: Accept},
				{Dst: In(o.Network), Verdict: Accept},
			}},
			Chain{PreRouting, []Rule{{Src: In(o.Network), Dst: In(o.Subnet), Verdict: Accept}}})
	}
	return chains
}

// postRouting leaves alone what stays in the overlay and what comes from the
// outside to this host's own subnet. What others send by way of this host to
// another one's subnet is masqueraded, so that the answer comes back here.
//
// Containers of two hosts must reach each other unchanged even where these rules have been
// left behind and the host has another subnet by now, as after the way back to
// v0.5 to v0.17, which do not know this chain. So the first rule of a network names it as
// a whole. What then comes from the outside to the new subnet is still masqueraded, until
// the rules are removed.
func (o Options) postRouting() []Rule {
	masquerade := Masquerade
	if o.RandomPorts {
		masquerade = MasqueradeRP
	}
	return []Rule{
		{Mark: keepMark, Verdict: Return},
		{Src: In(o.Network), Dst: In(o.Network), Verdict: Return},
		{Src: NotIn(o.Network), Dst: In(o.Subnet), Verdict: Return},
		{Src: In(o.Network), Dst: NotIn(multicast(o.Network)), Verdict: masquerade},
		{Src: NotIn(o.Network), Dst: In(o.Network), Verdict: masquerade},
	}
}

// In is met by addresses of a prefix.
func In(p netip.Prefix) Match { return Match{Prefix: p.Masked()} }

// NotIn is met by all others.
func NotIn(p netip.Prefix) Match { return Match{Prefix: p.Masked(), Not: true} }

// multicast is the multicast range of a prefix's family.
func multicast(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4() {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{224}), 4)
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xff}), 8)
}

// String is the rule in neither applier's words, for logs and tests.
func (r Rule) String() string {
	var words []string
	if r.Mark != 0 {
		words = append(words, fmt.Sprintf("mark %#x", r.Mark))
	}
	for _, m := range []struct {
		name string
		Match
	}{{"from", r.Src}, {"to", r.Dst}} {
		if !m.Prefix.IsValid() {
			continue
		}
		if m.Not {
			m.name = "not " + m.name
		}
		words = append(words, m.name, m.Prefix.String())
	}
	return strings.Join(append(words, r.Verdict.String()), " ")
}

func (v Verdict) String() string {
	return [...]string{"return", "accept", "masquerade", "masquerade with random ports"}[v]
}
