package lease

import (
	"iter"
	"net/netip"
	"slices"
	"time"
)

// View is what a host knows of the network at one point in time. It is immutable, and so are the
// leases in it, which consecutive views share.
type View struct {
	Own   Lease
	Peers []*Lease // all other leases except those being released, sorted by subnets
	// Complete is set once the registry has been listed. Nothing may be deleted because of an
	// incomplete view.
	Complete bool
	// Received is when the first event that this view shows, and the previous one did not, was
	// received; zero if there was none.
	Received time.Time
}

// NewView returns the view of all leases. No two of them may have the same subnets.
func NewView(own Lease, all []*Lease, complete bool) View {
	peers := make([]*Lease, 0, len(all))
	for _, l := range all {
		if own.peer(l) {
			peers = append(peers, l)
		}
	}
	slices.SortFunc(peers, func(a, b *Lease) int { return a.Subnets.Compare(b.Subnets) })
	return View{Own: own, Peers: peers, Complete: complete}
}

// peer reports whether a lease, which may be nil, is a peer of own.
func (own Lease) peer(l *Lease) bool { return l != nil && l.Subnets != own.Subnets && !l.Leaving }

// Edit returns the view that follows v if only own and the leases of the changed subnets may have
// changed, and reports whether it differs from v. now returns the current lease of subnets, or nil.
// The result is that of NewView for all leases, at the cost of copying the pointers. Unchanged
// peers keep their pointers.
//
// A lease that was recreated, or became stale or valid, is a difference only if another one may
// have the same claims, because the older lease wins.
func (v View) Edit(own Lease, changed []Subnets, now func(Subnets) *Lease) (View, bool) {
	// The previous own lease may be a peer's now, and vice versa.
	dirty := slices.Concat(changed, []Subnets{v.Own.Subnets, own.Subnets})
	slices.SortFunc(dirty, Subnets.Compare)
	dirty = slices.Compact(dirty)
	type edit struct {
		at    int    // index in v.Peers
		was   bool   // v.Peers[at] exists and is replaced, or removed if lease is nil
		lease *Lease // new value
	}
	var edits []edit
	var aged []*Lease
	news := !own.SameAs(v.Own)
	size := len(v.Peers)
	for _, subnets := range dirty {
		e := edit{lease: now(subnets)}
		if !own.peer(e.lease) {
			e.lease = nil
		}
		e.at, e.was = v.find(subnets)
		switch {
		case e.was && e.lease == nil:
			size--
		case !e.was && e.lease != nil:
			size++
		case !e.was:
			continue
		case v.Peers[e.at].SameAs(*e.lease):
			if was := v.Peers[e.at]; was.Created != e.lease.Created || was.Stale != e.lease.Stale {
				edits = append(edits, e)
				aged = append(aged, e.lease)
			}
			continue
		}
		news = true
		edits = append(edits, e)
	}
	next := View{Own: own, Peers: v.Peers, Complete: v.Complete}
	if len(edits) == 0 {
		return next, news
	}
	next.Peers = make([]*Lease, 0, size)
	rest := 0
	for _, e := range edits {
		next.Peers = append(next.Peers, v.Peers[rest:e.at]...)
		if e.lease != nil {
			next.Peers = append(next.Peers, e.lease)
		}
		if rest = e.at; e.was {
			rest++
		}
	}
	next.Peers = append(next.Peers, v.Peers[rest:]...)
	return next, news || next.sharesClaims(aged)
}

// sharesClaims reports whether a lease of some may have the same claims as another peer.
func (v View) sharesClaims(some []*Lease) bool {
	ips, data := make(map[netip.Addr]bool, len(some)), make(map[string]bool, len(some))
	for _, l := range some {
		if ips[l.PublicIP] || l.BackendData != "" && data[l.BackendData] || v.Overlaps(l.Subnets) {
			return true
		}
		ips[l.PublicIP], data[l.BackendData] = true, true
	}
	if len(some) == 0 {
		return false
	}
	seen := 0 // includes some, which are peers themselves
	for _, l := range v.Peers {
		if ips[l.PublicIP] || l.BackendData != "" && data[l.BackendData] {
			seen++
		}
	}
	return seen > len(some)
}

// Peer returns the peer's lease with the given subnets, or nil.
func (v View) Peer(subnets Subnets) *Lease {
	if i, ok := v.find(subnets); ok {
		return v.Peers[i]
	}
	return nil
}

func (v View) find(subnets Subnets) (int, bool) {
	return slices.BinarySearchFunc(v.Peers, subnets, func(l *Lease, s Subnets) int { return l.Subnets.Compare(s) })
}

// ChangesSince returns, sorted by subnets, the old and the new lease of each peer that changed for
// the data plane, was recreated, or became stale or valid since an older view. A nil lease means
// that the peer does not exist in that view. The cost is linear in the number of peers, but low for
// those that both views share.
func (v View) ChangesSince(old View) iter.Seq2[*Lease, *Lease] {
	return func(yield func(was, is *Lease) bool) {
		was, is := old.Peers, v.Peers
		for len(was) > 0 || len(is) > 0 {
			switch {
			case len(was) > 0 && len(is) > 0 && was[0] == is[0]:
				was, is = was[1:], is[1:]
				continue
			case len(was) == 0 || len(is) > 0 && is[0].Subnets.Compare(was[0].Subnets) < 0:
				if !yield(nil, is[0]) {
					return
				}
				is = is[1:]
			case len(is) == 0 || was[0].Subnets.Compare(is[0].Subnets) < 0:
				if !yield(was[0], nil) {
					return
				}
				was = was[1:]
			default:
				same := was[0].SameAs(*is[0]) && was[0].Stale == is[0].Stale && was[0].Created == is[0].Created
				if !same && !yield(was[0], is[0]) {
					return
				}
				was, is = was[1:], is[1:]
			}
		}
	}
}

// Overlaps reports whether the IPv4 subnet of subnets overlaps that of a peer with different
// subnets.
func (v View) Overlaps(subnets Subnets) bool {
	subnet := subnets.V4()
	// Peers with the same subnet and those inside it are adjacent.
	for i, _ := v.find(SubnetsOf(subnet)); i < len(v.Peers) && subnet.Contains(v.Peers[i].Subnets.V4().Addr()); i++ {
		if v.Peers[i].Subnets != subnets {
			return true
		}
	}
	for bits := subnet.Bits() - 1; bits >= 0; bits-- {
		wider, err := subnet.Addr().Prefix(bits)
		if err != nil {
			continue
		}
		if i, _ := v.find(SubnetsOf(wider)); i < len(v.Peers) && v.Peers[i].Subnets.V4() == wider {
			return true
		}
	}
	return false
}
