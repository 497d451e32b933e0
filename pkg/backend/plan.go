package backend

import (
	"hash/maphash"
	"net/netip"
	"slices"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
)

// Plan is the desired state of a backend, updated incrementally with facts and views. It caches a
// pure function: Want and Skipped depend on the last Update only.
//
// A peer whose claims, including its addresses, do not conflict with any other peer's can be added,
// removed or changed separately. Otherwise everything is recomputed, because the older lease wins
// and any peer may be affected.
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
	seed    maphash.Seed
	claims  map[uint64]int // number of accepted leases with each claim, by its hash: equal hashes cost a rebuild only
	inside  int            // number of accepted leases with a public IP inside the network
	shared  []netip.Prefix // destinations of shared routes; nil if there is one route to the whole network
}

// NewPlan returns an empty plan for a network.
func NewPlan(b Backend, network netip.Prefix) *Plan {
	return &Plan{backend: b, network: network, want: dataplane.NewState(), seed: maphash.MakeSeed()}
}

// Change is how an Update changed the desired state: everything, or only the objects of some peers,
// before and after.
type Change struct {
	All      bool
	Was, Now dataplane.State
}

// IsEmpty reports whether nothing changed.
func (c Change) IsEmpty() bool { return !c.All && c.Was.Empty() && c.Now.Empty() }

// About reports whether an operation may be caused by the change.
func (c Change) About(o dataplane.Op) bool { return c.All || c.Was.Has(o) || c.Now.Has(o) }

// Want returns the desired state. It must not be modified and is valid until the next Update.
func (p *Plan) Want() dataplane.State { return p.want }

// Skipped returns the peers that are left out, with the reasons.
func (p *Plan) Skipped() []Skipped { return p.skipped }

// UnsafeRoutes returns the routes of the backend that are left out because they would isolate this
// host, with the reasons.
func (p *Plan) UnsafeRoutes() []dataplane.Conflict { return p.unsafeRoutes }

// ClaimConflicts returns the leases of peers that are left out because they have one of our claims,
// such as our MAC. No packets can pass until one of the two hosts changes it.
func (p *Plan) ClaimConflicts() []lease.Lease { return p.claimConflicts }

// Update recomputes the desired state for the latest facts and view.
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
	p.want = dataplane.State{} // release it first, because it is large
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
	p.claims, p.inside = make(map[uint64]int, claims), 0
	for _, peer := range accepted {
		p.claim(peer, 1)
	}
}

// claim adds n to the number of leases with each of the peer's claims.
func (p *Plan) claim(peer Peer, n int) {
	for _, c := range peer.Claims {
		hash := maphash.Comparable(p.seed, c)
		if p.claims[hash] += n; p.claims[hash] == 0 {
			delete(p.claims, hash)
		}
	}
	if p.network.Contains(peer.PublicIP) {
		p.inside += n
	}
}

// incremental applies a new view of which only single peers changed. It returns false if everything
// has to be recomputed.
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
			// Only its age changed, which matters only if claims conflict.
			if peer, err := valid.peer(is); err == nil && p.contested(peer, v, 1) {
				return c, false
			}
			continue
		}
		if changes++; changes > 64+len(v.Peers)/8 {
			return c, false // not cheaper than recomputing all
		}
		if was != nil && !p.count(valid, c.Was, p.view, was, -1) {
			return c, false
		}
		if is != nil {
			came = append(came, is)
		}
	}
	for _, l := range came {
		if !p.count(valid, c.Now, v, l, 1) {
			return c, false
		}
	}
	p.want.Remove(c.Was)
	p.want.Add(c.Now)
	return c, true
}

// count adds n, 1 or -1, to the claims of a peer of a view, and adds the peer's objects to s. It
// returns false if claims conflict.
func (p *Plan) count(valid validator, s dataplane.State, v lease.View, l *lease.Lease, n int) bool {
	peer, err := valid.peer(l)
	if err == errNoPeer {
		return true
	}
	if err != nil || p.contested(peer, v, max(0, -n)) {
		return false
	}
	p.claim(peer, n)
	p.backend.Add(s, valid.host, peer)
	return true
}

// contested reports whether claims of a peer may conflict with those of others. claims is how often
// the peer itself is counted.
func (p *Plan) contested(peer Peer, v lease.View, claims int) bool {
	routedByBase := p.shared != nil && !inside(p.shared, peer.Subnets.V4())
	return routedByBase || p.inside > 0 || p.network.Contains(peer.PublicIP) || v.Overlaps(peer.Subnets) ||
		slices.ContainsFunc(peer.Claims, func(c Claim) bool { return p.claims[maphash.Comparable(p.seed, c)] > claims })
}
