package dataplane

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

var network = netip.MustParsePrefix("10.5.0.0/16")

// chance generates states from few values, so that objects often have equal keys.
type chance struct{ *rand.Rand }

func (c chance) one(percent int) bool { return c.IntN(100) < percent }

func (c chance) mac() MAC { return MAC{2, 5: byte(c.IntN(6))} }

func (c chance) link() Link {
	return Link{
		Kind: KindVXLAN, VNI: 1, Parent: "eth0", Local: netip.MustParseAddr("192.0.2.1"), Port: 8472 + c.IntN(2), GBP: c.one(20),
		Learning: c.one(30), MAC: c.mac(), MTU: 1450 - c.IntN(2), Up: true,
	}
}

// subnet returns one of few prefixes, inside the network or just outside.
func (c chance) subnet() netip.Prefix {
	second := byte(5)
	if c.one(10) {
		second = 6
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, second, byte(2 + c.IntN(6)), 0}), 24)
}

func (c chance) want() State {
	s := NewState()
	for _, name := range []string{"flannel.1", "flannel.2"}[:c.IntN(3)] {
		l := c.link()
		if c.one(20) {
			l.MAC = MAC{}
		}
		s.Links[name] = l
		s.Sysctls[sysctlOf(name)] = "0"
		bits := 32
		if c.one(20) {
			bits = 16
		}
		s.Addrs[Addr{name, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(c.IntN(2)), 0}), bits)}] = struct{}{}
	}
	taken := map[MAC]bool{}
	for range c.IntN(8) {
		dst := c.subnet()
		if second := dst.Addr().As4()[1]; second != 5 || c.usedSlot(s, dst, 0) {
			continue
		}
		mac := c.mac()
		if len(s.Links) == 0 || c.one(25) || taken[mac] {
			s.Routes[RouteKey{Dst: dst, Link: "eth0"}] = Route{Via: netip.AddrFrom4([4]byte{192, 0, 2, byte(2 + c.IntN(3))}), Proto: ProtoFlannel}
			continue
		}
		taken[mac] = true
		name := slices.Sorted(maps.Keys(s.Links))[c.IntN(len(s.Links))]
		s.FDB[FDB{name, mac, netip.AddrFrom4([4]byte{192, 0, 2, byte(2 + c.IntN(3))})}] = struct{}{}
		s.Neighs[NeighKey{name, dst.Addr()}] = mac
		s.Routes[RouteKey{Dst: dst, Link: name}] = Route{Via: dst.Addr(), OnLink: true, Proto: ProtoBoot}
	}
	if c.one(20) {
		s.Routes[RouteKey{Dst: netip.MustParsePrefix("10.5.2.0/24"), Metric: 1 + c.Uint32N(2)}] = Route{Blackhole: true, Proto: ProtoFlannel}
	}
	return s
}

func (c chance) usedSlot(s State, dst netip.Prefix, metric uint32) bool {
	for k := range s.Routes {
		if k.Dst == dst && k.Metric == metric {
			return true
		}
	}
	return false
}

// have returns the state of a kernel that other programs have changed: partly as wanted, partly
// damaged, and with foreign objects.
func (c chance) have(want State) *model {
	m := newModel(NewState())
	m.Links["eth0"] = Link{Kind: "device", MTU: 1500, Up: true}
	m.Sysctls[sysctlOf("eth0")] = "1"
	m.Addrs[Addr{"eth0", netip.MustParsePrefix("192.0.2.1/24")}] = struct{}{}
	for _, name := range []string{"flannel.1", "flannel.2", "other"} {
		l, wanted := want.Links[name]
		switch {
		case c.one(20):
			continue
		case !wanted || c.one(40):
			l = c.link()
		case l.MAC == MAC{}:
			l.MAC = c.mac()
		}
		if c.one(10) {
			l = Link{Kind: "bridge", MAC: c.mac(), MTU: 1500, Up: true}
		}
		l.Up = c.one(80)
		m.Links[name] = l
		m.Sysctls[sysctlOf(name)] = []string{"0", "1"}[c.IntN(2)]
	}
	links := slices.Sorted(maps.Keys(m.Links))
	some := func() string { return links[c.IntN(len(links))] }
	for a := range want.Addrs {
		if c.one(60) {
			c.put(m, KindAddr.Put(a, struct{}{}))
		}
	}
	for range c.IntN(4) {
		c.put(m, KindAddr.Put(Addr{some(), netip.PrefixFrom(c.subnet().Addr(), []int{32, 16}[c.IntN(2)])}, struct{}{}))
	}
	for f := range want.FDB {
		if c.one(70) {
			c.put(m, KindFDB.Put(f, struct{}{}))
		}
	}
	for k, mac := range want.Neighs {
		if c.one(70) {
			c.put(m, KindNeigh.Put(k, mac))
		}
	}
	for range c.IntN(5) {
		c.put(m, KindFDB.Put(FDB{some(), c.mac(), netip.MustParseAddr("192.0.2.9")}, struct{}{}))
		c.put(m, KindNeigh.Put(NeighKey{some(), c.subnet().Addr()}, c.mac()))
	}
	for k, r := range want.Routes {
		if c.one(20) {
			_ = m.apply(KindNextHop.Put(NextHopID(k.Dst), NextHop{Link: some(), Via: r.Via, Proto: 4}))
		}
		if through, hop, ok := r.nextHop(k); ok && c.one(30) {
			hop.OnLink = hop.OnLink && c.one(80)
			if c.one(30) {
				k.Link = some()
				hop.Link = k.Link
			}
			c.put(m, KindNextHop.Put(through.NextHop, hop))
			if h, ok := m.NextHops[through.NextHop]; ok && h == hop && c.one(70) {
				c.put(m, KindRoute.Put(k, through))
			}
		} else if c.one(60) {
			c.put(m, KindRoute.Put(k, r))
		}
	}
	c.routes(m, some)
	return m
}

