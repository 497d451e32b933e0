package backend

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sort"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
)

// peers returns the leases of a view that can be programmed, sorted by subnet, and the reasons why
// others cannot. Of two leases with the same claim, the older one wins. A stale lease loses to all
// others, which is not reported. accepted has all leases that are valid by themselves. rivals has
// those that are valid except for a claim of our own.
func peers(b Backend, network netip.Prefix, h host.Facts, v lease.View) (good, accepted []Peer, bad []Skipped, rivals []lease.Lease) {
	valid := newValidator(b, network, h, v.Own)
	accepted = make([]Peer, 0, len(v.Peers))
	for _, l := range v.Peers {
		p, err := valid.peer(l)
		switch {
		case err == nil:
			accepted = append(accepted, p)
		case err != errNoPeer:
			bad = append(bad, Skipped{l.Subnets, lease.FaultOf(err)})
			if errors.As(err, &ownClaim{}) && !l.Stale {
				rivals = append(rivals, *l)
			}
		}
	}
	good, overlapping := withoutOverlaps(accepted)
	good, doubled := withoutDuplicateClaims(good, func(p Peer) []Claim { return p.Claims[:1] })
	good, inside := withoutOverlayIPs(network, good)
	good, shared := withoutDuplicateClaims(good, func(p Peer) []Claim { return p.Claims[1:] })
	bad = slices.DeleteFunc(slices.Concat(bad, overlapping, doubled, inside, shared), func(s Skipped) bool {
		return v.Peer(s.Subnets).Stale
	})
	return good, accepted, bad, rivals
}

// AddPeer adds to s the objects for the peer with a lease, which is not skipped.
func AddPeer(b Backend, s dataplane.State, h host.Facts, l *lease.Lease) {
	if p, err := b.Accept(h, l); err == nil {
		b.Add(s, h, p)
	}
}

// ownClaim is the fault of a lease that has one of this host's claims.
type ownClaim struct{ lease.Fault }

func (o ownClaim) Unwrap() error { return o.Fault }

// sameType returns a fault for leases of another backend. A reservation without a type is one that
// its host does not use yet.
func sameType(l *lease.Lease, backendType string) error {
	if l.Reservation() && l.BackendType == "" && l.BackendData == "" {
		return errNoPeer
	}
	if l.BackendType != backendType {
		return fault("backend type is not "+backendType, "%q", lease.Clip(l.BackendType))
	}
	return nil
}

// validator checks which leases can be those of peers.
type validator struct {
	backend Backend
	network netip.Prefix
	host    host.Facts
	own     lease.Lease
	claims  []Claim // of the own lease, without the public IP
}

func newValidator(b Backend, network netip.Prefix, h host.Facts, own lease.Lease) validator {
	v := validator{backend: b, network: network, host: h, own: own}
	// A damaged own lease has no claims.
	if p, err := b.Accept(h, &own); err == nil {
		v.claims = p.Claims[1:]
	}
	return v
}

// peer returns the peer of a lease, or what is wrong with the lease independently of other peers.
func (v validator) peer(l *lease.Lease) (Peer, error) {
	p, err := v.backend.Accept(v.host, l)
	if err == errNoPeer {
		return Peer{}, err
	}
	if wrong := v.validate(l); wrong != nil {
		return Peer{}, wrong
	}
	if err != nil {
		return Peer{}, err
	}
	for _, c := range p.Claims[1:] {
		if slices.Contains(v.claims, c) {
			return Peer{}, ownClaim{fault(c.Kind()+" is our own", "%s", c)}
		}
	}
	return p, nil
}

// validate returns what is wrong with a lease in any backend, or nil.
func (v validator) validate(l *lease.Lease) error {
	ip := l.PublicIP
	switch {
	case l.Subnets.V4().Bits() <= v.network.Bits() || !v.network.Contains(l.Subnets.V4().Addr()):
		return fault("subnet is not in the network "+v.network.String(), "")
	case l.Subnets.V4().Overlaps(v.own.Subnets.V4()):
		return fault("subnet overlaps our own, "+v.own.Subnets.V4().String(), "")
	case !lease.IsHost(ip):
		return fault("public IP is not a host address", "%s", ip)
	case ip == v.host.PublicIP || ip == v.host.Addr:
		return fault("public IP is our own", "%s", ip)
	case v.own.Subnets.V4().Contains(ip):
		return fault("public IP is in our own subnet", "%s", ip)
	}
	return v.checkUnderlay(l.Subnets.V4())
}

