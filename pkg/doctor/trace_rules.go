package doctor

import (
	"context"
	"fmt"
	"net"
	"strings"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/kernel"
	"flanneld/pkg/nftables"
	"flanneld/pkg/shell"
	"flanneld/pkg/trace"
)

// packetKind is one kind of packets, and what the packet filters do with it.
type packetKind struct {
	what    string
	packet  firewall.Packet
	passage Passage
}

// packetKinds are the packets of a trace.
type packetKinds struct {
	out, in, tunnelOut, tunnelIn []packetKind
}

// all returns them in the order in which a mark that one gets may matter to the next.
func (f *packetKinds) all() []*[]packetKind {
	return []*[]packetKind{&f.tunnelIn, &f.in, &f.out, &f.tunnelOut}
}

// follow follows all packets through base chains. The outer packet has the mark of the inner one,
// and the other way round.
func (f *packetKinds) follow(chains []firewall.BaseChain) error {
	marked := map[*[]packetKind]bool{}
	before := map[*[]packetKind]*[]packetKind{&f.in: &f.tunnelIn, &f.tunnelOut: &f.out}
	for _, some := range f.all() {
		for i := range *some {
			one := &(*some)[i]
			p := one.packet
			p.Unmarked = !marked[before[some]]
			passage, marks, err := passage(p, chains)
			if err != nil {
				return err
			}
			one.passage = passage
			marked[some] = marked[some] || marks
		}
	}
	return nil
}

// readRules follows the packets through the rules of this host.
func (c *collector) readRules(ctx context.Context, packets packetKinds) {
	f := &c.f
	legacy, unread := c.in.Legacy.Get(ctx)
	rules := newInput(ctx, "packet filter rules", localLimit, func(ctx context.Context) (struct{}, error) {
		var k nftables.Keeper
		defer k.Close()
		err := k.View(ctx, firewall.IPv4, func(chains []firewall.BaseChain) error {
			return packets.follow(append(chains, legacy.BaseChains()...))
		})
		if firewall.Absent(err) { // then there is only iptables-legacy
			err = packets.follow(legacy.BaseChains())
		}
		return struct{}{}, err
	})
	f.ShowRules = "nft list ruleset"
	if legacy != nil {
		f.ShowRules += "; iptables-legacy-save"
	}
	if _, err := rules.Get(ctx); err != nil {
		unknown := trace.IsNot[[]trace.Filtered](err)
		f.OutRules, f.InRules, f.TunnelOut, f.TunnelIn = unknown, unknown, unknown, unknown
		return
	}
	c.setRules(ctx, &packets, unread)
}

// setRules sets what the packet filters do with packets that were followed. unread is why not all
// rules could be read.
func (c *collector) setRules(ctx context.Context, packets *packetKinds, unread error) {
	f := &c.f
	told := func(some []packetKind, mend func(firewall.Barrier) string) (all trace.Known[[]trace.Filtered]) {
		all.Is, all.Err = unread == nil, unread
		for _, one := range some {
			all.Value = append(all.Value, c.filtered(ctx, one, mend))
		}
		return all
	}
	trust := func(b firewall.Barrier) string { return b.TrustCommand(f.Network) }
	open := func(b firewall.Barrier) string { return b.OpenCommand(f.Port) }
	f.OutRules, f.InRules = told(packets.out, trust), told(packets.in, trust)
	f.TunnelOut, f.TunnelIn = told(packets.tunnelOut, open), told(packets.tunnelIn, open)
}

// filtered returns what the packet filters do with one kind of packet, in words.
func (c *collector) filtered(ctx context.Context, one packetKind, mend func(firewall.Barrier) string) trace.Filtered {
	r := trace.Filtered{What: one.what}
	p, b := one.passage, (*firewall.Barrier)(nil)
	var rule firewall.RuleRef
	switch {
	case p.Dropped != nil:
		r.Fate, b, rule = trace.Dropped, p.Dropped, p.Dropped.Rule
		r.Remedy = mend(*b)
	case p.Translated != nil:
		r.Fate, b, rule = trace.Translated, p.Translated, p.Translated.Rule
		r.Remedy = b.ExemptCommand(c.f.Network, c.f.Network)
	case p.Unclear != nil:
		r.Fate, b, rule = trace.Unclear, p.Unclear, p.Unclear.Unclear
		if rule == (firewall.RuleRef{}) {
			rule = b.Rule
		}
	default:
		return r
	}
	r.Rule, r.Command = c.in.ruleText(ctx, *b, rule), listCommand(*b, rule)
	return r
}

