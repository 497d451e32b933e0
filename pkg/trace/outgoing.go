package trace

import (
	"fmt"
	"net/netip"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/shell"
	"flanneld/pkg/status"
)

// outgoing returns the steps of a packet from the container of this host to the peer, on this host.
func (f *Facts) outgoing(dir Direction) []Step {
	from, to := f.Near(), f.Far()
	steps := []Step{f.ownerStep(dir, to), f.bridgeStep(dir, from, from.Delivery, host.Query{Dst: from.Addr})}
	steps = append(steps, f.containerStep(dir, from)...)
	bridge := f.Bridge(from)
	if bridge == "" {
		bridge = "the bridge"
	} else {
		steps = append(steps, forwardingStep(dir, bridge, f.OutForwards))
	}
	steps = append(steps, f.rulesStep(dir, bridge+" to "+f.LeavesBy(), f.OutRules))
	if f.Tunnelled() {
		steps = append(steps, f.deviceStep(dir))
	}
	steps = append(steps, f.routeStep(dir, bridge))
	steps = append(steps, f.entrySteps(dir)...)
	if f.Backend == "alloc" || !to.Owner.Value.Found {
		return steps
	}
	if steps = append(steps, f.uplinkStep(dir)); f.Tunnelled() {
		steps = append(steps, f.rulesStep(dir, fmt.Sprintf("UDP port %d to %s", f.Port, to.Owner.Value.PublicIP), f.TunnelOut))
	}
	return steps
}

// wanted returns the route to the peer that this host should have, of several the most specific one.
func (f *Facts) wanted() (k dataplane.RouteKey, r dataplane.Route, ok bool) {
	for key, route := range f.Want.Value.Routes {
		if key.Dst.Contains(f.Far().Addr) && (!ok || key.Dst.Bits() > k.Dst.Bits()) {
			k, r, ok = key, route, true
		}
	}
	return k, r, ok
}

// LeavesBy returns the device by which packets to the peer should leave this host, or else the one
// by which they do.
func (f *Facts) LeavesBy() string {
	k, _, ok := f.wanted()
	switch {
	case ok:
		return k.Link
	case f.Device != "":
		return f.Device
	case f.Out.Value.Iface != "":
		return f.Out.Value.Iface
	}
	return f.Uplink
}

// Tunnelled reports whether packets to and from the peer pass the overlay's device.
func (f *Facts) Tunnelled() bool { return f.Device != "" && f.LeavesBy() == f.Device }

// deviceStep returns the step about the overlay's device.
func (f *Facts) deviceStep(dir Direction) Step {
	s := Step{Direction: dir, At: atDevice, Object: f.Device, Command: "ip -d link show dev " + f.Device}
	if l, exists := f.Have.Value.Links[f.Device]; exists {
		s.Object = objectText(dataplane.State{Links: map[string]dataplane.Link{f.Device: l}})
	}
	switch faults := f.DeviceFaults; {
	case !faults.Is:
		return s.unknownf("its state is not known: %v", faults.why())
	case len(faults.Value) == 0:
		return s.ok()
	case f.Backend == "udp" && f.Daemon.Down:
		return s.failf("systemctl start flanneld", "%s is not as this host has announced it: %s; it belongs to flanneld, which does not run", f.Device, and(faults.Value))
	default:
		return s.failf(f.start(), "%s is not as this host has announced it: %s", f.Device, and(faults.Value))
	}
}

// start returns the command that makes flanneld set up everything.
func (f *Facts) start() string {
	switch {
	case f.Daemon.Down:
		return "systemctl start flanneld"
	case f.Daemon.Stopped && f.Daemon.PID != 0:
		return fmt.Sprintf("kill -CONT %d", f.Daemon.PID)
	}
	return "systemctl restart flanneld"
}

// routeStep returns the step about the route to the peer's container.
func (f *Facts) routeStep(dir Direction, bridge string) Step {
	to, from := f.Far().Addr, f.Near().Addr
	q := host.Query{Dst: to}
	if f.Bridge(f.Near()) != "" {
		q.Src, q.In = from, bridge
	}
	d := f.Out.Value
	s := Step{Direction: dir, At: atRoute, Object: d.Text(to), Command: "ip route get " + q.String()}
	if !f.Out.Is {
		s.Object = "packets to " + to.String()
		return s.unknownf("the kernel cannot be asked: %v", f.Out.why())
	}
	k, want, ok := f.wanted()
	switch {
	case f.Backend == "alloc":
		return f.allocStep(s)
	case !ok && d.Refused != "":
		return s.failf("", "packets to %s are not sent: %s", to, d.Refused)
	case !ok:
		return s.unknownf("where packets to %s must leave is not known: %s", to, f.whyNoWant())
	case d.Refused == "" && d.Iface == k.Link && d.Gateway == want.Via && d.Table == 0:
		return s.ok()
	}
	put := dataplane.KindRoute.Put(k, want)
	now := "packets go to " + d.Text(to)
	if d.Refused != "" {
		now = d.Refused
	}
	have, exists := f.Have.Value.Routes[k]
	switch {
	case f.Have.Is && (!exists || have.Via != want.Via):
		return s.failf(put.String(), "the route %s is missing: %s", routeText(k, want), now)
	case d.Table != 0:
		return s.failf(fmt.Sprintf("ip rule add to %s lookup main priority 0", f.Network), "a rule selects the routing table %d: %s", d.Table, now)
	case d.Refused != "":
		return s.failf("flanneld doctor # finds which setting or route it is", "packets to %s are not sent, in spite of the route %s: %s", to, routeText(k, want), now)
	}
	return s.failf(fmt.Sprintf("ip route show to match %s # the first is of another program", to), "another route precedes %s: %s", routeText(k, want), now)
}

