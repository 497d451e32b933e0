package host

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// Selectors say how the user wants the uplink to be chosen. They are tried in
// the order of the fields; with none of the first three, the interface that has
// PublicIP and then the default route decide.
type Selectors struct {
	Ifaces   []string   // names or IPv4 addresses
	Regexes  []string   // RE2, unanchored, on addresses first, then on names
	CanReach netip.Addr // the interface of the route to it
	PublicIP netip.Addr // address to publish; invalid: the uplink's own
}

// Uplink is the chosen interface and the address on it.
type Uplink struct {
	Iface string
	Addr  netip.Addr
	Why   string // for the log: what decided
}

// Has tells whether an uplink still is what it was: an interface that is up and
// has the address.
func (inv Inventory) Has(u Uplink) bool {
	return slices.ContainsFunc(inv.Ifaces, func(i Iface) bool {
		return i.Name == u.Iface && i.Up && slices.ContainsFunc(i.Addrs, func(a Addr) bool { return a.Prefix.Addr() == u.Addr })
	})
}

// Reach asks the kernel which interface and source address lead to an address.
type Reach func(netip.Addr) (iface string, src netip.Addr, err error)

// Choose finds the uplink. The error says what each selector failed on.
func Choose(sel Selectors, inv Inventory, reach Reach) (Uplink, error) {
	var failures []string
	try := func(what string, find func() (Uplink, error)) (Uplink, bool) {
		u, err := find()
		if err != nil {
			failures = append(failures, what+": "+err.Error())
			return Uplink{}, false
		}
		u.Why = what
		return u, true
	}
	for _, v := range sel.Ifaces {
		if u, ok := try("iface "+v, func() (Uplink, error) { return inv.named(v) }); ok {
			return u, nil
		}
	}
	for _, v := range sel.Regexes {
		if u, ok := try("iface-regex "+v, func() (Uplink, error) { return inv.matching(v) }); ok {
			return u, nil
		}
	}
	if sel.CanReach.IsValid() {
		if u, ok := try("iface-can-reach "+sel.CanReach.String(), func() (Uplink, error) { return inv.reaching(sel.CanReach, reach) }); ok {
			return u, nil
		}
	}
	if len(failures) > 0 {
		return Uplink{}, errors.New("no interface fits: " + strings.Join(failures, "; "))
	}
	if sel.PublicIP.IsValid() {
		if u, ok := try("public-ip "+sel.PublicIP.String(), func() (Uplink, error) { return inv.holding(sel.PublicIP) }); ok {
			return u, nil
		}
	}
	u, err := inv.byDefault()
	u.Why = "default route"
	return u, err
}

// named finds an interface by its name or by an address it has.
func (inv Inventory) named(v string) (Uplink, error) {
	if ip, err := netip.ParseAddr(v); err == nil {
		return inv.holding(ip)
	}
	for _, i := range inv.Ifaces {
		if i.Name == v {
			return i.uplink()
		}
	}
	return Uplink{}, fmt.Errorf("there is no such interface; there are %s", inv.names())
}

func (inv Inventory) holding(ip netip.Addr) (Uplink, error) {
	if !ip.Is4() {
		return Uplink{}, fmt.Errorf("%s is not an IPv4 address", ip)
	}
	for _, i := range inv.Ifaces {
		for _, a := range i.Addrs {
			if a.Prefix.Addr() == ip {
				return Uplink{Iface: i.Name, Addr: ip}, nil
			}
		}
	}
	return Uplink{}, fmt.Errorf("no interface has the address %s", ip)
}