// checkUnderlay returns a fault if a route to the subnet would break the underlay, or nil.
func (v validator) checkUnderlay(subnet netip.Prefix) error {
	if subnet.Contains(v.host.Addr) {
		return fault("subnet contains this host's address", "%s", v.host.Addr)
	}
	r, taken := v.host.ConflictsWith(subnet)
	switch {
	case taken && r.Gateway.IsValid():
		return fault("subnet contains this host's gateway", "%s dev %s", r.Gateway, r.Iface)
	case taken:
		return fault("subnet covers an underlay network of this host", "%s dev %s", r.Dst, r.Iface)
	}
	for _, n := range v.host.Needs {
		if n.DivertedBy(subnet) {
			return fault("subnet contains an address this host needs", "%s, %s", n.Addr, n.What)
		}
	}
	return nil
}

// withoutOverlaps requires that leases are sorted by subnet, so that prefixes inside another prefix
// follow it directly.
func withoutOverlaps(leases []Peer) (good []Peer, bad []Skipped) {
	good = make([]Peer, 0, len(leases))
	for _, l := range leases {
		keep := true
		for n := len(good) - 1; n >= 0 && good[n].Subnets.V4().Overlaps(l.Subnets.V4()); n-- {
			if good[n].Precedes(*l.Lease) {
				bad = append(bad, overlap(l, good[n]))
				keep = false
				break
			}
			bad = append(bad, overlap(good[n], l))
			good = good[:n]
		}
		if keep {
			good = append(good, l)
		}
	}
	return good, bad
}

func overlap(l, older Peer) Skipped {
	return skipped(l, "subnet overlaps an older lease", "%s", older.Subnets)
}

// withoutDuplicateClaims assigns each claim to the oldest lease that has it, and returns the leases
// with all their claims.
func withoutDuplicateClaims(leases []Peer, claims func(Peer) []Claim) (good []Peer, bad []Skipped) {
	owner, all := make(map[Claim]int, len(leases)), 0
	for i, l := range leases {
		for _, c := range claims(l) {
			all++
			if o, taken := owner[c]; !taken || l.Precedes(*leases[o].Lease) {
				owner[c] = i
			}
		}
	}
	if len(owner) == all {
		return leases, nil
	}
	for i, l := range leases {
		lost := slices.IndexFunc(claims(l), func(c Claim) bool { return owner[c] != i })
		if lost < 0 {
			good = append(good, l)
			continue
		}
		c := claims(l)[lost]
		bad = append(bad, skipped(l, c.Kind()+" belongs to an older lease", "%s, %s", c, leases[owner[c]].Subnets))
	}
	return good, bad
}

// withoutOverlayIPs removes leases whose public IP is in a leased subnet: their outer packets would
// be routed into the tunnel again. If the subnet is another lease's, the older of the two is kept.
// leases must be sorted by subnet and must not overlap.
func withoutOverlayIPs(network netip.Prefix, leases []Peer) (good []Peer, bad []Skipped) {
	clashes := map[int][]int{} // indexes of the leases that each lease conflicts with, which may be itself
	for i, l := range leases {
		if !network.Contains(l.PublicIP) {
			continue
		}
		if in, ok := covering(leases, l.PublicIP); ok {
			clashes[i], clashes[in] = append(clashes[i], in), append(clashes[in], i)
		}
	}
	if len(clashes) == 0 {
		return leases, nil
	}
	byPrecedence := slices.Collect(maps.Keys(clashes))
	sort.Slice(byPrecedence, func(a, b int) bool {
		return leases[byPrecedence[a]].Precedes(*leases[byPrecedence[b]].Lease)
	})
	stays := map[int]bool{}
	for _, i := range byPrecedence {
		l, older := leases[i], leases[i]
		if !l.Subnets.V4().Contains(l.PublicIP) {
			at := slices.IndexFunc(clashes[i], func(j int) bool { return stays[j] })
			if at < 0 {
				stays[i] = true
				continue
			}
			older = leases[clashes[i][at]]
		}
		if older.Subnets.V4().Contains(l.PublicIP) {
			bad = append(bad, skipped(l, "public IP is in a leased subnet", "%s in %s", l.PublicIP, older.Subnets.V4()))
		} else {
			bad = append(bad, skipped(l, "subnet contains the public IP of an older lease", "%s of %s", older.PublicIP, older.Subnets))
		}
	}
	good = make([]Peer, 0, len(leases)-len(bad))
	for i, l := range leases {
		if _, clash := clashes[i]; !clash || stays[i] {
			good = append(good, l)
		}
	}
	return good, bad
}

// covering returns the index of the lease whose subnet contains ip. leases must be sorted by subnet
// and must not overlap.
func covering(leases []Peer, ip netip.Addr) (int, bool) {
	i, _ := slices.BinarySearchFunc(leases, ip, func(l Peer, ip netip.Addr) int {
		if l.Subnets.V4().Contains(ip) {
			return -1 // continue after it
		}
		return l.Subnets.V4().Addr().Compare(ip)
	})
	return i - 1, i > 0 && leases[i-1].Subnets.V4().Contains(ip)
}
