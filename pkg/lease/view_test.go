package lease_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"flanneld/pkg/lease"
)

// at returns a lease of an IPv4 subnet with some value.
func at(subnet, says string) *lease.Lease { return of(ipv4(subnet), says) }

func of(subnets lease.Subnets, says string) *lease.Lease {
	return &lease.Lease{Subnets: subnets, Attrs: lease.Attrs{BackendType: says}}
}

var ipv6 = netip.MustParsePrefix("fd42:0:0:7::/64")

func ipv4(subnet string) lease.Subnets { return lease.SubnetsOf(netip.MustParsePrefix(subnet)) }

func TestNewView(t *testing.T) {
	all := []*lease.Lease{at("10.42.9.0/24", ""), at("10.42.7.0/24", ""), at("10.42.8.0/25", ""), at("10.42.8.0/24", ""), at("10.42.5.0/24", "")}
	all[4].Leaving = true
	v := lease.NewView(*all[1], all, true)
	if !slices.Equal(v.Peers, []*lease.Lease{all[3], all[2], all[0]}) || !v.Complete || v.Own != *all[1] {
		t.Errorf("view %+v", v)
	}
	if v := lease.NewView(*all[1], nil, false); len(v.Peers) != 0 || v.Complete {
		t.Errorf("view of nothing: %+v", v)
	}
	// A second view of the same leases does not change the first.
	before := slices.Clone(v.Peers)
	lease.NewView(*all[0], all, true)
	if !slices.Equal(v.Peers, before) {
		t.Errorf("view became %+v", v)
	}
}

func TestPeer(t *testing.T) {
	all := []*lease.Lease{at("10.42.9.0/24", ""), at("10.42.7.0/24", ""), at("10.42.8.0/25", ""), at("10.42.8.0/24", ""), at("10.42.5.0/24", "")}
	all[4].Leaving = true
	v := lease.NewView(*all[1], all, true)
	for _, l := range []*lease.Lease{all[0], all[2], all[3]} {
		if got := v.Peer(l.Subnets); got != l {
			t.Errorf("peer %s is %+v", l.Subnets, got)
		}
	}
	for _, s := range []lease.Subnets{all[1].Subnets, all[4].Subnets, ipv4("10.42.8.128/25"), ipv4("255.0.0.0/8"), lease.SubnetsOf(all[0].Subnets.V4(), ipv6), {}} {
		if got := v.Peer(s); got != nil {
			t.Errorf("peer %s is %+v", s, got)
		}
		if got := (lease.View{}).Peer(s); got != nil {
			t.Errorf("peer %s of an empty view is %+v", s, got)
		}
	}
}

// since returns the result of ChangesSince as text: -subnet, +subnet or ~subnet.
func since(v, old lease.View) string {
	var out []string
	for was, is := range v.ChangesSince(old) {
		switch {
		case was == nil:
			out = append(out, "+"+is.Subnets.String()+is.BackendType)
		case is == nil:
			out = append(out, "-"+was.Subnets.String()+was.BackendType)
		default:
			out = append(out, "~"+is.Subnets.String()+was.BackendType+is.BackendType)
		}
	}
	return strings.Join(out, " ")
}

func TestSince(t *testing.T) {
	a, b, c := at("10.42.1.0/24", "a"), at("10.42.2.0/24", "b"), at("10.42.3.0/24", "c")
	wide, copied, changed := at("10.42.2.0/23", "w"), at("10.42.2.0/24", "b"), at("10.42.2.0/24", "x")
	copied.Revision = 7
	for _, test := range []struct {
		name     string
		old, now []*lease.Lease
		want     string
	}{
		{"nothing", nil, nil, ""},
		{"first", nil, []*lease.Lease{a, b}, "+10.42.1.0/24a +10.42.2.0/24b"},
		{"last", []*lease.Lease{a, b}, nil, "-10.42.1.0/24a -10.42.2.0/24b"},
		{"shared", []*lease.Lease{a, b}, []*lease.Lease{a, b}, ""},
		{"renewed", []*lease.Lease{a, b, c}, []*lease.Lease{a, copied, c}, ""},
		{"changed", []*lease.Lease{a, b, c}, []*lease.Lease{a, changed, c}, "~10.42.2.0/24bx"},
		{"at the ends", []*lease.Lease{b}, []*lease.Lease{a, b, c}, "+10.42.1.0/24a +10.42.3.0/24c"},
		{"from the ends", []*lease.Lease{a, b, c}, []*lease.Lease{b}, "-10.42.1.0/24a -10.42.3.0/24c"},
		{"in the middle", []*lease.Lease{a, c}, []*lease.Lease{a, b, c}, "+10.42.2.0/24b"},
		{"another length", []*lease.Lease{a, b}, []*lease.Lease{a, wide}, "+10.42.2.0/23w -10.42.2.0/24b"},
		{"all at once", []*lease.Lease{a, b}, []*lease.Lease{changed, c}, "-10.42.1.0/24a ~10.42.2.0/24bx +10.42.3.0/24c"},
	} {
		if got := since(lease.View{Peers: test.now}, lease.View{Peers: test.old}); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
	for was := range (lease.View{}).ChangesSince(lease.View{Peers: []*lease.Lease{a, b}}) { // a reader may stop
		if was != a {
			t.Errorf("first is %+v", was)
		}
		break
	}
}

// network is a set of leases with random changes.
type network struct {
	r      *rand.Rand
	leases map[lease.Subnets]*lease.Lease
}

func newNetwork(seed uint64) *network {
	return &network{rand.New(rand.NewPCG(seed, 0)), map[lease.Subnets]*lease.Lease{}}
}

// subnets returns random subnets out of few, so that they overlap.
func (n *network) subnets() lease.Subnets {
	s := lease.SubnetsOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 42, byte(n.r.IntN(40)), 0}), 23+n.r.IntN(3)).Masked())
	if n.r.IntN(4) == 0 {
		s = lease.SubnetsOf(s.V4(), ipv6)
	}
	return s
}