func (inv Inventory) matching(expr string) (Uplink, error) {
	re, err := regexp.Compile(expr)
	if err != nil {
		return Uplink{}, err
	}
	for _, i := range inv.Ifaces {
		for _, a := range i.candidates() {
			if re.MatchString(a.String()) {
				return Uplink{Iface: i.Name, Addr: a}, nil
			}
		}
	}
	for _, i := range inv.Ifaces {
		if re.MatchString(i.Name) {
			if u, err := i.uplink(); err == nil {
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
	if src.Is4() {
		return Uplink{Iface: name, Addr: src}, nil
	}
	return inv.named(name)
}

// byDefault takes the interface of the default route with the lowest metric,
// the first of equals.
func (inv Inventory) byDefault() (Uplink, error) {
	var best *Route
	found := false
	for i, r := range inv.Routes {
		if r.Dst.Bits() != 0 || !r.Dst.Addr().Is4() {
			continue
		}
		found = true
		if r.Iface != "" && (best == nil || r.Metric < best.Metric) {
			best = &inv.Routes[i]
		}
	}
	switch {
	case best != nil:
		return inv.named(best.Iface)
	case found:
		return Uplink{}, errors.New("the default route names no single interface: choose one with -iface")
	}
	return Uplink{}, fmt.Errorf("there is no default route: choose an interface with -iface; there are %s", inv.names())
}

func (inv Inventory) names() string {
	names := make([]string, 0, len(inv.Ifaces))
	for _, i := range inv.Ifaces {
		names = append(names, i.Name)
	}
	return strings.Join(names, ", ")
}

func (i Iface) uplink() (Uplink, error) {
	c := i.candidates()
	if len(c) == 0 {
		return Uplink{}, fmt.Errorf("interface %s has no usable IPv4 address", i.Name)
	}
	return Uplink{Iface: i.Name, Addr: c[0]}, nil
}

// candidates lists the usable IPv4 addresses, best first: global before
// link-local, permanent before leased, else in kernel order.
func (i Iface) candidates() []netip.Addr {
	rank := func(a Addr) int {
		n := 0
		if a.Prefix.Addr().IsLinkLocalUnicast() {
			n += 2
		}
		if a.Dynamic {
			n++
		}
		return n
	}
	var good []Addr
	for _, a := range i.Addrs {
		ip := a.Prefix.Addr()
		if ip.Is4() && !a.Deprecated && (ip.IsGlobalUnicast() || ip.IsLinkLocalUnicast()) {
			good = append(good, a)
		}
	}
	slices.SortStableFunc(good, func(a, b Addr) int { return rank(a) - rank(b) })
	ips := make([]netip.Addr, len(good))
	for n, a := range good {
		ips[n] = a.Prefix.Addr()
	}
	return ips
}

// Facts gives what is now true of the chosen uplink, for an overlay with the
// given network. It fails when the uplink is gone or has lost its address or its
// MTU.
func (u Uplink) Facts(inv Inventory, publicIP netip.Addr, network netip.Prefix) (Facts, error) {
	if !publicIP.IsValid() {
		publicIP = u.Addr
	}
	for _, i := range inv.Ifaces {
		if i.Name != u.Iface {
			continue
		}
		if i.MTU <= 0 {
			return Facts{}, fmt.Errorf("interface %s has no MTU", u.Iface)
		}
		for _, a := range i.Addrs {
			if a.Prefix.Addr() == u.Addr {
				f := Facts{Uplink: u.Iface, MTU: i.MTU, Addr: u.Addr, PublicIP: publicIP, IPv6: inv.IPv6, MACs: map[string][6]byte{}}
				for _, i := range inv.Ifaces {
					f.MACs[i.Name] = i.MAC
				}
				for _, r := range inv.Routes {
					if u.underlay(r, network) {
						f.Underlay = append(f.Underlay, r)
					}
				}
				return f, nil
			}
		}
		return Facts{}, fmt.Errorf("interface %s no longer has the address %s", u.Iface, u.Addr)
	}
	return Facts{}, fmt.Errorf("interface %s is gone", u.Iface)
}

// underlay tells whether a route leads to where peers may be: any outside the
// network, for inside it the routes are the overlay's own, and the uplink's own
// link, wherever it lies. Of the uplink's family, that is: every link that comes, ours
// among them, brings an IPv6 route of its own.
func (u Uplink) underlay(r Route, network netip.Prefix) bool {
	if r.Dst.Addr().Is4() != u.Addr.Is4() {
		return false
	}
	inside := r.Dst.Bits() >= network.Bits() && network.Contains(r.Dst.Addr())
	return !inside || r.Iface == u.Iface && !r.Gateway.IsValid()
}
