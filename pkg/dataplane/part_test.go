package dataplane

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// A change of some peers results in the same operations whether only their parts are compared or
// the whole states.
func TestPartDiff(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	c := chance{rand.New(rand.NewPCG(seed, 1))}
	compared := 0
	for range trials() {
		want := c.want()
		maps.DeleteFunc(want.Routes, func(_ RouteKey, r Route) bool { return r.Blackhole })
		m := c.have(want)
		scope := want.ScopeOf([]netip.Prefix{network})
		scope.NextHops, scope.Spread = c.one(50), c.one(50)
		delta := Diff(want, m.State, scope, true)
		for o := range delta.Ops() {
			if err := m.apply(o); err != nil {
				t.Fatal(err)
			}
		}
		if len(delta.Conflicts) > 0 {
			continue
		}
		was, now := c.change(want)
		part := slices.Collect(Diff(now, m.Part(was, now), scope, true).Ops())
		text := want.Text()
		want.Remove(was)
		want.Add(now)
		whole := Diff(want, m.State, scope, true)
		if all := slices.Collect(whole.Ops()); commands(part) != commands(all) {
			t.Fatalf("of the part:\n%s\nof the whole:\n%s\nwas:\n%s\nnow:\n%s\nwant:\n%s\nhave:\n%s",
				commands(part), commands(all), was.Text(), now.Text(), text, m.Text())
		}
		if len(part) == 0 {
			continue
		}
		compared++
		for _, o := range part {
			m.Update(o)
		}
		if len(whole.Conflicts) == 0 {
			if again := slices.Collect(Diff(now, m.Part(was, now), scope, true).Ops()); len(again) > 0 {
				t.Fatalf("after it was noted, it is done again:\n%s", commands(again))
			}
		}
	}
	if compared < trials()/20 {
		t.Errorf("only %d changes were compared", compared)
	}
}

// change removes some peers' objects from a state and adds others, some of them with the same keys.
func (c chance) change(s State) (was, now State) {
	was, now = NewState(), NewState()
	for k, r := range s.Routes {
		if c.one(30) {
			was.Routes[k] = r
		}
	}
	for f := range s.FDB {
		if c.one(30) {
			was.FDB[f] = struct{}{}
		}
	}
	for k, mac := range s.Neighs {
		if c.one(30) {
			was.Neighs[k] = mac
		}
	}
	rest := NewState()
	rest.Add(s)
	rest.Remove(was)
	links := append(slices.Sorted(maps.Keys(s.Links)), "eth0")
	for range c.IntN(4) {
		dst, link := c.subnet(), links[c.IntN(len(links))]
		if !network.Contains(dst.Addr()) || c.usedSlot(rest, dst, 0) || c.usedSlot(now, dst, 0) {
			continue
		}
		r := Route{Via: dst.Addr(), OnLink: true, Proto: ProtoBoot}
		if link == "eth0" {
			r = Route{Via: dst.Addr(), Proto: ProtoFlannel}
		} else if f := (FDB{link, c.mac(), dst.Addr()}); !has(rest.FDB, f) && !has(rest.Neighs, NeighKey{link, dst.Addr()}) {
			now.FDB[f] = struct{}{}
			now.Neighs[NeighKey{link, dst.Addr()}] = f.MAC
		}
		now.Routes[RouteKey{Dst: dst, Link: link}] = r
	}
	return was, now
}

func has[K comparable, V any](m map[K]V, k K) bool {
	_, ok := m[k]
	return ok
}
