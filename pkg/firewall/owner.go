package firewall

import (
	"net/netip"
	"slices"
)

// Owner identifies the rules of one daemon in chains that the daemons of all networks of a host
// share, because our chains have fixed names.
//
// A rule belongs to a network if it names the network or a part of it and no prefix outside it. The
// networks of a host do not overlap, so no rule belongs to two. A rule that names no network is
// either shared (see [Rule.Shared]) or has no owner.
type Owner struct {
	// Network is the network that is served, or whose rules are to be removed.
	Network netip.Prefix
	// Overlays are the present and previous overlays of this host, by its own records. Rules of
	// older releases are recognised by them. Of a previous network, only rules that name the whole
	// network are this daemon's, because a part of it may belong to another network now.
	Overlays []Overlay
}

// Owns reports whether the rule belongs to the owner, regardless of its verdict.
func (o Owner) Owns(r Rule) bool {
	named := r.networks()
	if len(named) == 0 {
		return false
	}
	if within(o.Network, named) {
		return true
	}
	return slices.ContainsFunc(o.Overlays, func(v Overlay) bool {
		return slices.Contains(named, v.Network) && within(v.Network, named)
	})
}

// Shared reports whether a rule names no network. A wanted rule of this kind is the same for all
// networks: it is the head of the chain once, and is removed with the last network.
func (r Rule) Shared() bool { return len(r.networks()) == 0 }

// networks returns the prefixes of networks that a rule names.
func (r Rule) networks() (named []netip.Prefix) {
	for _, m := range []Match{r.Src, r.Dst} {
		if m.Prefix.IsValid() && m.Prefix != multicast(m.Prefix) {
			named = append(named, m.Prefix.Masked())
		}
	}
	return named
}

// within reports whether the network contains all prefixes.
func within(network netip.Prefix, prefixes []netip.Prefix) bool {
	return network.IsValid() && !slices.ContainsFunc(prefixes, func(p netip.Prefix) bool {
		return p.Bits() < network.Bits() || !network.Contains(p.Addr())
	})
}
