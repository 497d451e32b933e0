package host

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"sort"
	"strings"
)

// Selectors are the user's rules for choosing the uplink. They are tried in the order of the
// fields. Without any of the first three, the interface with PublicIP is chosen, or else the one of
// the default route.
type Selectors struct {
	Ifaces   []string   // interface names or IPv4 addresses
	Regexes  []string   // RE2, unanchored, matched against addresses first, then names
	CanReach netip.Addr // the interface of the route to it
	PublicIP netip.Addr // address to publish; invalid for the uplink's own
}

// Uplink is the chosen interface and the source address of outer packets.
type Uplink struct {
	Iface string
	Addr  netip.Addr
	// Holder is the interface that has the address, if it is another one: the loopback interface,
	// if the default route has an address of it as its source.
	Holder string
	Reason string // for the log: the rule that selected it
}

// same reports whether two choices are equal apart from Reason.
func (u Uplink) same(o Uplink) bool {
	u.Reason = o.Reason
	return u == o
}

// Has reports whether the interface of an uplink is up and the address still exists.
func (inv Inventory) Has(u Uplink) bool {
	i, ok := inv.iface(u.Iface)
	return ok && i.Up && inv.hasAddr(u)
}

// hasAddr reports whether an interface still has the address of an uplink.
func (inv Inventory) hasAddr(u Uplink) bool {
	i, ok := inv.iface(cmp.Or(u.Holder, u.Iface))
	return ok && i.has(u.Addr)
}

func (i Iface) has(ip netip.Addr) bool {
	return slices.ContainsFunc(i.Addrs, func(a Addr) bool { return a.Prefix.Addr() == ip })
}

func (inv Inventory) iface(name string) (Iface, bool) {
	return find(inv.Ifaces, func(i Iface) bool { return i.Name == name })
}

// holder returns the interface that has an address.
func (inv Inventory) holder(ip netip.Addr) (Iface, error) {
	i, ok := find(inv.Ifaces, func(i Iface) bool { return i.has(ip) })
	if !ok {
		return Iface{}, fmt.Errorf("no interface has the address %s", ip)
	}
	return i, nil
}

// find returns the first of all for which is returns true.
func find[T any](all []T, is func(T) bool) (first T, ok bool) {
	if i := slices.IndexFunc(all, is); i >= 0 {
		return all[i], true
	}
	return first, false
}

// Reach queries the kernel for the interface and source address of the route to an address.
type Reach func(netip.Addr) (iface string, src netip.Addr, err error)

// errNoDefaultRoute is returned if there are no selectors and no default route.
var errNoDefaultRoute = errors.New("there is no default route")

// Choose returns the uplink. Interfaces with a carrier are preferred. Interfaces of the overlay are
// excluded, and so is an interface with an address in own, the subnets that this host has or had,
// unless it has a default route with a gateway outside them. Among equal interfaces, the first in
// prefer is chosen, or else the first in kernel order. The error has the reason why each selector
// failed.
func Choose(sel Selectors, inv Inventory, own []netip.Prefix, reach Reach, prefer ...string) (Uplink, error) {
	inv = inv.without("belongs to the overlay", func(i Iface) bool { return i.overlay(own) && !inv.leadsOut(i, own) })
	rank := func(iface string) int {
		if at := slices.Index(prefer, iface); at >= 0 {
			return at
		}
		return len(prefer)
	}
	sort.SliceStable(inv.Ifaces, func(i, j int) bool { return rank(inv.Ifaces[i].Name) < rank(inv.Ifaces[j].Name) })
	sort.SliceStable(inv.Routes, func(i, j int) bool { return rank(inv.Routes[i].Iface) < rank(inv.Routes[j].Iface) })
	running := inv.without("has no carrier", func(i Iface) bool { return !i.Up || !i.Running })
	if u, err := running.choose(sel, reach); err == nil {
		return u, nil
	}
	return inv.choose(sel, reach)
}

// overlayName matches the names of overlay devices, both ours and those of the original's
// other backends.
var overlayName = regexp.MustCompile(`^flannel(\.|-v6|-wg|[0-9])`)

// overlay reports whether an interface belongs to the overlay, as one of its devices or as a bridge
// of containers.
func (i Iface) overlay(own []netip.Prefix) bool {
	return overlayName.MatchString(i.Name) || slices.ContainsFunc(i.Addrs, func(a Addr) bool {
		return slices.ContainsFunc(own, func(s netip.Prefix) bool { return s.Contains(a.Prefix.Addr()) })
	})
}

