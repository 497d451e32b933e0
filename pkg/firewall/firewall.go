// Package firewall defines the packet filter rules that an overlay network needs, as data: rules
// that masquerade traffic to the outside, accept the overlay's traffic where the forward policy is
// DROP, and keep containers away from tunnel ports. It also knows the rules that earlier releases
// of flannel wrote for the same purposes.
//
// It does not read or write rules; packages iptables and nftables do. Several networks of a host
// share the chains; an Owner identifies the rules of one daemon. Invariant: IPv4 and IPv6 have the
// same rules except for addresses.
package firewall

import (
	"net/netip"
	"slices"
)

// Overlay is a network and this host's subnet of it, of one address family.
type Overlay struct {
	Network netip.Prefix
	Subnet  netip.Prefix
}

// Options are the settings that the rules follow from.
type Options struct {
	Overlay
	Masquerade  bool // masquerade packets that leave the overlay
	RandomPorts bool // masquerade with random source ports, which avoids races between connections
	Forward     bool // accept the overlay's traffic regardless of other rules, except to tunnel ports
	Tunnel      Tunnel
}

// Tunnel describes the UDP tunnel between hosts. It has no authentication: anyone who can send to
// its port can inject packets. The zero value means that there is no tunnel.
type Tunnel struct {
	Port uint16 // the port that all hosts receive on
	// Bound is set if hosts also check the source port, so that source NAT must not assign the port
	// to other connections. Otherwise packets are accepted from any source port.
	Bound bool
	// Hosts are prefixes inside the network that contain addresses of hosts and of no containers.
	Hosts []netip.Prefix
}

// Hook is the netfilter hook that a chain is attached to.
type Hook uint8

const (
	// PostRouting is where source addresses are translated: table nat, chain POSTROUTING.
	PostRouting Hook = iota
	// Forward filters forwarded packets: table filter, chain FORWARD.
	Forward
	// PreRouting is the first hook: table raw, chain PREROUTING. Docker 28 drops packets from other
	// hosts to published containers there. Our rules are added only if other rules drop packets.
	PreRouting
	// Input filters packets to this host: table filter, chain INPUT.
	Input
	// Output filters packets that this host sends itself: table filter, chain OUTPUT.
	Output

	Hooks = 5 // number of hooks
)

// Comment returns the comment that marks rules as ours. The first two are those of the original.
func (h Hook) Comment() string {
	return [Hooks]string{"flanneld masq", "flanneld forward", "flanneld forward", "flanneld tunnel", "flanneld tunnel"}[h]
}

// ForeignComment marks accept rules that are added to chains of other programs.
const ForeignComment = "flanneld"

// Table returns the name of the hook's table in iptables.
func (h Hook) Table() string { return [Hooks]string{"nat", "filter", "raw", "filter", "filter"}[h] }

// Chain returns the name of the hook's chain in iptables.
func (h Hook) Chain() string {
	return [Hooks]string{"POSTROUTING", "FORWARD", "PREROUTING", "INPUT", "OUTPUT"}[h]
}

// SharedChain returns the name of the iptables chain that holds the hook's rules of all networks.
// The first two are those of the original since v0.20.
func (h Hook) SharedChain() string {
	return [Hooks]string{"FLANNEL-POSTRTG", "FLANNEL-FWD", "FLANNEL-PRERTG", "FLANNEL-INPUT", "FLANNEL-OUTPUT"}[h]
}

// Chain is the ordered list of rules of a hook.
type Chain struct {
	Hook  Hook
	Rules []Rule
}

// Rule is a verdict for packets that match all conditions.
type Rule struct {
	Mark     uint32 // all these bits are set in the packet's mark; 0: any mark
	Src, Dst Match
	Port     uint16 // destination port of UDP packets; 0: any packet
	Verdict  Verdict
}

// Match is a condition on an address. The zero Match matches every address.
type Match struct {
	Prefix netip.Prefix
	Not    bool
}

