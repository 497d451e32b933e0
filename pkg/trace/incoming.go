package trace

import (
	"fmt"
	"strings"

	"flanneld/pkg/host"
	"flanneld/pkg/status"
)

// incoming returns the steps of a packet from the peer to the container of this host, on this host.
func (f *Facts) incoming(dir Direction) []Step {
	to, from := f.Near(), f.Far()
	steps := []Step{f.ownerStep(dir, to)}
	by := f.LeavesBy() // routes are symmetric
	if f.Tunnelled() {
		if from.Owner.Value.Found {
			steps = append(steps, f.rulesStep(dir, fmt.Sprintf("UDP port %d from %s", f.Port, from.Owner.Value.PublicIP), f.TunnelIn))
		}
		steps = append(steps, f.deviceStep(dir))
	}
	q := host.Query{Dst: to.Addr, Src: from.Addr, In: by}
	if by == "" || !f.In.Is { // for example, because the device does not exist
		steps = append(steps, f.bridgeStep(dir, to, to.Delivery, host.Query{Dst: to.Addr}))
	} else {
		steps = append(steps, forwardingStep(dir, by, f.InForwards), f.bridgeStep(dir, to, f.In, q))
	}
	bridge := f.Bridge(to)
	if bridge != "" {
		if by == "" {
			by = "the uplink"
		}
		steps = append(steps, f.rulesStep(dir, by+" to "+bridge, f.InRules))
	}
	return append(steps, f.containerStep(dir, to)...)
}

// peerReceives returns the steps about the peer as the receiver. fault is set if something on this
// host is wrong, which explains why it does not answer.
func (f *Facts) peerReceives(dir Direction, fault bool) []Step {
	to := f.Far()
	if !to.Owner.Value.Found {
		return nil
	}
	s := Step{Direction: dir, At: atPeer, Object: fmt.Sprintf("%s with %s", to.Owner.Value.PublicIP, to.Owner.Value.Subnets)}
	if !f.Peer.Status.Is {
		s = f.peerAnswers(s, fault)
	} else {
		s = f.peerSays(s)
	}
	if s.wrong() {
		return []Step{s}
	}
	c := Step{Direction: dir, At: atContainer, Object: to.Addr.String(), Command: f.Peer.pingOf(to.Addr)}
	switch {
	case !f.Peer.Container.Is:
		c = c.unknownf("it cannot be pinged: %v", f.Peer.Container.why())
	case f.Peer.Container.Value:
		if c = c.ok(); s.OK == nil {
			s.Reason = ""
			s = s.ok()
		}
	default:
		c = c.unknownf("%s does not answer pings: it does not exist, its host does not pass them to it, or it drops them; run the trace on %s", to.Addr, to.Owner.Value.PublicIP)
	}
	return []Step{s, c}
}

// blocking are IDs of conditions with which packets do not reach the containers of a host; those
// that end with a slash are prefixes.
func blocking(id string) bool {
	for _, b := range []string{"base/", "uplink", "host/ip-forward", "host/docker/", "host/route", "host/rule", "packet-filter/chain/", "tunnel-port/"} {
		if id == b || strings.HasSuffix(b, "/") && strings.HasPrefix(id, b) {
			return true
		}
	}
	return false
}

// peerSays completes a step with what the peer's flanneld says about its host.
func (f *Facts) peerSays(s Step) Step {
	d := f.Peer.Status.Value
	s.Command = f.Peer.Asked
	subnet := f.Far().Owner.Value.Subnets.V4()
	switch {
	case d.Network.CIDR != f.Network:
		return s.unknownf("the flanneld that answers there serves another network, %s", d.Network.CIDR)
	case d.Lease.Lost:
		return s.failf("", "its flanneld says: another host has taken its subnet")
	case !d.Lease.Subnet.IsValid():
		return s.failf("", "its flanneld says: it has no subnet")
	case d.Lease.Subnet != subnet:
		return s.failf("", "its flanneld says: its subnet is %s, and not %s", d.Lease.Subnet, subnet)
	}
	for _, c := range d.Conditions {
		if c.Severity != status.Notice && blocking(c.ID) {
			return s.failf("flanneld doctor # on "+f.Far().Owner.Value.PublicIP.String(), "its flanneld says: %s", c.Text)
		}
	}
	s.Object += ": its flanneld says " + string(d.Verdict)
	switch b := d.Bridge; {
	case b == nil: // an older flanneld does not say
	case b.Device != "":
		s.Object += ", containers on " + b.Device
	case !f.Peer.Container.Is || !f.Peer.Container.Value: // an answer is newer than what it says
		return s.failf(fmt.Sprintf("flanneld trace %s %s # on %s", f.Src.Addr, f.Dst.Addr, f.Far().Owner.Value.PublicIP),
			"its flanneld says: no interface of that host has an address of its subnet %s, so it has no way to its containers", subnet)
	}
	return s.ok()
}

