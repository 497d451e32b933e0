package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/condition"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/firewall"
	"flanneld/pkg/firewalld"
	"flanneld/pkg/iptables"
	"flanneld/pkg/nftables"
)

const (
	// portGap is the least time between two looks at whether the tunnel's port is
	// open: it follows a packet through everybody's rules. Where these are many, looks
	// take one part in portShare of a processor.
	portGap   = time.Second
	portShare = 50
	// portPeers is how many peers are tried one by one, where it depends on who sends.
	portPeers = 8
	// walkFailures in a row are more than rules that change while they are read.
	walkFailures = 3
	// vxlanSourcePort is any source port of a VXLAN packet: the kernel chooses among many.
	vxlanSourcePort = 40000
)

// IDs of conditions.
const (
	legacyCondition = "iptables-legacy"
	ownedCondition  = "packet-filter/" // and a chain
	portCondition   = "tunnel-port/"   // and a chain
	unreadCondition = "iptables-legacy-unread"
	blindCondition  = "packet-filter-unread"
)

// others are the packet filters of this host that the overlay's rules are not kept in,
// and may drop its packets all the same: nftables' chains of other programs, and the
// other variant of iptables. An accept ends only the chain it stands in, so each of them
// needs one.
type others struct {
	conditions *condition.List
	probes     func() (probes, bool)
	trust      *trust

	failed error     // why what the legacy variant of iptables has cannot be written
	next   time.Time // when that may be tried again
	slow   bool      // it has tables, so that a look takes a process
	barred bool      // a chain in nftables cannot be written
	port   time.Time // when the tunnel's port may be looked at again
	blind  int       // failures in a row to follow a packet through the rules of others
}

// probes are packets whose fate is asked for.
type probes struct {
	tunnel *firewall.Packet // from a peer to the tunnel's port; nil if there is none
	peers  []netip.Addr
	inner  []firewall.Packet // between containers of this host and of another one
}

// minor is an error without that of chains that cannot be written, of which [rules.lookOwned]
// finds out what they do.
func (r *rules) minor(err error) error {
	barred := errors.Is(err, nftables.ErrBarred)
	if err == nil || barred {
		r.others.barred = barred
		return nil
	}
	return err
}

// keepBeside keeps accepts beside the set. Where iptables-nft has its rules, the set
// has its own.
func (r *rules) keepBeside(ctx context.Context) (changes []string, err error) {
	ipt, byIPTables := r.set.(*iptables.Tables)
	if byIPTables && r.standIn == nil {
		nft, failed := r.tools.nftables.get()
		switch {
		case failed == nil:
			var except []string
			if !ipt.Legacy() {
				for _, h := range []firewall.Hook{firewall.Forward, firewall.PreRouting} {
					except = append(except, fmt.Sprintf("ip %s %s", h.Table(), h.Chain()))
				}
			}
			changes, err = nft.Beside(ctx, nftables.IPv4, r.owner(), r.want, except...)
			err = r.minor(err)
		case !errors.Is(failed, nftables.ErrUnsupported):
			err = failed
		}
	}
	if byIPTables && ipt.Legacy() {
		r.others.failed = nil
		r.others.conditions.End(legacyCondition)
		return changes, err
	}
	return append(changes, r.keepLegacy(ctx)...), err
}

// keepLegacy keeps accepts in iptables-legacy, if the kernel has its tables. What prevents
// it prevents nothing else.
func (r *rules) keepLegacy(ctx context.Context) (changes []string) {
	tables, err := iptables.LegacyTables(iptables.IPv4)
	if err != nil {
		r.others.conditions.Set(condition.Condition{
			ID: unreadCondition, Text: "cannot tell whether iptables-legacy has rules, will retry", Fields: []any{"err", err},
		})
		r.others.failed = err
		return nil
	}
	r.others.conditions.End(unreadCondition)
	r.others.slow = false
	if len(tables) == 0 {
		r.others.failed = nil
		r.others.conditions.End(legacyCondition)
		return nil
	}
	command := "iptables-legacy"
	legacy, err := r.tools.legacyIPTables()
	if err == nil {
		r.others.slow, command = true, legacy.Command()
		changes, err = r.besideLegacy(ctx, legacy)
	}
	drops := slices.ContainsFunc(tables, func(t string) bool { return t != firewall.PostRouting.Table() })
	if ctx.Err() != nil {
		return changes
	}
	r.others.failed = err
	if err == nil || !drops || !r.options.Forward {
		r.others.conditions.End(legacyCondition)
		return changes
	}
	network := r.owner().Network
	r.others.conditions.Set(condition.Condition{
		ID: legacyCondition, Text: "iptables-legacy may drop the overlay's packets, and cannot be asked",
		Fields:  []any{"err", err},
		Command: fmt.Sprintf("%[1]s -w -I FORWARD -s %[2]s -j ACCEPT; %[1]s -w -I FORWARD -d %[2]s -j ACCEPT", command, network),
	})
	return changes
}

// besideLegacy keeps accepts in iptables-legacy, unless that is the keeper which cannot keep
// the rules just now: what it holds of them stays.
func (r *rules) besideLegacy(ctx context.Context, legacy *iptables.Tables) (changes []string, err error) {
	if main, _ := r.tools.iptables.peek(); main == legacy && r.standIn != nil {
		return nil, r.standIn
	}
	if r.others.failed != nil && (r.locked != nil || time.Now().Before(r.others.next)) {
		return nil, r.others.failed
	}
	begun := time.Now()
	changes, err = legacy.Beside(ctx, r.owner(), r.want)
	r.others.next = begun
	if errors.Is(err, iptables.ErrLocked) {
		r.locked = legacy
	} else if err != nil { // perhaps by a command that hangs, for which nothing else shall wait
		r.others.next = time.Now().Add(min(ruleRetryShare*time.Since(begun), ruleRetryMost))
	}
	return changes, err
}

