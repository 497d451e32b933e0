package firewall

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// Packet describes a packet whose path through the rules is evaluated. A field that is not set is
// unknown, and so is the result of a condition on it.
type Packet struct {
	In, Out          string // devices
	InIndex          int    // of the devices
	OutIndex         int
	Src, Dst         netip.Addr
	Protocol         uint8
	SrcPort, DstPort uint16
	ICMPType         uint8 // if Protocol is ICMP
	ToHost           bool  // Dst is an address of this host
	FromHost         bool  // this host sends it
	// Reply is set if the packet answers a connection's first packet, which got through. Otherwise
	// it is such a first packet.
	Reply bool
	// Unmarked is set if the packet has no mark before the first rule. Otherwise the mark is
	// unknown.
	Unmarked bool
	// InBridge and OutBridge are set if In or Out is a bridge, whose own chains the packet passes
	// too, by ports that are unknown.
	InBridge, OutBridge bool
	// Tracking is what is known of the packet's connection. Evaluate sets it.
	Tracking Tracking
}

// Tracking is the state of a packet in connection tracking.
type Tracking uint8

const (
	Tracked    Tracking = iota // a new or, with Packet.Reply, an established connection
	NotYet                     // conntrack has not seen the packet; rules see the state "invalid"
	MayTracked                 // unknown
)

// Point is a point in a packet's path where base chains are attached, in the order of the path.
type Point uint8

const (
	AtIngress Point = iota
	AtPreRouting
	AtInput
	AtForward
	AtOutput
	AtPostRouting
	AtEgress
)

// Priorities of base chains (enum nf_ip_hook_priorities).
const (
	PriorityRaw       = -300
	PriorityConntrack = -200
	PriorityMangle    = -150
	PriorityNATDst    = -100
	PriorityFilter    = 0
	PrioritySecurity  = 50
	PriorityNATSrc    = 100
)

// BaseChain is a chain that the kernel calls for packets, of either packet filter.
type BaseChain struct {
	Kind     string // "nftables", or the name of the iptables command that lists it
	Table    string // with its family in nftables: "inet firewalld"
	Name     string
	Point    Point
	Priority int32
	Device   string // at ingress and egress; "eth*" stands for all devices with this prefix
	NAT      bool   // it sees only the first packet of a connection
	Bridge   bool   // it belongs to bridges, and its devices are their ports
	Policy   Fate
	Owned    bool // as in Barrier
	// Steps evaluates a chain of the table for a packet.
	Steps func(p Packet, chain string) ([]Step, error)
}

// Path is the result of Evaluate.
type Path struct {
	// Barriers are the base chains that drop or translate the packet, or may do so, in the order in
	// which it passes them. If one may change its destination, those after it are missing.
	Barriers []Barrier
	Marked   bool // some rule may set the packet's mark
}

// Evaluate follows a packet through base chains of all packet filters of this host. An accept ends
// only its own base chain.
func Evaluate(p Packet, chains []BaseChain) (path Path, err error) {
	chains = slices.DeleteFunc(slices.Clone(chains), func(c BaseChain) bool { return !p.passes(c) })
	slices.SortStableFunc(chains, func(a, b BaseChain) int {
		return cmp.Or(cmp.Compare(a.Point, b.Point), cmp.Compare(a.Priority, b.Priority))
	})
	for _, c := range chains {
		w, out, err := c.walk(p)
		if err != nil {
			return Path{}, err
		}
		p = p.after(w.effects)
		path.Marked = path.Marked || w.effects&SetsMark != 0
		for _, effect := range []Fate{Drops, Translates} {
			if out.fate&effect == 0 {
				continue
			}
			b := Barrier{
				Kind: c.Kind, Table: c.Table, Chain: c.Name, Owned: c.Owned, Point: c.Point,
				Certain: out.fate == effect && c.certain(effect), Translates: effect == Translates,
				Rule: out.last, Unclear: out.unclear,
			}
			b.DetectTool(w)
			path.Barriers = append(path.Barriers, b)
		}
		if out.fate&Translates == 0 && w.effects&SetsHeader == 0 {
			continue
		}
		if c.Point != AtPostRouting && c.Point != AtInput {
			if w.effects&SetsHeader != 0 && out.fate&Translates == 0 {
				path.Barriers = append(path.Barriers, Barrier{
					Kind: c.Kind, Table: c.Table, Chain: c.Name, Point: c.Point, Translates: true, Unclear: out.unclear,
				})
			}
			return path, nil // it may be another packet now, with another path
		}
		if p.Src, p.SrcPort = (netip.Addr{}), 0; w.effects&SetsHeader != 0 {
			p.Dst, p.DstPort = netip.Addr{}, 0
		}
	}
	return path, nil
}

