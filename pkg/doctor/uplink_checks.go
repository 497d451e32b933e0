package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"flanneld/pkg/host"
	"flanneld/pkg/lease"
	"flanneld/pkg/shell"
	"flanneld/pkg/status"
)

// uplinkChecks returns the checks of the interface that carries the overlay.
func uplinkChecks() []Check {
	return []Check{
		{ID: "FL-IFACE-NAT", Rank: rankLease - 5, Run: checkNATInterface},
		{ID: "FL-IFACE-CHOICE", Rank: rankLease - 4, Run: checkInterfaceChoice},
		{ID: "FL-IFACE-GONE", Rank: rankStore - 1, Run: checkInterfaceThere, Explains: []string{"uplink", "lease/address", status.StoreDown}},
	}
}

// uplink is the interface that carries the overlay, as far as it is known.
type uplink struct {
	iface string
	addr  netip.Addr // invalid if it is not known
}

// uplink returns the daemon's uplink, or the one that it would choose.
func (in *Inputs) uplink(ctx context.Context) (u uplink, inv host.Inventory, err error) {
	if inv, err = in.Inventory.Get(ctx); err != nil {
		return u, inv, fmt.Errorf("the interfaces cannot be read: %w", err)
	}
	if d, err := in.Status.Get(ctx); err == nil && d.Uplink.Interface != "" {
		return uplink{d.Uplink.Interface, d.Uplink.Address}, inv, nil
	}
	sel := in.Options.Uplink
	sel.CanReach = netip.Addr{} // needs the kernel
	env, _ := in.Env.Get(ctx)
	var own []netip.Prefix
	if env.Subnet.IsValid() {
		own = append(own, env.Subnet)
	}
	if in.Options.Uplink.CanReach.IsValid() && len(sel.Ifaces)+len(sel.Regexes) == 0 {
		return u, inv, fmt.Errorf("the interface is chosen by -iface-can-reach")
	}
	chosen, err := host.Choose(sel, inv, own, nil)
	return uplink{chosen.Iface, chosen.Addr}, inv, err
}

// natGateway is the gateway that VirtualBox and QEMU give to each of their virtual machines, and
// natAddress the address: each one's network is its own, and no other machine reaches it.
func nat() (addr, gateway netip.Addr) {
	return netip.AddrFrom4([4]byte{10, 0, 2, 15}), netip.AddrFrom4([4]byte{10, 0, 2, 2})
}

// checkNATInterface fails if the uplink is the NAT interface of a virtual machine.
func checkNATInterface(ctx context.Context, in *Inputs) Result {
	u, inv, err := in.uplink(ctx)
	if err != nil {
		return unknownf("%v", err)
	}
	natAddr, natGateway := nat()
	others := others(inv, u.iface)
	remedy := "give the host an interface to the other hosts, and set -iface to it"
	if len(others) > 0 {
		remedy = "set -iface=" + others[0].Name + " on all hosts and restart flanneld"
	}
	behind := slices.ContainsFunc(inv.Routes, func(r host.Route) bool { return r.Iface == u.iface && r.Gateway == natGateway })
	publishes := !in.Options.Uplink.PublicIP.IsValid()
	if u.addr == natAddr && behind && publishes {
		return failf(remedy, "flanneld uses %s with %s, the NAT interface that every virtual machine has with this same address", u.iface, u.addr)
	}
	return okf("flanneld uses %s with %s", u.iface, u.addr)
}

// others returns the interfaces besides one that could carry the overlay, those of no containers
// first.
func others(inv host.Inventory, than string) (all []host.Iface) {
	for _, i := range inv.Ifaces {
		usable := slices.ContainsFunc(i.Addrs, func(a host.Addr) bool { return a.Prefix.Addr().IsGlobalUnicast() && a.Prefix.Bits() < 32 })
		inner := strings.HasPrefix(i.Name, "docker") || strings.HasPrefix(i.Name, "br-") || strings.HasPrefix(i.Name, "flannel") || strings.HasPrefix(i.Name, "veth") || strings.HasPrefix(i.Name, "cni")
		if i.Name != than && i.Up && usable && !inner {
			all = append(all, i)
		}
	}
	return all
}