// lookBeside says what of others drops the overlay's packets and cannot be helped here.
// It returns the time until it should be asked again.
func (r *rules) lookBeside(ctx context.Context) time.Duration {
	p, ok := r.others.probes()
	if !ok || ctx.Err() != nil {
		return ruleResync
	}
	err := r.lookOwned(ctx, p.inner)
	wait := time.Until(r.others.port)
	if wait <= 0 {
		begun := time.Now()
		err = errors.Join(err, r.lookPort(ctx, p))
		pause := min(max(portGap, portShare*time.Since(begun)), ruleResync)
		wait, r.others.port = ruleResync, time.Now().Add(pause)
	}
	if err == nil || ctx.Err() != nil {
		r.others.blind = 0
		r.others.conditions.End(blindCondition)
		return wait
	}
	if r.others.blind++; r.others.blind >= walkFailures {
		r.others.conditions.Set(condition.Condition{
			ID: blindCondition, Text: "cannot tell whether rules of others drop the overlay's packets, will retry", Fields: []any{"err", err},
		})
	}
	return time.Until(r.others.port)
}

// lookOwned follows packets between containers through the chains that only the program
// that made them may write.
func (r *rules) lookOwned(ctx context.Context, inner []firewall.Packet) error {
	var found []condition.Condition
	asksFirewalld := false
	if nft, ok := r.tools.nftables.peek(); ok && r.others.barred {
		for _, packet := range inner {
			all, err := nft.Barriers(ctx, packet)
			if err != nil {
				return err
			}
			for _, b := range all {
				switch {
				case !b.Owned:
				case b.Table == firewalld.Table:
					asksFirewalld = true
				case b.Certain:
					found = append(found, condition.Condition{
						ID: ownedCondition + b.String(), Fields: []any{"chain", b.String()},
						Text: "a chain that only its own program may change drops the overlay's packets",
					})
				}
			}
		}
	}
	r.others.trust.want(asksFirewalld)
	r.others.conditions.Replace(ownedCondition, found)
	return nil
}

// lookPort says where peers' packets to the tunnel's port are dropped. To open it is the
// operator's decision.
func (r *rules) lookPort(ctx context.Context, p probes) error {
	var closed []firewall.Barrier
	if p.tunnel != nil {
		all, err := r.barriers(ctx, *p.tunnel)
		certain := func(b firewall.Barrier) bool { return b.Certain }
		if err == nil && len(all) > 0 && !slices.ContainsFunc(all, certain) {
			// It may depend on who sends.
			for _, peer := range p.peers[:min(len(p.peers), portPeers)] {
				packet := *p.tunnel
				packet.Src = peer
				some, failed := r.barriers(ctx, packet)
				if all, err = append(all, some...), errors.Join(err, failed); slices.ContainsFunc(some, certain) {
					break
				}
			}
		}
		if err != nil {
			return err
		}
		for _, b := range all {
			if b.Certain {
				closed = append(closed, b)
			}
		}
	}
	var found []condition.Condition
	for _, b := range closed {
		found = append(found, condition.Condition{
			ID: portCondition + b.String(), Text: "the packet filter of this host drops what peers send to the tunnel's port",
			Fields: []any{"port", p.tunnel.DstPort, "chain", b.String()}, Command: b.Open(p.tunnel.DstPort),
		})
	}
	r.others.conditions.Replace(portCondition, found)
	return nil
}

// barriers asks nftables, where iptables-nft's rules are, too, and iptables-legacy.
func (r *rules) barriers(ctx context.Context, packet firewall.Packet) (all []firewall.Barrier, err error) {
	if nft, ok := r.tools.nftables.peek(); ok {
		all, err = nft.Barriers(ctx, packet)
	}
	tables, failed := iptables.LegacyTables(iptables.IPv4)
	if len(tables) == 0 {
		return all, errors.Join(err, failed)
	}
	legacy, failed := r.tools.legacyIPTables()
	if failed != nil || r.others.failed != nil && !errors.Is(r.others.failed, iptables.ErrLocked) {
		return all, err // it cannot be asked, which has been said
	}
	more, failed := legacy.Barriers(ctx, packet)
	return append(all, more...), errors.Join(err, failed)
}

// probes are made of the host's facts as they are now, if they are known.
func (d *daemon) probes() (p probes, ok bool) {
	f, err := d.facts.latest()
	if err != nil {
		return p, false
	}
	view := d.view.Load()
	for _, peer := range view.Peers {
		p.peers = append(p.peers, peer.PublicIP)
	}
	if l, ok := d.tunnelLink(f); ok {
		p.tunnel = &firewall.Packet{
			In: d.uplink.Load().Iface, Dst: d.uplink.Load().Addr, ToHost: true,
			Protocol: unix.IPPROTO_UDP, SrcPort: uint16(l.Port), DstPort: uint16(l.Port),
		}
		if l.Kind == dataplane.KindVXLAN {
			p.tunnel.SrcPort = vxlanSourcePort
		}
	}
	here, there := view.Own.Subnet.Addr().Next(), d.net.Network.Addr().Next()
	if view.Own.Subnet.Contains(there) {
		there = lastOf(d.net.Network)
	}
	p.inner = []firewall.Packet{{Src: here, Dst: there}, {Src: there, Dst: here}}
	return p, true
}

// lastOf is a prefix's last address.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
