package firewall

import (
	"net/netip"
	"slices"
)

// Owner says which rules are one daemon's where several keep theirs: our chains
// have fixed names, so that the daemons of all networks of a host share them.
//
// A rule is a network's if it names the network or a part of it, and nothing
// outside it. The networks of a host do not overlap, so that no rule is two
// networks'. A rule that names no network is shared (see [Rule.Shared]) or nobody's.
type Owner struct {
	// Network is the one that is served, or whose rules are to be removed.
	Network netip.Prefix
	// Overlays are those that this host has or had, by what it noted itself: the
	// rules of older releases are known by them. Of a Network that is not the
	// present one only rules that name the whole of it are this daemon's, because
	// another network may be a part of it by now.
	Overlays []Overlay
}

// Owns reports whether the rule is the owner's. The verdict does not matter.
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

// Shared reports whether a rule names no network. Such a rule of a wanted chain is
// the same for all networks: it stands once, at the head of the chain, and goes with the
// last network.
func (r Rule) Shared() bool { return len(r.networks()) == 0 }

// networks are the prefixes of networks that a rule names.
func (r Rule) networks() (named []netip.Prefix) {
	for _, m := range []Match{r.Src, r.Dst} {
		if m.Prefix.IsValid() && m.Prefix != multicast(m.Prefix) {
			named = append(named, m.Prefix.Masked())
		}
	}
	return named
}

// within reports whether all prefixes are a network or parts of it.
func within(network netip.Prefix, prefixes []netip.Prefix) bool {
	return network.IsValid() && !slices.ContainsFunc(prefixes, func(p netip.Prefix) bool {
		return p.Bits() < network.Bits() || !network.Contains(p.Addr())
	})
}