// checkInterfaceChoice fails if the other hosts are on the link of another interface than the one
// that flanneld uses, and cannot be on the link of this one.
func checkInterfaceChoice(ctx context.Context, in *Inputs) Result {
	u, inv, err := in.uplink(ctx)
	if err != nil {
		return unknownf("%v", err)
	}
	s, err := in.leases(ctx)
	if err != nil {
		return unknownf("%v", err)
	}
	o, _ := in.own(ctx)
	if in.Options.Uplink.PublicIP.IsValid() {
		return okf("flanneld uses %s, and publishes %s as it was told", u.iface, in.Options.Uplink.PublicIP)
	}
	peers := slices.DeleteFunc(slices.Clone(s.Leases), func(l lease.Lease) bool { return l.Subnets.V4() == o.subnet })
	if len(peers) == 0 {
		return unknownf("no other host has a lease to compare %s with", u.iface)
	}
	if p, err := in.Paths.Get(ctx); err == nil {
		if n, _ := p.these(func(p Path) bool { return p.Overlay == Answers }); n > 0 {
			return okf("flanneld uses %s (%s), and %d hosts answer", u.iface, u.addr, n)
		}
	}
	here := onLinkOf(inv, u.iface, peers)
	for _, i := range others(inv, u.iface) {
		if there := onLinkOf(inv, i.Name, peers); here == 0 && there > 0 {
			return failf("set -iface="+shell.Word(i.Name)+" and restart flanneld", "flanneld uses %s (%s), but %d of %d hosts are on the link of %s (%s)",
				u.iface, u.addr, there, len(peers), i.Name, i.Addrs[0].Prefix)
		}
	}
	if n := defaultRoutes(inv); n > 1 {
		return okf("flanneld uses %s (%s); there are %d default routes with the same metric, so set -iface if that is wrong", u.iface, u.addr, n)
	}
	return okf("flanneld uses %s (%s)", u.iface, u.addr)
}

// onLinkOf counts the hosts that are on the link of an interface.
func onLinkOf(inv host.Inventory, iface string, peers []lease.Lease) (n int) {
	for _, i := range inv.Ifaces {
		if i.Name != iface {
			continue
		}
		for _, l := range peers {
			if slices.ContainsFunc(i.Addrs, func(a host.Addr) bool { return a.Prefix.Contains(l.PublicIP) }) {
				n++
			}
		}
	}
	return n
}

// defaultRoutes returns how many interfaces have a default route with the lowest metric.
func defaultRoutes(inv host.Inventory) int {
	best, ifaces := uint32(0), map[string]bool{}
	for _, r := range inv.Routes {
		switch {
		case r.Dst.Bits() != 0 || !r.Dst.Addr().Is4():
		case len(ifaces) == 0 || r.Metric < best:
			best, ifaces = r.Metric, map[string]bool{r.Iface: true}
		case r.Metric == best:
			ifaces[r.Iface] = true
		}
	}
	return len(ifaces)
}

// checkInterfaceThere fails if the uplink is gone, down or has lost its address.
func checkInterfaceThere(ctx context.Context, in *Inputs) Result {
	d, err := in.Status.Get(ctx)
	if err != nil {
		return unknownf("the daemon cannot be asked which interface it uses: %v", err)
	}
	inv, err := in.Inventory.Get(ctx)
	if err != nil {
		return unknownf("the interfaces cannot be read: %v", err)
	}
	name, addr := d.Uplink.Interface, d.Uplink.Address
	at := slices.IndexFunc(inv.Ifaces, func(i host.Iface) bool { return i.Name == name })
	switch {
	case name == "":
		return unknownf("the daemon has not chosen an interface yet")
	case at < 0:
		return failf("bring "+name+" up with its address, or set -iface to another one", "the interface %s that flanneld uses is gone or has no address", name)
	case !inv.Ifaces[at].Up:
		return failf("ip link set "+shell.Word(name)+" up", "the interface %s that flanneld uses is down", name)
	case !inv.Ifaces[at].Running:
		return failf("connect the cable of "+name, "the interface %s that flanneld uses has no carrier", name)
	case addr.IsValid() && !inv.HasAddr(addr):
		return failf(fmt.Sprintf("ip addr add %s/<length> dev %s, or restart flanneld to use another address", addr, shell.Word(name)), "no interface has the address %s any more that flanneld uses on %s", addr, name)
	}
	return okf("%s is up and has the address %s", name, addr)
}
