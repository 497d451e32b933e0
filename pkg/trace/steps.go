package trace

import (
	"fmt"
	"slices"
	"strings"

	"flanneld/pkg/host"
	"flanneld/pkg/shell"
)

// ownerStep returns the step about the lease of a subnet that packets are sent to.
func (f *Facts) ownerStep(dir Direction, side Side) Step {
	o := side.Owner.Value
	s := Step{Direction: dir, At: atLease, Command: o.Command, Object: "no lease with " + side.Addr.String()}
	if f.Network.IsValid() && !f.Network.Contains(side.Addr) {
		return s.failf("", "%s is not in the network %s", side.Addr, f.Network)
	}
	switch {
	case !side.Owner.Is:
		s.Object = "lease with " + side.Addr.String()
		return s.unknownf("the leases are not known: %v", side.Owner.why())
	case !o.Found && o.Damaged != nil:
		return s.failf("", "the lease with %s cannot be used: %v; a daemon that runs there writes it again when it is deleted", side.Addr, o.Damaged)
	case !o.Found && side.Here && f.Subnet.IsValid():
		remedy := "systemctl restart flanneld"
		if f.Daemon.Down {
			remedy = "systemctl start flanneld"
		}
		return s.failf(remedy, "this host's lease of %s is missing, so other hosts do not send to it", f.Subnet)
	case !o.Found:
		return s.failf("", "no host has a lease of a subnet with %s; start flanneld on the host of that container", side.Addr)
	}
	s.Object = fmt.Sprintf("%s of %s", o.Subnets, o.PublicIP)
	if o.BackendType != "" {
		s.Object += ", " + backendName(o.BackendType)
	}
	switch {
	case o.Leaving:
		return s.failf("", "the host %s has given up its lease", o.PublicIP)
	case side.Here && f.PublicIP.IsValid() && o.PublicIP != f.PublicIP:
		return s.failf("systemctl restart flanneld docker # leases another subnet", "the lease of this host's subnet names another host, %s instead of %s", o.PublicIP, f.PublicIP)
	case !side.Here && f.Skipped != "":
		return s.failf("", "this host leaves the peer out: %s", f.Skipped)
	}
	return s.ok()
}

// backendName returns the backend's type in a lease, which may be anything, as a word of limited
// length.
func backendName(backendType string) string {
	if len(backendType) > 32 {
		return "unknown backend"
	}
	return backendType
}

// bridgeStep returns the step about the way from this host to one of its containers. q is the packet
// that the decision is about.
func (f *Facts) bridgeStep(dir Direction, side Side, d Known[host.Decision], q host.Query) Step {
	s := Step{Direction: dir, At: atBridge, Object: d.Value.Text(side.Addr), Command: "ip route get " + q.String()}
	remedy := "systemctl restart docker"
	if f.Docker && f.Gateway.IsValid() && f.Subnet.IsValid() {
		remedy = fmt.Sprintf("ip addr add %s/%d dev docker0", f.Gateway, f.Subnet.Bits())
	}
	if !d.Is {
		s.Object = "packets to " + side.Addr.String()
		return s.unknownf("the kernel cannot be asked: %v", d.why())
	}
	// A packet that arrives is refused for other reasons, too.
	lost := side.Delivery.Is && !f.delivers(side.Delivery.Value)
	switch v := d.Value; {
	case v.Local:
		return s.failf("", "%s is an address of this host itself (%s), and not of a container", side.Addr, v.Iface)
	case v.Refused != "" && (lost || q.In == ""):
		return s.failf(remedy, "no interface has an address of this host's subnet %s: %s", f.Subnet, v.Refused)
	case v.Refused != "":
		return s.failf("", "packets from %s that arrive by %s are dropped: %s", q.Src, q.In, v.Refused)
	case v.Table != 0:
		return s.failf(fmt.Sprintf("ip rule add to %s lookup main priority 0", f.Network), "a rule selects the routing table %d for packets to %s", v.Table, side.Addr)
	case !f.delivers(v):
		return s.failf(remedy, "no interface has an address of this host's subnet %s: packets to %s leave by %s", f.Subnet, side.Addr, v.Iface)
	}
	return s.ok()
}

// delivers reports whether a decision leads to containers of this host.
func (f *Facts) delivers(d host.Decision) bool {
	return d.Refused == "" && !d.Local && d.Iface != "" && d.Iface != f.Device && d.Iface != f.Uplink && !d.Gateway.IsValid()
}

// Bridge returns the device of a container of this host, or "".
func (f *Facts) Bridge(side Side) string {
	if side.Delivery.Is && f.delivers(side.Delivery.Value) {
		return side.Delivery.Value.Iface
	}
	return ""
}