// peerAnswers completes a step with what pings of the peer have shown.
func (f *Facts) peerAnswers(s Step, fault bool) Step {
	p := f.Peer
	s.Command = p.pingOf(p.OverlayAddr)
	why := fmt.Sprintf("its flanneld cannot be asked (%v)", p.Status.why())
	silent := p.Overlay.Is && !p.Overlay.Value
	before := p.Entry.Is && p.Entry.Value.RTT != nil
	switch {
	case p.Overlay.Is && p.Overlay.Value:
		s.Object += fmt.Sprintf(": %s answers", p.OverlayAddr)
		return s.ok()
	case !p.Overlay.Is:
		return s.unknownf("%s, nor can it be pinged: %v", why, p.Overlay.why())
	case fault:
		return s.unknownf("%s, and it cannot answer pings through the overlay before the rest is mended", why)
	case silent && before && p.PublicIP.Is && p.PublicIP.Value:
		return s.failf("flanneld doctor # on "+f.Far().Owner.Value.PublicIP.String(),
			"it answered pings to %s through the overlay before, and now only at its public IP: its flanneld, its device or its packet filter is at fault; %s", p.OverlayAddr, why)
	case silent && before:
		return s.failf("ping -c 3 "+f.Far().Owner.Value.PublicIP.String(),
			"it answered pings to %s through the overlay before, and now neither there nor at its public IP; %s", p.OverlayAddr, why)
	}
	return s.unknownf("%s, and %s has never answered pings through the overlay: it may drop them", why, p.OverlayAddr)
}

// peerSends returns the step about what the peer has for this host.
func (f *Facts) peerSends(dir Direction, fault bool) Step {
	from := f.Far()
	s := Step{Direction: dir, At: atPeer, Object: fmt.Sprintf("entries for %s on the peer", f.Subnet)}
	if from.Owner.Value.Found {
		s.Object = fmt.Sprintf("entries for %s on %s", f.Subnet, from.Owner.Value.PublicIP)
	}
	if f.Peer.Status.Is {
		return f.peerKnowsUs(s)
	}
	s.Command = f.Peer.pingOf(f.Peer.OverlayAddr)
	switch {
	case !f.Peer.OverlayAddr.IsValid():
		s.Command = ""
		return s.unknownf("the peer is not known")
	case f.Peer.Overlay.Is && f.Peer.Overlay.Value, f.Peer.Container.Is && f.Peer.Container.Value:
		s.Object += ": it answers through the overlay"
		return s.ok()
	case f.Backend == "alloc":
		return s.unknownf("the backend alloc makes none: another program must carry the packets")
	}
	if fault {
		return s.unknownf("its flanneld cannot be asked (%v)", f.Peer.Status.why())
	}
	return s.unknownf("its flanneld cannot be asked (%v), and it does not answer pings through the overlay", f.Peer.Status.why())
}

// peerKnowsUs completes a step with what the peer's flanneld says about this host.
func (f *Facts) peerKnowsUs(s Step) Step {
	d := f.Peer.Status.Value
	s.Command = f.Peer.Asked
	if d.Network.CIDR != f.Network {
		return s.unknownf("the flanneld that answers there serves another network, %s", d.Network.CIDR)
	}
	if len(d.Peers) == 0 && d.Store.ViewAge == nil {
		return s.unknownf("its flanneld has no list of hosts yet")
	}
	if len(d.Peers) == 0 {
		return s.failf("", "its flanneld says: it knows no host with %s", f.Subnet)
	}
	switch p := d.Peers[0]; {
	case f.PublicIP.IsValid() && p.PublicIP != f.PublicIP:
		return s.failf("", "its flanneld says: it sends packets for %s to %s, and not to %s", f.Subnet, p.PublicIP, f.PublicIP)
	case p.State == status.OK:
		s.Object += ": its flanneld says ok"
		if p.Programmed != "" {
			s.Object += ", " + p.Programmed
		}
		return s.ok()
	case p.State == status.Skipped, p.State == status.Unprogrammed:
		return s.failf("", "its flanneld says: %s: %s", p.State, p.Reason)
	default:
		return s.unknownf("its flanneld does not know whether it has them")
	}
}
