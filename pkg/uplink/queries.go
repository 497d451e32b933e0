package uplink

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"flanneld/pkg/backend"
	"flanneld/pkg/host"
	"flanneld/pkg/kernel"
	"flanneld/pkg/needs"
	"flanneld/pkg/probe"
)

// The methods in this file query the kernel and change nothing. They may be called from any
// goroutine.

// Inventory reads the candidates for the uplink, with the links whose names matter: the selected
// ones, the present uplink, and the overlay's device. If routes is set, it also reads the routes to
// peers and to addresses that this host needs, which may take a while if a routing daemon has added
// many.
func (w *Watcher) Inventory(routes bool) (host.Inventory, error) {
	names := slices.Clone(w.Selectors.Ifaces)
	if to := w.Selectors.CanReach; to.IsValid() {
		if iface, _, err := w.Kernel.RouteTo(to); err == nil { // the choice reports the error
			names = append(names, iface)
		}
	}
	u, in := w.Uplink(), w.now()
	names = append(names, u.Iface, u.Holder, in.device)
	wanted := kernel.Wanted{
		Names:  slices.DeleteFunc(names, func(name string) bool { return name == "" }),
		Routes: routes, Network: in.network,
	}
	if routes {
		wanted.Targets = needs.Addrs(append(w.Needs(), needs.NameServers()...))
	}
	return w.Kernel.Inventory(wanted)
}

// Needs returns the addresses that this host needs, inside the network or not.
func (w *Watcher) Needs() []host.Need {
	return append(w.now().etcd(), host.Need{Addr: w.PublicIP(), What: "this host's public IP"})
}

// CheckNetwork returns an error if the routes of a network would hide addresses that this host
// needs.
func (w *Watcher) CheckNetwork(n backend.Network) error {
	if !n.RoutesToAll() {
		return nil
	}
	inv, err := w.Inventory(true)
	if err != nil {
		return fmt.Errorf("failed to check whether the network conflicts with addresses this host needs: %w", err)
	}
	f, err := w.Uplink().Facts(inv, w.PublicIP(), n.V4.Network)
	if err != nil {
		return nil // without facts there are no conflicts
	}
	f.Needs, f.Leased = inv.Needs(n.V4.Network, w.Needs()), n.V4.Cover()
	if err := backend.Check(n.Backend, f); err != nil {
		return fmt.Errorf("network config: SubnetMin, SubnetMax: %s, %s: must leave out addresses that the hosts need: %w", n.V4.Min, n.V4.Max, err)
	}
	return nil
}

// Needed returns a description of an address in a subnet that this host needs and reaches without
// the overlay, or "" if there is none. It is a subnet.Options.Needed.
func (w *Watcher) Needed(subnet netip.Prefix) string {
	contains := func(n host.Need) bool { return subnet.Contains(n.Addr) }
	in, wanted := w.now(), w.Needs()
	if !slices.ContainsFunc(in.atStart, contains) && !slices.ContainsFunc(wanted, contains) {
		return "" // the common case, without a query of the kernel
	}
	inv, err := w.Inventory(true)
	if err != nil {
		return "" // refresh reports the error
	}
	for _, n := range inv.Needs(in.network, wanted) {
		if n.DivertedBy(subnet) {
			return fmt.Sprintf("%s is %s", n.Addr, n.What)
		}
	}
	return ""
}

// Avoid returns prefixes that a new subnet must not overlap: networks that this host reaches in
// another way, its own addresses, and addresses that it needs. It is a subnet.Options.Avoid.
func (w *Watcher) Avoid() ([]netip.Prefix, error) {
	in := w.now()
	s, err := w.Kernel.Surroundings(func(dst netip.Prefix) bool { return slices.ContainsFunc(in.leased, dst.Overlaps) }, nil)
	if err != nil {
		return nil, err
	}
	avoid := s.Avoid(in.network)
	for _, n := range slices.Concat(w.Needs(), in.atStart, needs.NameServers()) {
		avoid = append(avoid, netip.PrefixFrom(n.Addr, n.Addr.BitLen()))
	}
	return avoid, nil
}

// Probe returns evidence that another host has an address, or why that could not be determined; it
// is empty if there is no reply. It is a subnet.Options.Probe.
func (w *Watcher) Probe(ctx context.Context, addr netip.Addr) string {
	if !addr.IsValid() || addr.IsUnspecified() {
		return ""
	}
	inv, err := w.Inventory(true)
	switch {
	case inv.HasAddr(addr):
		return ""
	case err != nil:
		return notProbed(addr, err)
	}
	return Replies(ctx, w.Kernel, inv, addr)
}

// Replies returns evidence that a host with an address replies until ctx ends, or why that could not
// be determined; it is empty if there is no reply. inv must have the route to the address.
func Replies(ctx context.Context, k probe.Link, inv host.Inventory, addr netip.Addr) string {
	iface, _ := host.OnLink(inv.Routes, addr)
	answered, err := probe.Probe(ctx, addr, iface, k)
	switch {
	case err != nil:
		return notProbed(addr, err)
	case answered != "":
		return fmt.Sprintf("%s answers %s", addr, answered)
	}
	return ""
}

func notProbed(addr netip.Addr, err error) string {
	return fmt.Sprintf("failed to check whether %s is in use: %s", addr, strings.ReplaceAll(err.Error(), "\n", "; "))
}