// leadsOut reports whether an interface has a default route with a gateway outside own. Such an
// interface is an uplink even if its address is in own, because the subnet may be a part of the
// uplink's network.
func (inv Inventory) leadsOut(i Iface, own []netip.Prefix) bool {
	return !overlayName.MatchString(i.Name) && slices.ContainsFunc(inv.defaults(), func(r Route) bool {
		return r.Iface == i.Name && r.Gateway.IsValid() && !slices.ContainsFunc(own, func(s netip.Prefix) bool { return s.Contains(r.Gateway) })
	})
}

// without returns the inventory without the interfaces for which unfit returns true, and without
// their routes.
func (inv Inventory) without(why string, unfit func(Iface) bool) Inventory {
	fit := Inventory{excluded: map[string]string{}}
	for _, i := range inv.Ifaces {
		if unfit(i) {
			fit.excluded[i.Name] = why
		} else {
			fit.Ifaces = append(fit.Ifaces, i)
		}
	}
	for _, r := range inv.Routes {
		if r.Dst.Bits() == 0 && fit.excluded[r.Iface] == "" { // only default routes are needed
			fit.Routes = append(fit.Routes, r)
		}
	}
	return fit
}

func (inv Inventory) choose(sel Selectors, reach Reach) (Uplink, error) {
	type rule struct {
		name string
		find func() (Uplink, error)
	}
	var rules []rule
	for _, v := range sel.Ifaces {
		rules = append(rules, rule{"iface " + v, func() (Uplink, error) { return inv.named(v) }})
	}
	for _, v := range sel.Regexes {
		rules = append(rules, rule{"iface-regex " + v, func() (Uplink, error) { return inv.matching(v) }})
	}
	if ip := sel.CanReach; ip.IsValid() {
		rules = append(rules, rule{"iface-can-reach " + ip.String(), func() (Uplink, error) { return inv.reaching(ip, reach) }})
	}
	selected := len(rules) > 0
	if ip := sel.PublicIP; ip.IsValid() && !selected {
		rules = append(rules, rule{"public-ip " + ip.String(), func() (Uplink, error) { return inv.withAddr(ip) }})
	}
	if !selected {
		rules = append(rules, rule{"default route", inv.byDefault})
	}
	var failures []string
	var last error
	for _, r := range rules {
		u, err := r.find()
		if err == nil {
			u.Reason = r.name
			return u, nil
		}
		failures, last = append(failures, r.name+": "+err.Error()), err
	}
	if selected {
		last = errors.New("no interface fits: " + strings.Join(failures, "; "))
	}
	return Uplink{}, last
}

// named returns the interface with a name or an address.
func (inv Inventory) named(v string) (Uplink, error) {
	if ip, err := netip.ParseAddr(v); err == nil {
		return inv.withAddr(ip)
	}
	if i, ok := inv.iface(v); ok {
		return inv.addrOf(i)
	}
	if why := inv.excluded[v]; why != "" {
		return Uplink{}, fmt.Errorf("interface %s %s", v, why)
	}
	return Uplink{}, fmt.Errorf("there is no such interface; there are %s", inv.names())
}

// withAddr returns the interface that sends from an address.
func (inv Inventory) withAddr(ip netip.Addr) (Uplink, error) {
	if !ip.Is4() {
		return Uplink{}, fmt.Errorf("%s is not an IPv4 address", ip)
	}
	holder, err := inv.holder(ip)
	if err != nil {
		return Uplink{}, err
	}
	return inv.sender(holder, ip), nil
}

// sender returns the interface that sends from an address of holder: holder itself, or the
// interface of a default route that has the address as its source.
func (inv Inventory) sender(holder Iface, ip netip.Addr) Uplink {
	for _, r := range inv.defaults() {
		if i, ok := inv.iface(r.Iface); ok && r.Source == ip && !i.has(ip) {
			return Uplink{Iface: i.Name, Addr: ip, Holder: holder.Name}
		}
	}
	return Uplink{Iface: holder.Name, Addr: ip}
}

func (inv Inventory) matching(expr string) (Uplink, error) {
	re, err := regexp.Compile(expr)
	if err != nil {
		return Uplink{}, err
	}
	for _, i := range inv.Ifaces {
		if u, err := inv.addrOf(i); err == nil && re.MatchString(u.Addr.String()) {
			return u, nil
		}
		candidates, _ := i.candidates()
		for _, a := range candidates {
			if ip := a.Prefix.Addr(); re.MatchString(ip.String()) {
				return inv.sender(i, ip), nil
			}
		}
	}
	for _, i := range inv.Ifaces {
		if re.MatchString(i.Name) {
			if u, err := inv.addrOf(i); err == nil {
				return u, nil
			}
		}
	}
	return Uplink{}, fmt.Errorf("no address or name matches; there are %s", inv.names())
}

