package backend

import (
	"net/netip"
	"slices"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
)

// Plan is what a backend wants, kept up with facts and views at the cost of what
// changes in them. It is a memory of a pure function: whatever came before,
// Want and Skipped follow from the last Update alone.
//
// A peer that claims nothing that another one claims, addresses included, can come, go or change by itself. Where claims meet, all is worked
// out anew, since the older lease wins and the loser may be any of the others.
type Plan struct {
	backend Backend
	network netip.Prefix

	facts          host.Facts
	view           lease.View
	want           dataplane.State
	skipped        []Skipped
	unsafeRoutes   []dataplane.Conflict
	claimConflicts []lease.Lease

	updated bool
	claims  map[Claim]int  // how many accepted leases make each
	inside  int            // accepted leases with a public IP inside the network
	shared  []netip.Prefix // what is led into the overlay for all, in place of all of the network; nil: that is
}

// NewPlan makes a plan for a network that wants nothing yet.
func NewPlan(b Backend, network netip.Prefix) *Plan {
	return &Plan{backend: b, network: network, want: dataplane.NewState()}
}

// Change is what an Update changed in what is wanted: everything, or the objects of
// some peers, as they were wanted and as they are.
type Change struct {
	All      bool
	Was, Now dataplane.State
}

// IsEmpty reports whether the same is wanted as before.
func (c Change) IsEmpty() bool { return !c.All && c.Was.Empty() && c.Now.Empty() }

// About reports whether an operation may be due to the change.
func (c Change) About(o dataplane.Op) bool { return c.All || c.Was.Has(o) || c.Now.Has(o) }

// Want is what the kernel should hold. It is valid, and must not be changed,
// until the next Update.
func (p *Plan) Want() dataplane.State { return p.want }

// Skipped are the peers that are left out, and why.
func (p *Plan) Skipped() []Skipped { return p.skipped }

// UnsafeRoutes are the routes of the backend's own that are not wanted because they would
// cut this host off, and why.
func (p *Plan) UnsafeRoutes() []dataplane.Conflict { return p.unsafeRoutes }

// ClaimConflicts are the leases of peers that are left out for claiming what is ours, such as our
// MAC: no packet can pass until one of the two hosts has another.
func (p *Plan) ClaimConflicts() []lease.Lease { return p.claimConflicts }

// Update takes the latest facts and view.
func (p *Plan) Update(h host.Facts, v lease.View) Change {
	c, ok := p.incremental(h, v)
	if !ok {
		p.rebuild(h, v)
		c = Change{All: true}
	}
	p.facts, p.view, p.updated = h, v, true
	return c
}

func (p *Plan) rebuild(h host.Facts, v lease.View) {
	p.want = dataplane.State{} // not two at a time: they are large
	good, accepted, skipped, rivals := peers(p.backend, p.network, h, v)
	p.skipped, p.claimConflicts = skipped, rivals
	p.want, p.shared, p.unsafeRoutes = safeBase(p.backend, h, v.Own, good)
	for _, peer := range good {
		p.backend.Add(p.want, h, peer)
	}
	claims := 0
	for _, peer := range accepted {
		claims += len(peer.Claims)
	}
	p.claims, p.inside = make(map[Claim]int, claims), 0
	for _, peer := range accepted {
		p.claim(peer, 1)
	}
}

// claim counts what a lease claims, or, with n of -1, no longer claims.
func (p *Plan) claim(peer Peer, n int) {
	for _, c := range peer.Claims {
		if p.claims[c] += n; p.claims[c] == 0 {
			delete(p.claims, c)
		}
	}
	if p.network.Contains(peer.PublicIP) {
		p.inside += n
	}
}

// incremental follows a new view where only single peers differ from the one before. It
// gives up where all is to be worked out anew.
func (p *Plan) incremental(h host.Facts, v lease.View) (c Change, ok bool) {
	if !p.updated || !h.Equal(p.facts) || !v.Own.SameAs(p.view.Own) || v.Complete != p.view.Complete {
		return c, false
	}
	c = Change{Was: dataplane.NewState(), Now: dataplane.NewState()}
	valid := newValidator(p.backend, p.network, h, v.Own)
	var came []*lease.Lease
	changes := 0
	for was, is := range v.ChangesSince(p.view) {
		if was != nil && is != nil && was.SameAs(*is) && was.Stale == is.Stale {
			// Of another age, which matters only to those who claim the same.
			if peer, err := valid.peer(is); err == nil && p.contested(peer, v, 1) {
				return c, false
			}
			continue
		}
		if changes++; changes > 64+len(v.Peers)/8 {
			return c, false // no cheaper one by one
		}
		if was != nil && !p.remove(valid, c.Was, was) {
			return c, false
		}
		if is != nil {
			came = append(came, is)
		}
	}
	for _, l := range came {
		if !p.add(valid, c.Now, v, l) {
			return c, false
		}
	}
	p.want.Remove(c.Was)
	p.want.Add(c.Now)
	return c, true
}

// remove has a peer of the view before claim nothing any more.
func (p *Plan) remove(valid validator, was dataplane.State, l *lease.Lease) bool {
	peer, err := valid.peer(l)
	if err == errNoPeer {
		return true
	}
	if err != nil || p.contested(peer, p.view, 1) {
		return false
	}
	p.claim(peer, -1)
	p.backend.Add(was, valid.host, peer)
	return true
}

// add lets a peer of the new view have what nobody else claims.
func (p *Plan) add(valid validator, now dataplane.State, v lease.View, l *lease.Lease) bool {
	peer, err := valid.peer(l)
	if err == errNoPeer {
		return true
	}
	if err != nil || p.contested(peer, v, 0) {
		return false
	}
	p.claim(peer, 1)
	p.backend.Add(now, valid.host, peer)
	return true
}

// contested reports whether somebody else may claim something that a peer of a view does.
// claims is how often it is counted itself.
func (p *Plan) contested(peer Peer, v lease.View, claims int) bool {
	if p.inside > 0 || p.network.Contains(peer.PublicIP) {
		return true
	}
	if slices.ContainsFunc(peer.Claims, func(c Claim) bool { return p.claims[c] > claims }) {
		return true
	}
	if p.shared != nil && !inside(p.shared, peer.Subnets.V4) {
		return true // it has a route that is not the backend's to add
	}
	return v.Overlaps(peer.Subnets)
}