// containerStep returns the step about a container of this host, if its bridge is known.
func (f *Facts) containerStep(dir Direction, side Side) []Step {
	bridge := f.Bridge(side)
	if bridge == "" {
		return nil
	}
	s := Step{Direction: dir, At: atContainer, Command: fmt.Sprintf("ip neigh show %s dev %s", side.Addr, shell.Word(bridge))}
	s.Object = neighborText(side.Addr.String(), bridge, side.Neighbor.Value)
	switch n := side.Neighbor.Value; {
	case !side.Neighbor.Is:
		return []Step{s.unknownf("the neighbour table is not known: %v", side.Neighbor.why())}
	case n.Resolved():
		return []Step{s.ok()}
	case !n.Exists:
		return []Step{s.unknownf("the kernel has not asked for %s on %s yet", side.Addr, bridge)}
	}
	return []Step{s.failf("", "no container answers ARP for %s on %s", side.Addr, bridge)}
}

// neighborText returns an entry in the form of ip(8).
func neighborText(ip, device string, n host.Neighbor) string {
	if !n.Exists {
		return fmt.Sprintf("no entry of %s dev %s", ip, device)
	}
	text := ip + " dev " + device
	if n.MAC != [6]byte{} {
		text += " lladdr " + mac(n.MAC)
	}
	return strings.TrimSpace(text + " " + n.State)
}

// forwardingStep returns the step about whether a device forwards.
func forwardingStep(dir Direction, device string, on Known[bool]) Step {
	sysctl := "net/ipv4/conf/" + device + "/forwarding" // with slashes, because names may contain dots
	s := Step{Direction: dir, At: atForwarding, Object: sysctl + " = 1", Command: "sysctl " + sysctl}
	switch {
	case !on.Is:
		s.Object = sysctl
		return s.unknownf("it cannot be read: %v", on.why())
	case !on.Value:
		s.Object = sysctl + " = 0"
		return s.failf("sysctl -w net.ipv4.ip_forward=1", "%s does not forward packets", device)
	}
	return s.ok()
}

// rulesStep returns the step about packet filter rules. way is what the packets are.
func (f *Facts) rulesStep(dir Direction, way string, rules Known[[]Filtered]) Step {
	s := Step{Direction: dir, At: atRules, Command: f.ShowRules}
	var names []string
	for _, r := range rules.Value {
		names = append(names, r.What)
	}
	s.Object = way + ": " + strings.Join(names, ", ")
	worst := func(fate Fate) (Filtered, bool) {
		at := slices.IndexFunc(rules.Value, func(r Filtered) bool { return r.Fate == fate })
		if at < 0 {
			return Filtered{}, false
		}
		return rules.Value[at], true
	}
	if r, is := worst(Dropped); is {
		s.Command, s.Object = r.Command, way+": "+r.Rule
		return s.failf(r.Remedy, "%s are dropped by %s", r.What, r.Rule)
	}
	if r, is := worst(Translated); is {
		s.Command, s.Object = r.Command, way+": "+r.Rule
		return s.failf(r.Remedy, "%s get another source address from %s", r.What, r.Rule)
	}
	if !rules.Is {
		return s.unknownf("not all rules can be read: %v", rules.why())
	}
	if r, is := worst(Unclear); is {
		s.Command, s.Object = r.Command, way+": "+r.Rule
		return s.unknownf("whether %s pass depends on %s, which cannot be evaluated here", r.What, r.Rule)
	}
	s.Object += " pass"
	return s.ok()
}

// inside returns the steps between two containers of this host, of which only the bridge and the
// rules are on the way.
func (f *Facts) inside(dir Direction) []Step {
	from, to, decided, forwards, rules := f.Src, f.Dst, f.Out, f.OutForwards, f.OutRules
	if dir == Reply {
		from, to, decided, forwards, rules = f.Dst, f.Src, f.In, f.InForwards, f.InRules
	}
	steps := []Step{f.bridgeStep(dir, from, from.Delivery, host.Query{Dst: from.Addr})}
	steps = append(steps, f.containerStep(dir, from)...)
	a, b := f.Bridge(from), f.Bridge(to)
	if a != "" && a != b {
		steps = append(steps, forwardingStep(dir, a, forwards))
		steps = append(steps, f.bridgeStep(dir, to, decided, host.Query{Dst: to.Addr, Src: from.Addr, In: a}))
	} else {
		steps = append(steps, f.bridgeStep(dir, to, to.Delivery, host.Query{Dst: to.Addr}))
	}
	if a != "" && b != "" {
		steps = append(steps, f.rulesStep(dir, a+" to "+b, rules))
	}
	return append(steps, f.containerStep(dir, to)...)
}