// These are foreign routes with unused keys.
func (c chance) routes(m *model, some func() string) {
	for range c.IntN(6) {
		k := RouteKey{Dst: c.subnet(), Link: some(), Metric: c.Uint32N(2)}
		r := Route{Via: k.Dst.Addr(), Proto: []int{ProtoKernel, ProtoBoot, 4, ProtoFlannel}[c.IntN(4)]}
		if r.Proto == ProtoKernel {
			r.Via = netip.Addr{}
		}
		if c.one(10) {
			k.Link, r.Via = "", netip.Addr{}
			if c.one(50) {
				r = Route{Blackhole: true, Proto: ProtoFlannel}
			}
		}
		if !c.usedSlot(m.State, k.Dst, k.Metric) {
			m.Routes[k] = r
		}
	}
}

// put adds an object if that is possible.
func (c chance) put(m *model, o Op) {
	if l, ok := m.Links[o.Device()]; ok && l.Up {
		_ = m.apply(o)
	}
}

// trials returns the number of random cases per property, which is lower on an emulated processor.
func trials() int {
	if testing.Short() {
		return 1000
	}
	return 20000
}

func TestDiffProperties(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	c := chance{rand.New(rand.NewPCG(seed, 1))}
	for range trials() {
		want := c.want()
		m := c.have(want)
		before := newModel(m.State).State
		scope := want.ScopeOf([]netip.Prefix{network})
		scope.NextHops, scope.Spread = c.one(50), c.one(50)
		if problem := check(want, m, scope, c.one(80)); problem != "" {
			t.Fatalf("%s\nwant:\n%s\nhave:\n%s", problem, want.Text(), before.Text())
		}
	}
}

func check(want State, m *model, scope Scope, prune bool) string {
	have := newModel(m.State).State
	delta := Diff(want, have, scope, prune)
	ops, conflicts := slices.Collect(delta.Ops()), delta.Conflicts
	all := "\noperations:\n" + commands(ops)
	for _, o := range ops {
		if problem := needless(o, have, ops); problem != "" {
			return "P3: " + problem + all
		}
		if err := m.ordered(o, want, scope); err != nil && len(conflicts) == 0 {
			return "P5: " + err.Error() + all
		}
		if err := m.apply(o); err != nil {
			return "P5: " + err.Error() + all
		}
	}
	if again := slices.Collect(Diff(want, m.State, scope, prune).Ops()); len(again) > 0 {
		return "P2: the second pass does " + commands(again) + all
	}
	if missing := missing(want, m.State, scope, conflicts); missing != "" {
		return "P1: " + missing + " is missing" + all
	}
	if prune {
		if left := left(want, m.State, have, scope); left != "" {
			return "P1: " + left + " is left over" + all
		}
	}
	if touched := touched(want, have, m.State, scope, prune); touched != "" {
		return "P4: " + touched + " is not ours" + all
	}
	return ""
}

func commands(ops []Op) string {
	var b strings.Builder
	for _, o := range ops {
		b.WriteString(o.String() + "\n")
	}
	return b.String()
}

// needless returns a Put of an existing object, unless its link is recreated or loses its
// neighbours.
func needless(o Op, have State, ops []Op) string {
	for _, other := range ops {
		if other.Kind == KindLink && other.Device() == o.Device() {
			return ""
		}
	}
	if o.Verb != Put || !have.Has(o) || o.Kind == KindLink {
		return ""
	}
	after := NewState()
	after.Add(have)
	if after.Update(o); after.Equal(have) {
		return o.String() + " changes nothing"
	}
	return ""
}