// Verdict is the action of a rule.
type Verdict uint8

const (
	Return           Verdict = iota // return to the calling chain
	Accept                          // and skip the remaining rules of the hook in this table
	Masquerade                      // replace the source address by that of the outgoing device
	MasqueradeRandom                // the same with random source ports
	Discard                         // without sending an error
)

// keepSourceMark is the bit of the packet mark by which other programs request that the source
// address is kept.
const keepSourceMark = 0x4000

// Rules returns the wanted chains.
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

// fromOverlayToHosts returns rules that drop packets from containers to the tunnel port of hosts,
// which would accept them as tunnel packets: VXLAN from any source port, udp once source NAT has
// assigned the tunnel port to them. NAT would then also deliver the peer's packets to the
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

// dropToHosts returns rules that drop packets from a part of the overlay to the tunnel port of
// hosts.
func (o Options) dropToHosts(from netip.Prefix) []Rule {
	rules := []Rule{{Src: In(from), Dst: NotIn(o.Network), Port: o.Tunnel.Port, Verdict: Discard}}
	for _, p := range o.Tunnel.Hosts {
		rules = append(rules, Rule{Src: In(from), Dst: In(p), Port: o.Tunnel.Port, Verdict: Discard})
	}
	return rules
}

// localTunnel returns the chains that protect the tunnel port of this host. VXLAN receives on all
// addresses, including those of the overlay's devices, which containers of all hosts can reach
// through the tunnel itself; hosts never send there. A bound tunnel receives on the uplink's
// address only, but a local process may use its port at an address of the overlay, whose packets
// are masqueraded.
func (o Options) localTunnel() []Chain {
	// A subnet that overlaps the LAN is reported by the host checks. These rules must not make it
	// worse by cutting off hosts.
	inLAN := slices.ContainsFunc(o.Tunnel.Hosts, o.Subnet.Overlaps)
	switch {
	case o.Tunnel.Port == 0 || inLAN:
		return nil
	case o.Tunnel.Bound:
		return []Chain{{Output, o.dropToHosts(o.Subnet)}}
	}
	return []Chain{{Input, append(o.dropToHosts(o.Subnet),
		// Two rules, because a rule must name the network to be recognised as its own.
		Rule{Src: In(o.Network), Dst: In(o.Subnet), Port: o.Tunnel.Port, Verdict: Discard},
		Rule{Src: NotIn(o.Network), Dst: In(o.Subnet), Port: o.Tunnel.Port, Verdict: Discard},
	)}}
}

// Accepts returns the rules that accept the overlay's packets. They are needed in every place where
// other rules may drop packets, whereas a drop is effective from any single chain.
func Accepts(chains []Chain) (accepts []Chain) {
	for _, c := range chains {
		c.Rules = slices.DeleteFunc(slices.Clone(c.Rules), func(r Rule) bool { return r.Verdict != Accept || r.Port != 0 })
		if len(c.Rules) > 0 {
			accepts = append(accepts, c)
		}
	}
	return accepts
}

// postRouting returns the masquerade rules. Traffic within the overlay and traffic from outside to
// this host's own subnet is not masqueraded. Traffic that other machines send through this host to
// another host's subnet is, so that replies return through this host.
//
// Containers of two hosts must reach each other without NAT even if stale rules remain after this
// host got another subnet, for example after a downgrade to v0.5 to v0.17, which do not know this
// chain. So the first rule of a network names the whole network. Until the stale rules are removed,
// traffic from outside to the new subnet is masqueraded.
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

// In returns a Match for the addresses of a prefix.
func In(p netip.Prefix) Match { return Match{Prefix: p.Masked()} }

// NotIn returns a Match for all other addresses.
func NotIn(p netip.Prefix) Match { return Match{Prefix: p.Masked(), Not: true} }

// multicast returns the multicast range of a prefix's family.
func multicast(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4() {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{224}), 4)
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xff}), 8)
}