// whyNoWant returns why it is not known what the peer needs.
func (f *Facts) whyNoWant() string {
	switch {
	case !f.Want.Is:
		return f.Want.why().Error()
	case f.Skipped != "":
		return "this host leaves the peer out"
	case !f.Far().Owner.Is:
		return "the leases are not known"
	}
	return "there is no lease of that host"
}

// allocStep completes the step about the route with the backend alloc, which leaves it to others.
func (f *Facts) allocStep(s Step) Step {
	to := f.Far()
	target := to.Addr.String()
	if o := to.Owner.Value; o.Found {
		target = fmt.Sprintf("%s on %s", o.Subnets, o.PublicIP)
	}
	switch d := f.Out.Value; {
	case d.Refused != "":
		return s.failf("", "%s, and the backend alloc makes none: another program must lead packets to %s", d.Refused, target)
	case f.Peer.Container.Is && f.Peer.Container.Value:
		return s.ok()
	default:
		return s.unknownf("the backend alloc makes no routes: whatever %s belongs to must carry packets to %s", d.Text(to.Addr), target)
	}
}

// entrySteps returns the steps about what the route leads to: the entries of the overlay's device,
// or the neighbour on the uplink.
func (f *Facts) entrySteps(dir Direction) []Step {
	k, want, ok := f.wanted()
	switch {
	case f.Backend == "udp":
		return []Step{f.tunnelStep(dir)}
	case ok && k.Link != f.Device && want.Via.IsValid(): // host-gw, DirectRouting
		return []Step{f.nextHopStep(dir, k.Link, want.Via)}
	case f.Backend == "vxlan":
		return f.vxlanSteps(dir)
	}
	return nil
}

// vxlanSteps returns the steps about the neighbour entry and the FDB entry.
func (f *Facts) vxlanSteps(dir Direction) []Step {
	_, want, _ := f.wanted()
	gw := want.Via
	if !gw.IsValid() && f.Out.Value.Iface == f.Device {
		gw = f.Out.Value.Gateway
	}
	if !gw.IsValid() {
		return nil // the route says why
	}
	key := dataplane.NeighKey{Link: f.Device, IP: gw}
	wantMAC, wanted := f.Want.Value.Neighs[key]
	have, exists := f.Have.Value.Neighs[key]
	n := Step{Direction: dir, At: atNeighbor, Command: fmt.Sprintf("ip neigh show %s dev %s", gw, f.Device)}
	n.Object = neighborText(gw.String(), f.Device, host.Neighbor{Exists: exists, MAC: have, State: "PERMANENT"})
	put := dataplane.KindNeigh.Put(key, wantMAC).String()
	switch {
	case !f.Have.Is:
		n.Object = fmt.Sprintf("%s dev %s", gw, f.Device)
		n = n.unknownf("the neighbour table cannot be read: %v", f.Have.why())
	case !wanted && !exists:
		n = n.failf(f.start(), "the neighbour entry of %s is missing", gw)
	case !exists:
		n = n.failf(put, "the neighbour entry of %s is missing", gw)
	case !wanted:
		n = n.unknownf("the MAC of the peer's device is not known: %s", f.whyNoWant())
	case have != wantMAC:
		n = n.failf(put, "frames for %s are sent to %s, and the peer's lease has %s", gw, mac(have), mac(wantMAC))
	default:
		n = n.ok()
	}
	if !wanted {
		if wantMAC = have; !exists {
			return []Step{n}
		}
	}
	return []Step{n, f.fdbStep(dir, wantMAC)}
}