// listCommand returns the command that lists the chain of a rule.
func listCommand(b firewall.Barrier, r firewall.RuleRef) string {
	chain := r.Chain
	if chain == "" {
		chain = b.Chain
	}
	if b.Kind == "nftables" {
		b.Chain = chain
		return b.NFT("-a list chain", "")
	}
	return shell.Command(b.Kind, "-t", b.Table, "-S", chain)
}

// packets returns the packets whose ways are known.
func (c *collector) packets() (all packetKinds) {
	f := &c.f
	w := Ways{Bridge: f.Bridge(f.Near()), Index: map[string]int{}}
	add := func(to *[]packetKind, what string, p firewall.Packet) {
		for _, name := range []string{p.In, p.Out} {
			if i, err := net.InterfaceByName(name); err == nil {
				w.Index[name] = i.Index
			}
		}
		*to = append(*to, packetKind{what: what, packet: w.packet(p)})
	}
	if f.Role() == trace.Both {
		c.insidePackets(add, &all)
		return all
	}
	local, remote := f.Near().Addr, f.Far().Addr
	for _, protocol := range c.protocols() {
		what, p := c.packet(protocol, f.Role() == trace.Receiver)
		p.In, p.Out, p.Src, p.Dst = w.Bridge, f.LeavesBy(), local, remote
		add(&all.out, what, p)
		what, p = c.packet(protocol, f.Role() == trace.Sender)
		p.In, p.Out, p.Src, p.Dst = f.LeavesBy(), w.Bridge, remote, local
		add(&all.in, what, p)
	}
	if peer := c.peer.PublicIP; f.Tunnelled() && peer.IsValid() && f.Addr.IsValid() {
		source := uint16(ephemeral)
		if f.Backend == "udp" {
			source = f.Port
		}
		tunnel := firewall.Packet{Protocol: unix.IPPROTO_UDP, SrcPort: source, DstPort: f.Port}
		out, in := tunnel, tunnel
		out.Out, out.Src, out.Dst, out.FromHost = f.Uplink, f.Addr, peer, true
		in.In, in.Src, in.Dst, in.ToHost = f.Uplink, peer, f.Addr, true
		add(&all.tunnelOut, "tunnel packets", out)
		add(&all.tunnelIn, "tunnel packets", in)
	}
	return all
}

// insidePackets adds the packets between two containers of this host. Those between ports of one
// bridge pass the packet filters only with br_netfilter.
func (c *collector) insidePackets(add func(*[]packetKind, string, firewall.Packet), all *packetKinds) {
	f := &c.f
	a, b := f.Bridge(f.Src), f.Bridge(f.Dst)
	if a == b {
		filtered := ""
		_ = withKernel(func(k *kernel.Kernel) error { // without a value, the rules are followed
			values, err := k.Sysctls([]string{bridgeFilter})
			if filtered = values[bridgeFilter]; err == nil && filtered == "" {
				filtered = "0"
			}
			return err
		})
		if filtered == "0" {
			all.out, all.in = []packetKind{{what: "packets between ports of one bridge"}}, []packetKind{{what: "packets between ports of one bridge"}}
			return
		}
	}
	for _, protocol := range c.protocols() {
		for _, reply := range []bool{false, true} {
			what, p := c.packet(protocol, reply)
			if p.In, p.Out, p.Src, p.Dst = a, b, f.Src.Addr, f.Dst.Addr; reply {
				p.In, p.Out, p.Src, p.Dst = b, a, f.Dst.Addr, f.Src.Addr
				add(&all.in, what, p)
				continue
			}
			add(&all.out, what, p)
		}
	}
}

// protocols returns the protocols that are followed.
func (c *collector) protocols() []string {
	switch {
	case c.Protocol != "":
		return []string{c.Protocol}
	case c.Port != 0:
		return []string{"tcp", "udp"}
	}
	return []string{"icmp", "tcp", "udp"}
}

// packet returns a packet of a protocol, with the ports that are known, and its name.
func (c *collector) packet(protocol string, reply bool) (what string, p firewall.Packet) {
	p = firewall.Packet{Reply: reply, Protocol: map[string]uint8{"icmp": unix.IPPROTO_ICMP, "tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP}[protocol]}
	what = "new " + strings.ToUpper(protocol) + " packets"
	if reply {
		what = "reply " + strings.ToUpper(protocol) + " packets"
	}
	switch {
	case protocol == "icmp" && !reply:
		p.ICMPType = 8
	case protocol == "icmp" || c.Port == 0:
	case reply:
		p.SrcPort, p.DstPort = c.Port, ephemeral
		what += fmt.Sprintf(" from port %d", c.Port)
	default:
		p.SrcPort, p.DstPort = ephemeral, c.Port
		what += fmt.Sprintf(" to port %d", c.Port)
	}
	return what, p
}
