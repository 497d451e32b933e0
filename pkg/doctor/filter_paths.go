package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/iptables"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lease"
	"flanneld/pkg/nftables"
)

// Passages are the paths of packets of the overlay through the packet filters of this host.
type Passages struct {
	All    []Passage
	Legacy error // why the tables of iptables-legacy could not be read; nil if they were
}

// Passage is what happens to one kind of packet.
type Passage struct {
	About string // the check that it belongs to
	What  string // such as "a new TCP packet from a container of this host to one of a peer"
	// Dropped is the chain that drops the packet, Unclear one that may drop or redirect it, and
	// Translated one that changes its addresses; nil if there is none. Packets with ports that are
	// not known pass if they pass with a usual port.
	Dropped, Unclear, Translated *firewall.Barrier
}

// Checks that passages belong to.
const (
	aboutForward = "FL-FORWARD-DROP"
	aboutInput   = "FL-TUNNEL-INPUT"
	aboutOutput  = "FL-TUNNEL-OUTPUT"
	aboutNAT     = "FL-NAT-OVERLAY"
	aboutOutside = "FL-NAT-OUTSIDE"
	aboutBridge  = "FL-BRIDGE-FILTER"
)

// Ways are the devices and addresses that packets of the overlay have on this host.
type Ways struct {
	Network, Subnet netip.Prefix
	Bridge          string // of containers; empty if there is none
	Overlay         string // device that packets to a peer's containers leave by
	Uplink          string
	Addr            netip.Addr   // of this host in the underlay
	Peers           []netip.Addr // public IPs of some peers
	Peer            netip.Addr   // a container of a peer
	Port            uint16       // of the tunnel; 0: none
	Bound           bool         // the tunnel sends from its port
	Index           map[string]int
}

const (
	// mostPeers is how many peers' packets are followed.
	mostPeers = 4
	// ephemeral is an example of a source port that the kernel chooses.
	ephemeral = 40000
)

// outside stands for any address that is not in the network (RFC 5737).
func outside() netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, 1}) }

// packet adds the indexes of its devices to a packet.
func (w Ways) packet(p firewall.Packet) firewall.Packet {
	p.InIndex, p.OutIndex = w.Index[p.In], w.Index[p.Out]
	p.InBridge, p.OutBridge = w.Bridge != "" && p.In == w.Bridge, w.Bridge != "" && p.Out == w.Bridge
	return p
}