func (inv Inventory) reaching(dst netip.Addr, reach Reach) (Uplink, error) {
	name, src, err := reach(dst)
	if err != nil {
		return Uplink{}, err
	}
	i, ok := inv.iface(name)
	if !ok || !src.Is4() {
		return inv.named(name)
	}
	return inv.withSource(i, src)
}

// byDefault returns the interface of the default route with the lowest metric, or the first of
// several. Interfaces without an address are ignored.
func (inv Inventory) byDefault() (Uplink, error) {
	routes := inv.defaults()
	if len(routes) == 0 {
		return Uplink{}, fmt.Errorf("%w: choose an interface with -iface; there are %s", errNoDefaultRoute, inv.names())
	}
	var first error
	for _, r := range routes {
		i, ok := inv.iface(r.Iface)
		if !ok {
			continue
		}
		u, err := inv.viaRoute(r, i)
		if err == nil {
			return u, nil
		}
		first = cmp.Or(first, err)
	}
	return Uplink{}, cmp.Or(first, errors.New("the default route names no single interface: choose one with -iface"))
}

// defaults returns the IPv4 default routes, sorted by metric.
func (inv Inventory) defaults() []Route {
	var routes []Route
	for _, r := range inv.Routes {
		if r.Dst.Bits() == 0 && r.Dst.Addr().Is4() {
			routes = append(routes, r)
		}
	}
	slices.SortStableFunc(routes, func(a, b Route) int { return cmp.Compare(a.Metric, b.Metric) })
	return routes
}

// addrOf returns the address of an interface: the source of its default route, which is the host's
// own address if there are floating ones too, or else the best candidate.
func (inv Inventory) addrOf(i Iface) (Uplink, error) {
	if r, ok := find(inv.defaults(), func(r Route) bool { return r.Iface == i.Name }); ok {
		return inv.viaRoute(r, i)
	}
	c, err := i.candidates()
	if err != nil {
		return Uplink{}, err
	}
	return inv.sender(i, c[0].Prefix.Addr()), nil
}

// viaRoute returns an interface with the source address of a default route through it: the one in
// the route, else the one in the network of the gateway, else the first that is not secondary, as
// the kernel chooses (net/ipv4/devinet.c, inet_select_addr).
func (inv Inventory) viaRoute(r Route, i Iface) (Uplink, error) {
	if r.Source.IsValid() {
		if u, err := inv.withSource(i, r.Source); err == nil {
			return u, nil
		}
	}
	c, err := i.candidates()
	if err != nil {
		return Uplink{}, err
	}
	a, ok := find(c, func(a Addr) bool { return a.Prefix.Contains(r.Gateway) })
	if !ok {
		a, ok = find(i.Addrs, func(a Addr) bool { return a.usable() && !a.Secondary && !a.Prefix.Addr().IsLinkLocalUnicast() })
	}
	if !ok {
		a = c[0]
	}
	return Uplink{Iface: i.Name, Addr: a.Prefix.Addr()}, nil
}

// withSource returns an interface with a source address, which another interface may have.
func (inv Inventory) withSource(i Iface, src netip.Addr) (Uplink, error) {
	if i.has(src) {
		return Uplink{Iface: i.Name, Addr: src}, nil
	}
	holder, err := inv.holder(src)
	return Uplink{Iface: i.Name, Addr: src, Holder: holder.Name}, err
}

func (inv Inventory) names() string {
	names := make([]string, 0, len(inv.Ifaces))
	for _, i := range inv.Ifaces {
		names = append(names, i.Name)
	}
	return strings.Join(names, ", ")
}

// usable reports whether an address can be the source of packets to other hosts.
func (a Addr) usable() bool {
	ip := a.Prefix.Addr()
	return ip.Is4() && !a.Deprecated && (ip.IsGlobalUnicast() || ip.IsLinkLocalUnicast())
}

// candidates returns the usable IPv4 addresses, best first: global before link-local, the first of
// a network before others of it, addresses of a network before floating ones (/32), permanent
// before dynamic, else in kernel order. It fails if there are none.
func (i Iface) candidates() ([]Addr, error) {
	rank := func(a Addr) int {
		n := 0
		for worth, bad := range []bool{a.Dynamic, a.Prefix.IsSingleIP(), a.Secondary, a.Prefix.Addr().IsLinkLocalUnicast()} {
			if bad {
				n += 1 << worth
			}
		}
		return n
	}
	var good []Addr
	for _, a := range i.Addrs {
		if a.usable() {
			good = append(good, a)
		}
	}
	if len(good) == 0 {
		return nil, fmt.Errorf("interface %s has no usable IPv4 address", i.Name)
	}
	sort.SliceStable(good, func(i, j int) bool { return rank(good[i]) < rank(good[j]) })
	return good, nil
}