// lines returns the objects of a state as text.
func lines(s State) map[string]bool {
	all := map[string]bool{}
	for line := range strings.Lines(s.Text()) {
		all[strings.TrimSuffix(line, "\n")] = true
	}
	return all
}

// objects calls each with the objects of a state until it returns false.
func (s State) objects(yield func(Op, string) bool) {
	for _, k := range kinds {
		for o := range s.Objects(k) {
			if !yield(o, k.text(o.object)) {
				return
			}
		}
	}
}

// missing returns a wanted object that does not exist although no foreign object blocks it.
func missing(want, got State, scope Scope, conflicts []Conflict) string {
	excused := map[string]bool{}
	for _, c := range conflicts {
		excused[c.Op.Object()] = true
	}
	have := lines(got)
	for o, text := range want.objects {
		name, link := KindLink.Of(o)
		switch {
		case excused[o.Object()] || excused["link "+o.Device()]:
		case o.Kind == KindRoute:
			if problem := missingRoute(o, got, scope); problem != "" {
				return problem
			}
		case o.Kind == KindLink && got.Links[name].satisfies(link):
		case !have[text]:
			return text
		}
	}
	return ""
}

func missingRoute(o Op, got State, scope Scope) string {
	k, r := KindRoute.Of(o)
	if through, hop, ok := r.nextHop(k); ok && scope.NextHops && got.NextHops[through.NextHop] == hop {
		r = through
	} else if ok && scope.NextHops && got.NextHops[through.NextHop].Proto == ProtoFlannel {
		return "the nexthop of " + routeText(k, r)
	} else if scope.Spread {
		r = r.spread(k)
	}
	if got.Routes[k] != r {
		return "route " + routeText(k, r)
	}
	return ""
}

// blocked reports whether a foreign device has the name of a wanted link.
func blocked(want, have State, link string) bool {
	l, ok := have.Links[link]
	w, wanted := want.Links[link]
	return ok && wanted && l.Kind != w.Kind
}

// remade reports whether a link cannot be changed in place to what is wanted.
func remade(want, have State, link string) bool {
	l, ok := have.Links[link]
	w, wanted := want.Links[link]
	return ok && wanted && l.Kind == w.Kind && !l.reusable(w)
}

// left returns an object of ours that still exists although it is not wanted.
func left(want, got, have State, scope Scope) string {
	for o, text := range got.objects {
		needed := want.Has(o)
		if id, h := KindNextHop.Of(o); o.Kind == KindNextHop {
			for k, r := range got.Routes {
				needed = needed || r.NextHop == id && want.Routes[k].Via == h.Via
			}
		}
		if !needed && deletable(o, scope) && !blocked(want, have, o.Device()) {
			return text
		}
	}
	return ""
}

// deletable reports whether an object is ours to delete by itself.
func deletable(o Op, scope Scope) bool {
	switch o.Kind {
	case KindLink, KindSysctl:
		return false
	case KindAddr:
		a, _ := KindAddr.Of(o)
		return scope.OwnsAddr(a)
	case KindNextHop:
		return scope.OwnsNextHop(KindNextHop.Of(o))
	case KindRoute:
		k, r := KindRoute.Of(o)
		return scope.OwnsRoute(k, r) && r.Proto != ProtoKernel
	}
	return scope.OwnsLink(o.Device())
}

// touched returns a foreign object that has changed, or any object that was deleted without prune.
// A wanted route may replace another with the same destination and metric.
func touched(want, before, after State, scope Scope, prune bool) string {
	slots := map[RouteKey]bool{}
	for k := range want.Routes {
		slots[RouteKey{Dst: k.Dst, Metric: k.Metric}] = true
	}
	now := lines(after)
	for o, text := range before.objects {
		var mine bool
		free := !blocked(want, before, o.Device())
		k, r := KindRoute.Of(o)
		switch o.Kind {
		case KindAddr:
			mine = prune && free && deletable(o, scope)
		case KindNextHop: // by its ID, on any link
			mine = (prune || scope.NextHops) && deletable(o, scope)
		case KindRoute:
			mine = prune && free && scope.OwnsRoute(k, r) || slots[RouteKey{Dst: k.Dst, Metric: k.Metric}]
		default:
			mine = free && scope.OwnsLink(o.Device())
		}
		if !now[text] && !mine && !remade(want, before, o.Device()) {
			return text
		}
	}
	for k, r := range after.Routes {
		through, _, _ := want.Routes[k].nextHop(k)
		if before.Routes[k] != r && want.Routes[k] != r && want.Routes[k].spread(k) != r && through != r && r.Proto != ProtoKernel {
			return "new route " + routeText(k, r)
		}
	}
	return ""
}