// passes reports whether a packet passes a base chain.
func (p Packet) passes(c BaseChain) bool {
	switch {
	case c.NAT && p.Reply:
		return false
	case c.Bridge && (c.Point == AtPreRouting || c.Point == AtInput):
		return p.InBridge
	case c.Bridge:
		return p.OutBridge && (c.Point == AtOutput || c.Point == AtPostRouting)
	}
	switch c.Point {
	case AtIngress:
		return p.In != "" && c.on(p.In)
	case AtPreRouting:
		return !p.FromHost
	case AtInput:
		return p.ToHost
	case AtForward:
		return !p.ToHost && !p.FromHost
	case AtOutput:
		return p.FromHost
	case AtPostRouting:
		return !p.ToHost
	case AtEgress:
		return p.Out != "" && c.on(p.Out)
	}
	return false
}

// certain reports whether the chain certainly has an effect on a packet that its rules have it on. A
// bridge's chains see ports that are unknown. Chains for NAT are called only while conntrack is in
// use, which a rule that translates is enough for, but not one that drops.
func (c BaseChain) certain(effect Fate) bool { return !c.Bridge && !(c.NAT && effect == Drops) }

// on reports whether the base chain is attached to a device.
func (c BaseChain) on(device string) bool {
	if start, all := strings.CutSuffix(c.Device, "*"); all {
		return strings.HasPrefix(device, start)
	}
	return c.Device == device
}

// walk evaluates the base chain. If rules of it change the packet, other rules of it see the
// change, or not: what they see is unknown.
func (c BaseChain) walk(p Packet) (w *Walk, out outcome, err error) {
	seen := p.at(c)
	for before := Effects(0); ; before = w.effects {
		now := seen.after(before)
		if before&SetsHeader != 0 {
			now.Src, now.Dst, now.SrcPort, now.DstPort = netip.Addr{}, netip.Addr{}, 0, 0
		}
		w = &Walk{NAT: c.NAT, Steps: func(chain string) ([]Step, error) { return c.Steps(now, chain) }}
		out, err = w.base(c.Name, c.Policy)
		if w.effects |= before; err != nil || w.effects == before {
			return w, out, err
		}
	}
}

// at returns what the rules of a base chain see.
func (p Packet) at(c BaseChain) Packet {
	switch c.Point {
	case AtIngress, AtPreRouting, AtInput:
		p.Out = ""
	case AtOutput, AtPostRouting, AtEgress:
		p.In = ""
	}
	early := c.Point == AtIngress || c.Point == AtPreRouting || c.Point == AtOutput
	switch {
	case c.Bridge:
		p.In, p.Out, p.Tracking = "", "", MayTracked
	case p.Tracking == MayTracked:
	case c.Point == AtIngress || early && c.Priority < PriorityConntrack:
		p.Tracking = NotYet
	case early && c.Priority == PriorityConntrack:
		p.Tracking = MayTracked
	}
	return p
}

// after returns what is known of the packet after rules with these effects.
func (p Packet) after(e Effects) Packet {
	if e&SetsMark != 0 {
		p.Unmarked = false
	}
	if e&SetsTracking != 0 {
		p.Tracking = MayTracked
	}
	return p
}

// TCPFlags returns the flags of a TCP packet: SYN, and ACK if it is a reply.
func (p Packet) TCPFlags() uint8 {
	if p.Reply {
		return 0x12
	}
	return 0x02
}

// Dropping returns the base chains that drop the packet, or may drop it. Chains for NAT are not
// evaluated: they are no place to drop packets, there may be many rules in them, and one that may
// translate the packet would hide the chains after it.
func Dropping(p Packet, chains []BaseChain) ([]Barrier, error) {
	path, err := Evaluate(p, slices.DeleteFunc(slices.Clone(chains), func(c BaseChain) bool { return c.NAT }))
	return slices.DeleteFunc(path.Barriers, func(b Barrier) bool { return b.Translates }), err
}