// fdbStep returns the step about where frames for a MAC are sent.
func (f *Facts) fdbStep(dir Direction, to dataplane.MAC) Step {
	s := Step{Direction: dir, At: atFDB, Command: fmt.Sprintf("bridge fdb show dev %s | grep -i %s", f.Device, mac(to))}
	peer := f.Far().Owner
	right, others := false, []string{}
	for e := range f.Have.Value.FDB {
		switch {
		case e.Link != f.Device || e.MAC != to:
		case e.Dst == peer.Value.PublicIP:
			right = true
		default:
			others = append(others, e.Dst.String())
		}
	}
	want := dataplane.FDB{Link: f.Device, MAC: to, Dst: peer.Value.PublicIP}
	put := dataplane.KindFDB.Put(want, struct{}{}).String()
	s.Object = "no entry of " + mac(to)
	if right {
		s.Object = want.String()
	} else if len(others) > 0 {
		s.Object = fmt.Sprintf("%s dst %s dev %s", mac(to), and(others), f.Device)
	}
	switch {
	case !f.Have.Is:
		return s.unknownf("the FDB cannot be read: %v", f.Have.why())
	case !right && len(others) == 0:
		if !peer.Value.Found {
			put = f.start()
		}
		return s.failf(put, "the FDB entry of %s is missing", mac(to))
	case !peer.Value.Found:
		return s.unknownf("the peer's public IP is not known: %s", f.whyNoWant())
	case len(others) > 0:
		return s.failf(put, "frames for %s are sent to %s, and the peer is %s", mac(to), and(others), peer.Value.PublicIP)
	}
	return s.ok()
}

// nextHopStep returns the step about a gateway on the link of an interface.
func (f *Facts) nextHopStep(dir Direction, iface string, via netip.Addr) Step {
	s := Step{Direction: dir, At: atNeighbor, Command: fmt.Sprintf("ip neigh show %s dev %s", via, shell.Word(iface))}
	s.Object = neighborText(via.String(), iface, f.NextHop.Value)
	switch n := f.NextHop.Value; {
	case !f.NextHop.Is:
		return s.unknownf("the neighbour table is not known: %v", f.NextHop.why())
	case n.Resolved():
		return s.ok()
	case !n.Exists:
		return s.unknownf("the kernel has not asked for %s on %s yet", via, iface)
	}
	return s.failf("", "%s does not answer ARP on %s: that host is off, or not on this link", via, iface)
}

// tunnelStep returns the step about the forwarding table of udp, which is inside flanneld.
func (f *Facts) tunnelStep(dir Direction) Step {
	o := f.Far().Owner.Value
	s := Step{Direction: dir, At: atTunnel, Command: "flanneld status --all", Object: "forwarding table of flanneld"}
	if o.Found {
		s.Object += fmt.Sprintf(": %s at %s", o.Subnets, netip.AddrPortFrom(o.PublicIP, f.Port))
	}
	switch e := f.Peer.Entry; {
	case f.Daemon.Down:
		return s.failf("systemctl start flanneld", "no flanneld runs, and it is flanneld that sends the packets")
	case f.Daemon.Stopped:
		return s.failf(f.start(), "flanneld is stopped by a signal, and it is flanneld that sends the packets")
	case !e.Is:
		return s.unknownf("flanneld cannot be asked: %v", e.why())
	case e.Value.State == status.OK:
		return s.ok()
	case e.Value.Reason != "":
		return s.failf(f.start(), "flanneld has no entry for the peer: %s", e.Value.Reason)
	default:
		return s.unknownf("flanneld does not know yet whether it has an entry for the peer")
	}
}

// uplinkStep returns the step about how packets to the peer's public IP leave.
func (f *Facts) uplinkStep(dir Direction) Step {
	to := f.Far().Owner.Value.PublicIP
	d := f.Outer.Value
	s := Step{Direction: dir, At: atUplink, Object: d.Text(to), Command: "ip route get " + to.String()}
	if !f.Outer.Is {
		s.Object = "packets to " + to.String()
		return s.unknownf("the kernel cannot be asked: %v", f.Outer.why())
	}
	i := f.UplinkState.Value
	hop := to
	if d.Gateway.IsValid() {
		hop = d.Gateway
	}
	switch {
	case d.Refused != "":
		return s.failf("", "packets to the peer's public IP %s are not sent: %s", to, d.Refused)
	case d.Local:
		return s.failf("", "the peer's public IP %s is an address of this host", to)
	case d.Iface == f.Device:
		return s.failf("flanneld doctor # finds the route that is missing", "packets to the peer's public IP %s are sent into the overlay itself", to)
	case !f.UplinkState.Is:
		return s.unknownf("the state of %s is not known: %v", d.Iface, f.UplinkState.why())
	case !i.Up:
		return s.failf("ip link set "+shell.Word(d.Iface)+" up", "%s is down", d.Iface)
	case !i.Running:
		return s.failf("", "%s has no carrier: connect its cable", d.Iface)
	case f.NextHop.Is && f.NextHop.Value.Exists && !f.NextHop.Value.Resolved():
		return s.failf("", "%s does not answer ARP on %s", hop, d.Iface)
	}
	return s.ok()
}
