package lease

import (
	"iter"
	"net/netip"
	"slices"
)

// View is what a host knows of the network at one moment. It is immutable, and so
// are the leases in it, which the views before and after it share.
type View struct {
	Own   Lease
	Peers []*Lease // every other lease whose owner is not leaving, sorted by subnets
	// Complete is false until a whole listing was seen. Nothing may be
	// pruned on the word of an incomplete view.
	Complete bool
}

// NewView sorts leases into own and peers. No two of them may be of the same subnets.
func NewView(own Lease, all []*Lease, complete bool) View {
	peers := make([]*Lease, 0, len(all))
	for _, l := range all {
		if own.peer(l) {
			peers = append(peers, l)
		}
	}
	slices.SortFunc(peers, func(a, b *Lease) int { return compare(&a.Subnets, &b.Subnets) })
	return View{Own: own, Peers: peers, Complete: complete}
}

// peer reports whether a lease, nil for none, is one of own's peers.
func (own Lease) peer(l *Lease) bool { return l != nil && l.Subnets != own.Subnets && !l.Leaving }

// Edit returns the view that follows v when only own and the leases of some subnets may have
// changed, and reports whether it differs from v. now returns the lease of subnets, or nil. The
// result is that of NewView for all leases, at the cost of copying the pointers; an unchanged
// peer stays the same pointer.
//
// A lease that was created again, or became stale or valid, is a difference only where another
// one may claim the same values, because the older one keeps them.
func (v View) Edit(own Lease, changed []Subnets, now func(Subnets) *Lease) (View, bool) {
	// What was our own may be a peer's now, and the other way round.
	owns := [2]Subnets{v.Own.Subnets, own.Subnets}
	dirty := make([]*Subnets, 0, len(changed)+len(owns)) // pointers, as all may have changed
	for _, some := range [][]Subnets{changed, owns[:]} {
		for i := range some {
			dirty = append(dirty, &some[i])
		}
	}
	slices.SortFunc(dirty, compare)
	dirty = slices.CompactFunc(dirty, func(a, b *Subnets) bool { return *a == *b })
	type edit struct {
		at    int    // where in v.Peers
		was   bool   // there is one, to be replaced or, without lease, removed
		lease *Lease // to be there
	}
	var edits []edit
	var aged []*Lease
	news := !own.SameAs(v.Own)
	size := len(v.Peers)
	for _, subnets := range dirty {
		e := edit{lease: now(*subnets)}
		if !own.peer(e.lease) {
			e.lease = nil
		}
		e.at, e.was = v.find(*subnets)
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

// sharesClaims reports whether a peer may claim what one of some peers claims.
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
	seen := 0 // some are peers themselves
	for _, l := range v.Peers {
		if ips[l.PublicIP] || l.BackendData != "" && data[l.BackendData] {
			seen++
		}
	}
	return seen > len(some)
}

// Peer returns the lease of subnets, or nil.
func (v View) Peer(subnets Subnets) *Lease {
	if i, ok := v.find(subnets); ok {
		return v.Peers[i]
	}
	return nil
}

func (v View) find(subnets Subnets) (int, bool) {
	return slices.BinarySearchFunc(v.Peers, struct{}{}, func(l *Lease, _ struct{}) int { return compare(&l.Subnets, &subnets) })
}

// ChangesSince returns the peers that say something else to the data plane than in an older
// view, or are of another age, or stale in one of the two only, as they were and as they
// are, in order of their subnets; nil: not there.
// It takes time for each peer, but little for one that both views share.
func (v View) ChangesSince(old View) iter.Seq2[*Lease, *Lease] {
	return func(yield func(was, is *Lease) bool) {
		was, is := old.Peers, v.Peers
		for len(was) > 0 || len(is) > 0 {
			switch {
			case len(was) > 0 && len(is) > 0 && was[0] == is[0]:
				was, is = was[1:], is[1:]
				continue
			case len(was) == 0 || len(is) > 0 && compare(&is[0].Subnets, &was[0].Subnets) < 0:
				if !yield(nil, is[0]) {
					return
				}
				is = is[1:]
			case len(is) == 0 || compare(&was[0].Subnets, &is[0].Subnets) < 0:
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

// Overlaps reports whether the IPv4 subnet of subnets overlaps that of a peer with others.
func (v View) Overlaps(subnets Subnets) bool {
	subnet := subnets.V4
	// Peers with the same one and those inside follow each other.
	for i, _ := v.find(Subnets{V4: subnet}); i < len(v.Peers) && subnet.Contains(v.Peers[i].Subnets.V4.Addr()); i++ {
		if v.Peers[i].Subnets != subnets {
			return true
		}
	}
	for bits := subnet.Bits() - 1; bits >= 0; bits-- {
		wider, err := subnet.Addr().Prefix(bits)
		if err != nil {
			continue
		}
		if i, _ := v.find(Subnets{V4: wider}); i < len(v.Peers) && v.Peers[i].Subnets.V4 == wider {
			return true
		}
	}
	return false
}