// follow follows the packets of the overlay through the base chains.
func (w Ways) follow(chains []firewall.BaseChain) (all []Passage, err error) {
	here := w.Subnet.Addr().Next().Next()
	var inMarked, outMarked bool
	add := func(about, what string, p firewall.Packet) (marked bool) {
		if err != nil {
			return false
		}
		var pass Passage
		pass, marked, err = passage(w.packet(p), chains)
		pass.About, pass.What = about, what
		all = append(all, pass)
		return marked
	}
	if w.Port != 0 {
		source := uint16(ephemeral)
		if w.Bound {
			source = w.Port
		}
		for _, peer := range w.Peers {
			marked := add(aboutInput, fmt.Sprintf("tunnel packets from %s", peer), firewall.Packet{
				In: w.Uplink, Src: peer, Dst: w.Addr, Protocol: unix.IPPROTO_UDP, SrcPort: source, DstPort: w.Port, ToHost: true, Unmarked: true,
			})
			inMarked = inMarked || marked
		}
	}
	if w.Peer.IsValid() {
		for _, protocol := range []uint8{unix.IPPROTO_ICMP, unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			out := firewall.Packet{In: w.Bridge, Out: w.Overlay, Src: here, Dst: w.Peer, Protocol: protocol, ICMPType: 8, Unmarked: true}
			in := firewall.Packet{In: w.Overlay, Out: w.Bridge, Src: w.Peer, Dst: here, Protocol: protocol, ICMPType: 8, Unmarked: !inMarked}
			for _, reply := range []bool{false, true} {
				kind := "new"
				if out.Reply, in.Reply = reply, reply; reply {
					kind, out.ICMPType, in.ICMPType = "reply", 0, 0
				}
				kind += " " + map[uint8]string{unix.IPPROTO_ICMP: "ICMP", unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP"}[protocol]
				marked := add(aboutForward, kind+" packets from containers of this host to those of other hosts", out)
				outMarked = outMarked || marked
				add(aboutForward, kind+" packets from containers of other hosts to those of this host", in)
			}
		}
	}
	if w.Port != 0 {
		source := uint16(ephemeral)
		if w.Bound {
			source = w.Port
		}
		for _, peer := range w.Peers {
			add(aboutOutput, fmt.Sprintf("tunnel packets to %s", peer), firewall.Packet{
				Out: w.Uplink, Src: w.Addr, Dst: peer, Protocol: unix.IPPROTO_UDP, SrcPort: source, DstPort: w.Port, FromHost: true, Unmarked: !outMarked,
			})
		}
	}
	add(aboutOutside, "packets from containers of this host to addresses outside the network", firewall.Packet{
		In: w.Bridge, Out: w.Uplink, Src: here, Dst: outside(), Protocol: unix.IPPROTO_UDP, SrcPort: ephemeral, DstPort: 443, Unmarked: true,
	})
	if w.Bridge != "" {
		add(aboutBridge, "packets between containers of this host", firewall.Packet{
			In: w.Bridge, Out: w.Bridge, Src: here, Dst: here.Next(), Protocol: unix.IPPROTO_ICMP, ICMPType: 8, Unmarked: true,
		})
	}
	return all, err
}

// usualPorts are ports that a packet passes with if rules let anything through at all.
func usualPorts() []uint16 { return []uint16{443, 80, 53, 8080, 22, 30000} }

// passage follows a packet. If the result depends on ports that are not known, it is that of a
// usual port that passes.
func passage(p firewall.Packet, chains []firewall.BaseChain) (r Passage, marked bool, err error) {
	path, err := firewall.Evaluate(p, chains)
	r = result(path)
	if err != nil || r.Dropped != nil || r.Unclear == nil || p.DstPort != 0 || p.Protocol == unix.IPPROTO_ICMP {
		return r, path.Marked, err
	}
	for _, port := range usualPorts() {
		if p.SrcPort, p.DstPort = ephemeral, port; p.Reply {
			p.SrcPort, p.DstPort = port, ephemeral
		}
		now, err := firewall.Evaluate(p, chains)
		if err != nil {
			return r, path.Marked, err
		}
		if one := result(now); one.Dropped == nil && one.Unclear == nil {
			return one, path.Marked, nil
		}
	}
	return r, path.Marked, nil
}

// result returns what the barriers mean.
func result(path firewall.Path) (r Passage) {
	for i := range path.Barriers {
		b := &path.Barriers[i]
		switch {
		case b.Translates && b.Point == firewall.AtPostRouting && b.Certain:
			if r.Translated == nil {
				r.Translated = b
			}
		case b.Translates && b.Point == firewall.AtInput && b.Certain:
		case b.Certain && !b.Translates:
			if r.Dropped == nil {
				r.Dropped = b
			}
		case r.Unclear == nil:
			r.Unclear = b
		}
	}
	return r
}

// findWays collects the devices and addresses of the overlay's packets.
func (in *Inputs) findWays(ctx context.Context) (w Ways, err error) {
	o, err := in.Overlay.Get(ctx)
	if err != nil {
		return w, err
	}
	if !o.Subnet.IsValid() || !o.Subnet.Addr().Is4() {
		return w, errors.New("this host has no subnet")
	}
	w = Ways{
		Network: o.Network, Subnet: o.Subnet, Overlay: o.Device, Uplink: o.Uplink, Port: o.Port, Bound: o.Backend == "udp",
		Index: map[string]int{},
	}
	if s, err := in.Surroundings.Get(ctx); err == nil {
		w.Bridge = bridgeOf(s, o)
	}
	peers := slices.DeleteFunc(slices.Clone(o.Peers), func(l lease.Lease) bool { return !l.PublicIP.IsValid() || !l.Subnets.V4().IsValid() })
	for _, l := range peers[:min(len(peers), mostPeers)] {
		w.Peers = append(w.Peers, l.PublicIP)
		w.Peer = cmp.Or(w.Peer, l.Subnets.V4().Addr().Next().Next())
	}
	if !w.Peer.IsValid() {
		if w.Peer = o.Network.Addr().Next(); o.Subnet.Contains(w.Peer) {
			w.Peer = lease.LastAddr(o.Network)
		}
	}
	err = withKernel(func(k *kernel.Kernel) error {
		if iface, _, err := k.RouteTo(w.Peer); err == nil && len(peers) > 0 {
			w.Overlay = iface
		}
		to := outside()
		if len(w.Peers) > 0 {
			to = w.Peers[0]
		}
		iface, source, err := k.RouteTo(to)
		if err == nil {
			w.Uplink, w.Addr = iface, source
		}
		return nil
	})
	for _, name := range []string{w.Bridge, w.Overlay, w.Uplink} {
		if i, err := net.InterfaceByName(name); err == nil {
			w.Index[name] = i.Index
		}
	}
	return w, err
}

// readPassages follows the packets of the overlay through the rules of this host.
func (in *Inputs) readPassages(ctx context.Context) (p Passages, err error) {
	w, err := in.Ways.Get(ctx)
	if err != nil {
		return p, err
	}
	legacy, err := in.Legacy.Get(ctx)
	p.Legacy = err
	var k nftables.Keeper
	defer k.Close()
	err = k.View(ctx, firewall.IPv4, func(chains []firewall.BaseChain) (err error) {
		p.All, err = w.follow(append(chains, legacy.BaseChains()...))
		return err
	})
	if firewall.Absent(err) { // then there is only iptables-legacy
		p.All, err = w.follow(legacy.BaseChains())
	}
	return p, err
}

// readLegacy reads the tables of iptables-legacy, if the kernel has any.
func readLegacy(ctx context.Context) (*iptables.Listing, error) {
	names, err := iptables.LegacyTables(firewall.IPv4)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	command := "iptables-legacy"
	out, err := output(ctx, command+"-save")
	if errors.Is(err, errNoCommand) {
		command = "iptables"
		version, failed := output(ctx, command, "--version")
		if failed != nil || strings.Contains(string(version), "nf_tables") {
			return nil, fmt.Errorf("the kernel has tables of iptables-legacy (%s), which is not installed", and(names))
		}
		out, err = output(ctx, command+"-save")
	}
	if err != nil {
		return nil, err
	}
	return iptables.ParseListing(command, string(out))
}

// ruleTextLimit limits the time of a command that lists one chain, for the text of a rule.
const ruleTextLimit = time.Second

// ruleText returns the text of a rule as the tool of its packet filter prints it, or describes it
// if the tool cannot be asked.
func (in *Inputs) ruleText(ctx context.Context, b firewall.Barrier, r firewall.RuleRef) string {
	ctx, cancel := context.WithTimeout(ctx, ruleTextLimit)
	defer cancel()
	text := ""
	table, ip := strings.CutPrefix(b.Table, "ip ")
	switch {
	case r == (firewall.RuleRef{}):
		return fmt.Sprintf("the policy of chain %s in %s", b.Chain, tableName(b))
	case b.Kind != "nftables":
		l, _ := in.Legacy.Get(ctx)
		text = l.RuleText(b.Table, r)
	case ip && b.Chain == strings.ToUpper(b.Chain):
		if out, err := output(ctx, "iptables-nft-save", "-t", table); err == nil {
			if l, err := iptables.ParseListing("iptables-nft", string(out)); err == nil {
				text = l.RuleText(table, r)
			}
		}
		fallthrough
	default:
		if text == "" {
			out, _ := output(ctx, "nft", append([]string{"-a", "list", "chain"}, append(strings.Fields(b.Table), r.Chain)...)...)
			text = ruleWithHandle(string(out), r.Handle)
		}
	}
	if text == "" {
		text = fmt.Sprintf("number %d of chain %s", r.Number, r.Chain)
		if r.Handle != 0 {
			text += fmt.Sprintf(" (handle %d)", r.Handle)
		}
	}
	return fmt.Sprintf("rule %q in %s", text, tableName(b))
}

// tableName returns the name of a barrier's table for people.
func tableName(b firewall.Barrier) string {
	if b.Kind == "nftables" {
		return "nftables table " + b.Table
	}
	return b.Kind + " table " + b.Table
}

// ruleWithHandle returns the rule with a handle in a listing of nft.
func ruleWithHandle(listing string, handle uint64) string {
	for line := range strings.Lines(listing) {
		rule, has := strings.CutSuffix(strings.TrimSpace(line), fmt.Sprintf(" # handle %d", handle))
		if has && !strings.HasSuffix(rule, "{") {
			return rule
		}
	}
	return ""
}
