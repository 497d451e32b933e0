package subnet

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// toldFollower returns a follower whose inputs the test provides.
func toldFollower(own lease.Lease, emit func(lease.View)) *follower {
	f := newFollower(Options{Log: slog.New(slog.DiscardHandler)}, emit)
	f.own = own
	return f
}

// happenings are random inputs of a follower, for a small set of subnets.
type happenings struct {
	*follower
	r        *rand.Rand
	revision uint64
}

func (h *happenings) subnets() lease.Subnets {
	s := lease.SubnetsOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 42, byte(h.r.IntN(25)), 0}), 24))
	if h.r.IntN(5) == 0 {
		s = lease.SubnetsOf(s.V4(), netip.MustParsePrefix("fd42::/64"))
	}
	return s
}

func (h *happenings) lease() lease.Lease {
	h.revision++
	l := lease.Lease{Subnets: h.subnets(), Revision: h.revision}
	l.BackendType, l.Leaving = fmt.Sprint(h.r.IntN(2)), h.r.IntN(6) == 0
	return l
}

func (h *happenings) bad() registry.InvalidEntry {
	h.revision++
	b := registry.InvalidEntry{Key: "notes", Revision: h.revision, Err: fmt.Errorf("bad %d", h.r.IntN(3))}
	if h.r.IntN(4) > 0 {
		b.Subnets = h.subnets()
		b.Key = lease.Key(b.Subnets)
	}
	return b
}

func (h *happenings) event() registry.Event {
	switch h.r.IntN(6) {
	case 0:
		b := h.bad()
		return registry.Event{Invalid: &b}
	case 1:
		b := registry.InvalidEntry{Key: "notes", Err: errors.New("no subnet")}
		return registry.Event{Invalid: &b, Deleted: true}
	case 2:
		h.revision++
		return registry.Event{Deleted: true, Lease: lease.Lease{Subnets: h.subnets(), Revision: h.revision}}
	}
	return registry.Event{Lease: h.lease()}
}

// listing returns some of the leases unchanged, and others.
func (h *happenings) listing() registry.Listing {
	listed := map[lease.Subnets]lease.Lease{}
	for subnets, l := range h.leases {
		if h.r.IntN(4) > 0 {
			listed[subnets] = *l
		}
	}
	for range h.r.IntN(8) {
		l := h.lease()
		listed[l.Subnets] = l
	}
	h.revision++
	l := registry.Listing{Leases: slices.Collect(maps.Values(listed)), Index: h.revision - uint64(h.r.IntN(2))}
	for range h.r.IntN(4) {
		l.Invalid = append(l.Invalid, h.bad())
	}
	return l
}

func (h *happenings) step() {
	switch h.r.IntN(20) {
	case 0:
		h.load(h.listing())
	case 1:
		h.own = h.lease() // perhaps of another subnet
		h.changed()
	case 2:
		h.expireStale()
	case 3:
		h.applyLease(lease.Lease{Subnets: h.own.Subnets, Revision: h.revision}) // as before a move
	default:
		h.apply(h.event())
	}
}

// TestViewsAreWhatIsKnown compares each view after random inputs with one built from all leases.
func TestViewsAreWhatIsKnown(t *testing.T) {
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			views, staleLeases := 0, 0
			h := &happenings{r: rand.New(rand.NewPCG(seed, 1)), revision: 1}
			h.follower = toldFollower(lease.Lease{Subnets: h.subnets()}, func(lease.View) { views++ })
			h.load(h.listing())
			h.publish()
			for range 400 {
				before, told := h.last, views
				for range h.r.IntN(5) {
					h.step()
				}
				<-time.After(time.Duration(h.r.Int64N(int64(grace / 2))))
				h.expireDeleted()
				h.publish()
				staleLeases = max(staleLeases, len(h.staleLeases))
				want := lease.NewView(h.own, slices.Collect(maps.Values(h.leases)), true)
				if !h.last.Own.SameAs(want.Own) || !h.last.Complete || !slices.EqualFunc(h.last.Peers, want.Peers, func(a, b *lease.Lease) bool { return a.SameAs(*b) && a.Stale == b.Stale }) {
					t.Fatalf("seed %d: view %+v, want %+v", seed, h.last, want)
				}
				news, aged := !h.last.Own.SameAs(before.Own), false // aged: may be a difference if others have the same claims
				for was, is := range h.last.ChangesSince(before) {
					same := was != nil && is != nil && was.SameAs(*is)
					news, aged = news || !same, aged || same
				}
				if emitted := views > told; news && !emitted || !news && !aged && emitted {
					t.Fatalf("seed %d: %d views, but is there news? %v", seed, views-told, news)
				}
			}
			if views < 50 || staleLeases == 0 {
				t.Errorf("seed %d: nothing happened: %d views, %d stale leases", seed, views, staleLeases)
			}
			<-time.After(2 * grace)
			if h.expireDeleted(); len(h.graceEnds)+len(h.deletions) > 0 {
				t.Errorf("seed %d: %d leases never expire", seed, len(h.graceEnds))
			}
		})
	}
}