// change changes one lease or none and returns its subnets.
func (n *network) change() lease.Subnets {
	s := n.subnets()
	old := n.leases[s]
	switch k := n.r.IntN(8); {
	case k < 2:
		delete(n.leases, s)
	case k == 2 && old != nil: // a renewal
		renewed := *old
		renewed.Revision++
		n.leases[s] = &renewed
	default:
		n.leases[s] = of(s, fmt.Sprint(n.r.IntN(3)))
		n.leases[s].Leaving = k == 3
	}
	return s
}

func (n *network) all() []*lease.Lease { return slices.Collect(maps.Values(n.leases)) }

func (n *network) own() lease.Lease { return *of(n.subnets(), fmt.Sprint(n.r.IntN(2))) }

// TestSinceAgainstMaps compares ChangesSince with lookups of all subnets in both views.
func TestSinceAgainstMaps(t *testing.T) {
	for seed := range uint64(300) {
		n := newNetwork(seed)
		own := n.own()
		for range n.r.IntN(60) {
			n.change()
		}
		old := lease.NewView(own, n.all(), true)
		for range n.r.IntN(60) {
			n.change()
		}
		if n.r.IntN(4) == 0 {
			own = n.own()
		}
		v := lease.NewView(own, n.all(), true)
		subnets := map[lease.Subnets]bool{}
		for _, l := range slices.Concat(old.Peers, v.Peers) {
			subnets[l.Subnets] = true
		}
		type pair struct{ was, is *lease.Lease }
		var want, got []pair
		for _, s := range slices.SortedFunc(maps.Keys(subnets), lease.Subnets.Compare) {
			p := pair{old.Peer(s), v.Peer(s)}
			if p.was == nil || p.is == nil || !p.was.SameAs(*p.is) {
				want = append(want, p)
			}
		}
		for was, is := range v.ChangesSince(old) {
			got = append(got, pair{was, is})
		}
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d: %+v, want %+v", seed, got, want)
		}
	}
}

// TestEditAgainstNewView compares each edited view with a new view of all leases.
func TestEditAgainstNewView(t *testing.T) {
	seeds := uint64(200)
	if testing.Short() { // on an emulated processor
		seeds = 40
	}
	for seed := range seeds {
		n := newNetwork(seed)
		own := n.own()
		v := lease.NewView(own, nil, true)
		for range 50 {
			var dirty []lease.Subnets
			for range n.r.IntN(1 + n.r.IntN(20)) {
				dirty = append(dirty, n.change())
			}
			if n.r.IntN(5) == 0 {
				own = n.own()
			}
			before := slices.Clone(v.Peers)
			next, changed := v.Edit(own, dirty, func(s lease.Subnets) *lease.Lease { return n.leases[s] })
			if !slices.Equal(v.Peers, before) {
				t.Fatalf("seed %d: the old view was changed", seed)
			}
			want := lease.NewView(own, n.all(), true)
			same := func(a, b *lease.Lease) bool { return a.SameAs(*b) }
			if next.Own != own || !next.Complete || !slices.EqualFunc(next.Peers, want.Peers, same) {
				t.Fatalf("seed %d: view %+v, want %+v", seed, next, want)
			}
			if differs := !own.SameAs(v.Own) || since(next, v) != ""; changed != differs {
				t.Fatalf("seed %d: changed is %v, but the difference %q", seed, changed, since(next, v))
			}
			for _, l := range next.Peers {
				if was := v.Peer(l.Subnets); was != nil && was.SameAs(*l) && was.Stale == l.Stale && was.Created == l.Created && was != l {
					t.Fatalf("seed %d: %s says the same and is another pointer", seed, l.Subnets)
				}
			}
			v = next
		}
	}
}

// TestOverlaps compares Overlaps with a linear search.
func TestOverlaps(t *testing.T) {
	for seed := range uint64(200) {
		n := newNetwork(seed)
		for range n.r.IntN(20) {
			n.change()
		}
		v := lease.NewView(n.own(), n.all(), true)
		for range 50 {
			s := n.subnets()
			want := slices.ContainsFunc(v.Peers, func(l *lease.Lease) bool { return l.Subnets != s && l.Subnets.V4().Overlaps(s.V4()) })
			if got := v.Overlaps(s); got != want {
				t.Fatalf("seed %d: %s overlaps a peer: %v, want %v", seed, s, got, want)
			}
		}
	}
}

func BenchmarkEdit(b *testing.B) {
	const size = 20000
	leases := map[lease.Subnets]*lease.Lease{}
	var subnets []lease.Subnets
	for i := range size {
		s := lease.SubnetsOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
		subnets, leases[s] = append(subnets, s), of(s, "vxlan")
	}
	v := lease.NewView(lease.Lease{}, slices.Collect(maps.Values(leases)), true)
	i := 0
	for _, n := range []int{1, 100, size} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				dirty := subnets[:n]
				for _, s := range dirty {
					i++
					changed := *leases[s]
					changed.BackendData = fmt.Sprint(i)
					leases[s] = &changed
				}
				v, _ = v.Edit(v.Own, dirty, func(s lease.Subnets) *lease.Lease { return leases[s] })
			}
		})
	}
}

func BenchmarkNewView(b *testing.B) {
	n := newNetwork(1)
	for i := range 20000 {
		s := lease.SubnetsOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
		n.leases[s] = of(s, "vxlan")
	}
	for b.Loop() {
		lease.NewView(lease.Lease{}, n.all(), true)
	}
}
