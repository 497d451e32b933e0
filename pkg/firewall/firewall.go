// Package firewall says which packet filter rules an overlay network needs, as
// data: what masquerades traffic to the outside, what lets the overlay's traffic
// through a forward policy of DROP, what keeps containers away from the ports of
// tunnels, and which rules earlier generations of flannel have left for the same.
//
// It reads and writes no rules; iptables and nftables do, each in its own words.
// Several networks of a host share the chains that the rules are in; an Owner says
// which of the rules are one daemon's. Invariant: IPv4 and IPv6 have the same rules,
// but for their addresses.
package firewall

import (
	"fmt"
	"net/netip"
	"slices"
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
	Forward     bool // the overlay's traffic is forwarded whatever others have decided, but to tunnels' ports
	Tunnel      Tunnel
}

// Tunnel is what carries the overlay's packets between hosts. It has no
// authentication: whoever can send to its port can inject packets. The zero Tunnel is none.
type Tunnel struct {
	Port uint16 // that all hosts receive on
	// Bound says that hosts know each other by the port that they send from, too, so
	// that nothing else may be given it by source NAT. Else everybody may send from any port.
	Bound bool
	// Hosts are parts of the network that hosts have their addresses in, and no containers.
	Hosts []netip.Prefix
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
	// Input is asked of packets to this host: table filter, chain INPUT.
	Input
	// Output is asked of packets of this host itself: table filter, chain OUTPUT.
	Output

	Hooks = 5 // number of hooks
)

// Comment marks rules as ours; the first two are the original's.
func (h Hook) Comment() string {
	return [Hooks]string{"flanneld masq", "flanneld forward", "flanneld forward", "flanneld tunnel", "flanneld tunnel"}[h]
}

// ForeignComment marks accepts that stand in a chain of somebody else, one by one.
const ForeignComment = "flanneld"

// Table and Chain are iptables' names of the hook.
func (h Hook) Table() string { return [Hooks]string{"nat", "filter", "raw", "filter", "filter"}[h] }

// Chain is iptables' name of the hook's chain.
func (h Hook) Chain() string {
	return [Hooks]string{"POSTROUTING", "FORWARD", "PREROUTING", "INPUT", "OUTPUT"}[h]
}

// SharedChain is iptables' name of the chain that holds the hook's rules of all networks. The
// first two are the original's since v0.20.
func (h Hook) SharedChain() string {
	return [Hooks]string{"FLANNEL-POSTRTG", "FLANNEL-FWD", "FLANNEL-PRERTG", "FLANNEL-INPUT", "FLANNEL-OUTPUT"}[h]
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
	Port     uint16 // it is a UDP packet to this port; 0: any packet
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
	Return           Verdict = iota // to whoever asked the chain
	Accept                          // and ask no other rule of this hook's table
	Masquerade                      // give it the address of the device that it leaves by
	MasqueradeRandom                // the same with ports at random
	Discard                         // without an answer
)

// keepSourceMark is set in the mark of packets that another program wants to keep
// their source address.
const keepSourceMark = 0x4000

// Rules gives the chains that are wanted.
func Rules(o Options) []Chain {
	var chains []Chain
	if o.Masquerade {
		chains = append(chains, Chain{PostRouting, o.postRouting()})
	}
	if o.Forward {
		chains = append(chains,
			Chain{Forward, append(o.fromOverlayToHosts(),
				Rule{Src: In(o.Network), Verdict: Accept},
				Rule{Dst: In(o.Network), Verdict: Accept},
			)},
			Chain{PreRouting, []Rule{{Src: In(o.Network), Dst: In(o.Subnet), Verdict: Accept}}})
		chains = append(chains, o.localTunnel()...)
	}
	return chains
}

// fromOverlayToHosts drops packets from containers to the tunnel's port of hosts, which would
// accept them as packets of the tunnel: VXLAN from any source port, udp once source NAT has
// assigned the tunnel's port to them. NAT would then also deliver the peer's packets to the
// container, and assign another port to the tunnel itself.
//
// Packets from outside the overlay are not matched, because this host may be a router, nor are
// packets that stay in it, because a container may run an overlay of its own.
func (o Options) fromOverlayToHosts() []Rule {
	if o.Tunnel.Port == 0 {
		return nil
	}
	var rules []Rule
	for _, p := range o.Tunnel.Hosts {
		rules = append(rules,
			Rule{Src: In(p), Dst: NotIn(o.Network), Port: o.Tunnel.Port, Verdict: Accept},
			Rule{Src: In(p), Dst: In(o.Network), Port: o.Tunnel.Port, Verdict: Accept})
	}
	return append(rules, o.dropToHosts(o.Network)...)
}

// dropToHosts drops what comes from a part of the overlay for the tunnel's port at hosts' addresses.
func (o Options) dropToHosts(from netip.Prefix) []Rule {
	rules := []Rule{{Src: In(from), Dst: NotIn(o.Network), Port: o.Tunnel.Port, Verdict: Discard}}
	for _, p := range o.Tunnel.Hosts {
		rules = append(rules, Rule{Src: In(from), Dst: In(p), Port: o.Tunnel.Port, Verdict: Discard})
	}
	return rules
}

// localTunnel is about the tunnel's port of this host. VXLAN receives at all addresses, those of
// the overlay's devices included, which containers of all hosts reach by the tunnel itself; no
// host sends there. A tunnel that is known by its port has it at the uplink's address only,
// but a local process may have it at an address of the overlay, whose packets are masqueraded.
func (o Options) localTunnel() []Chain {
	// A subnet that is a part of the LAN is named as wrong elsewhere; here it must not cut hosts off.
	inLAN := slices.ContainsFunc(o.Tunnel.Hosts, o.Subnet.Overlaps)
	switch {
	case o.Tunnel.Port == 0 || inLAN:
		return nil
	case o.Tunnel.Bound:
		return []Chain{{Output, o.dropToHosts(o.Subnet)}}
	}
	return []Chain{{Input, append(o.dropToHosts(o.Subnet),
		// Two, for a rule is known as the network's by naming it.
		Rule{Src: In(o.Network), Dst: In(o.Subnet), Port: o.Tunnel.Port, Verdict: Discard},
		Rule{Src: NotIn(o.Network), Dst: In(o.Subnet), Port: o.Tunnel.Port, Verdict: Discard},
	)}}
}

// Accepts returns what lets the overlay's packets pass. It is needed wherever others may drop
// them, while one chain that drops packets is enough.
func Accepts(chains []Chain) (accepts []Chain) {
	for _, c := range chains {
		var rules []Rule
		for _, r := range c.Rules {
			if r.Verdict == Accept && r.Port == 0 {
				rules = append(rules, r)
			}
		}
		if len(rules) > 0 {
			accepts = append(accepts, Chain{c.Hook, rules})
		}
	}
	return accepts
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
		masquerade = MasqueradeRandom
	}
	return []Rule{
		{Mark: keepSourceMark, Verdict: Return},
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
	if r.Port != 0 {
		words = append(words, fmt.Sprintf("by UDP to port %d", r.Port))
	}
	return strings.Join(append(words, r.Verdict.String()), " ")
}

func (v Verdict) String() string {
	return [...]string{"return", "accept", "masquerade", "masquerade with random ports", "drop"}[v]
}