func TestBadEntries(t *testing.T) {
	seven := lease.SubnetsOf(netip.MustParsePrefix("10.42.7.0/24"))
	both := lease.SubnetsOf(seven.V4(), netip.MustParsePrefix("fd42::/64"))
	bad := func(s lease.Subnets) registry.Event {
		return registry.Event{Invalid: &registry.InvalidEntry{Key: lease.Key(s), Subnets: s, Err: errors.New("x")}}
	}
	notes := registry.Event{Invalid: &registry.InvalidEntry{Key: "notes", Err: errors.New("x")}}
	gone := registry.Event{Invalid: notes.Invalid, Deleted: true}
	f := toldFollower(lease.Lease{}, func(lease.View) {})
	for i, step := range []struct {
		events []registry.Event
		want   string
	}{
		{[]registry.Event{bad(seven), bad(both), notes, bad(seven)}, "[10.42.7.0-24 10.42.7.0-24&fd42::-64 notes]"},
		{[]registry.Event{gone, gone}, "[10.42.7.0-24 10.42.7.0-24&fd42::-64]"},
		{[]registry.Event{{Lease: lease.Lease{Subnets: seven}}}, "[10.42.7.0-24&fd42::-64]"},
		{[]registry.Event{bad(seven), {Lease: lease.Lease{Subnets: both}, Deleted: true}}, "[10.42.7.0-24]"},
		{[]registry.Event{{Lease: lease.Lease{Subnets: seven}, Deleted: true}}, "[]"},
	} {
		for _, ev := range step.events {
			f.apply(ev)
		}
		if got := fmt.Sprint(slices.Sorted(maps.Keys(f.invalidKeys))); got != step.want {
			t.Errorf("step %d: bad entries %s, want %s", i, got, step.want)
		}
	}
}

// TestPeerChangesItsKey: a host that adds an IPv6 subnet to its lease, or removes it, changes its
// key and stays a peer throughout.
func TestPeerChangesItsKey(t *testing.T) {
	plain := lease.Lease{Subnets: lease.SubnetsOf(netip.MustParsePrefix("10.42.9.0/24")), Attrs: lease.Attrs{BackendType: "x"}}
	both := plain
	both.Subnets = lease.SubnetsOf(plain.Subnets.V4(), netip.MustParsePrefix("fd42:0:0:9::/64"))
	for _, c := range []struct{ before, after lease.Lease }{{plain, both}, {both, plain}} {
		synctest.Test(t, func(t *testing.T) {
			f := toldFollower(lease.Lease{Subnets: lease.SubnetsOf(netip.MustParsePrefix("10.42.7.0/24"))}, func(lease.View) {})
			f.load(registry.Listing{Leases: []lease.Lease{c.before}})
			f.apply(registry.Event{Lease: c.after})
			f.apply(registry.Event{Lease: lease.Lease{Subnets: c.before.Subnets}, Deleted: true})
			<-time.After(2 * grace)
			f.expireDeleted()
			f.publish()
			if peers := f.last.Peers; len(peers) != 1 || !peers[0].SameAs(c.after) || peers[0].Stale {
				t.Errorf("%s becomes %s: peers %+v", c.before.Subnets, c.after.Subnets, peers)
			}
		})
	}
}

// BenchmarkChange measures one event in a network of 20,000 leases.
func BenchmarkChange(b *testing.B) {
	var listing registry.Listing
	for i := range 20000 {
		listing.Leases = append(listing.Leases, lease.Lease{
			Subnets: lease.SubnetsOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)),
			Attrs:   lease.Attrs{PublicIP: netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), BackendType: "vxlan"},
		})
	}
	own := listing.Leases[7]
	for _, bench := range []struct {
		name string
		data func(int) string
	}{
		{"renewed", func(int) string { return "" }},
		{"changed", func(i int) string { return fmt.Sprint(i) }},
	} {
		b.Run(bench.name, func(b *testing.B) {
			f := toldFollower(own, func(lease.View) {})
			f.load(listing)
			f.publish()
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				i++
				l := listing.Leases[i%len(listing.Leases)]
				l.BackendData = bench.data(i)
				f.apply(registry.Event{Lease: l})
				if len(f.dirty) > 0 {
					f.publish()
				}
			}
		})
	}
	b.Run("listed", func(b *testing.B) {
		for b.Loop() {
			f := toldFollower(own, func(lease.View) {})
			f.load(listing)
			f.publish()
		}
	})
}
