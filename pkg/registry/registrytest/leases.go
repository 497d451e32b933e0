package registrytest

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

func (s *suite) lifecycle() {
	index := s.listing().Index
	made := s.create(subnets(7), attrs(1), ttl)
	renewed := s.update(made, attrs(1), ttl)
	changed := s.update(renewed, attrs(2), ttl)
	if !made.SameAs(renewed) || made.Revision >= renewed.Revision || renewed.Revision >= changed.Revision {
		s.Errorf("made %+v, renewed %+v, changed %+v", made, renewed, changed)
	}
	if changed.Created != made.Created || changed.Attrs != attrs(2) {
		s.Errorf("made %+v, changed %+v", made, changed)
	}
	if got := s.only(); got.Attrs != attrs(2) || got.Revision != changed.Revision {
		s.Errorf("listed %+v, want %+v", got, changed)
	}
	s.must(s.Registry.Release(s.ctx, changed))
	events, _ := s.events(index, 5)
	if l := s.listing(); len(l.Leases) != 0 {
		s.Errorf("listing %+v", l)
	}
	for i, want := range []lease.Lease{made, renewed, changed} {
		if got := events[i]; got.Deleted || got.Lease.Revision != want.Revision || !got.Lease.SameAs(want) {
			s.Errorf("event %d is %+v, want %+v", i, got, want)
		}
	}
	if left := events[3].Lease; !left.Leaving || left.Reservation() || left.Created != made.Created {
		s.Errorf("the released lease became %+v", left)
	}
	if last := events[4]; !last.Deleted || last.Lease.Subnets != subnets(7) || last.Lease.Revision <= changed.Revision {
		s.Errorf("last event is %+v", last)
	}
}

// leaving checks that all methods report that a lease is being given up, and that writing it
// without Leaving ends this.
func (s *suite) leaving() {
	index := s.listing().Index
	made := s.create(subnets(7), attrs(1), ttl)
	a := attrs(1)
	a.Leaving = true
	marked := s.update(made, a, time.Minute)
	ev := s.get(subnets(7))
	for _, l := range []lease.Lease{marked, ev.Lease, s.only()} {
		if l.Attrs != a || l.SameAs(made) || l.Reservation() {
			s.Errorf("lease %+v, want one with %+v", l, a)
		}
	}
	s.want(errorOf(s.Registry.Create(s.ctx, subnets(7), attrs(2), ttl)), registry.ErrConflict) // the subnet is still leased
	back := s.update(marked, attrs(1), ttl)
	if got := s.only(); !got.SameAs(made) || !back.SameAs(made) {
		s.Errorf("listed %+v, want %+v", got, made)
	}
	events, _ := s.events(index, 3)
	for i, ev := range events {
		if ev.Deleted || ev.Invalid != nil || ev.Lease.Leaving != (i == 1) {
			s.Errorf("event %d is %+v", i, ev)
		}
	}
}

func (s *suite) conflicts() {
	first := s.create(subnets(7), attrs(1), ttl)
	s.want(errorOf(s.Registry.Create(s.ctx, subnets(7), attrs(1), ttl)), registry.ErrConflict)
	second := s.update(first, attrs(1), ttl)
	s.want(errorOf(s.Registry.Update(s.ctx, first, attrs(2), ttl)), registry.ErrConflict)
	s.want(s.Registry.Release(s.ctx, first), registry.ErrConflict)
	s.must(s.Registry.Release(s.ctx, second))
	s.want(errorOf(s.Registry.Update(s.ctx, second, attrs(2), ttl)), registry.ErrConflict)
	s.want(s.Registry.Release(s.ctx, second), registry.ErrConflict)
	// A write without a revision must fail: for etcd it would be unconditional.
	s.Put(lease.Key(subnets(7)), s.value(3), 0)
	s.want(errorOf(s.Registry.Update(s.ctx, lease.Lease{Subnets: subnets(7)}, attrs(2), ttl)), registry.ErrConflict)
	s.want(s.Registry.Release(s.ctx, lease.Lease{Subnets: subnets(7)}), registry.ErrConflict)
	if got := s.only(); got.Attrs != attrs(3) {
		s.Errorf("lease %+v", got)
	}
}

func (s *suite) reservation() {
	l := s.create(subnets(7), attrs(1), 0)
	for range 2 {
		if !l.Reservation() || !s.only().Reservation() {
			s.Errorf("%+v, listed %+v: not a reservation", l, s.only())
		}
		l = s.update(l, attrs(2), 0)
	}
	l = s.update(l, attrs(2), ttl)
	if l.Reservation() || s.only().Reservation() {
		s.Errorf("%+v: still a reservation", l)
	}
}

func (s *suite) preAssigned() {
	s.Put(lease.Key(subnets(7)), `{"publicip":"198.51.0.7","Unknown":[1]}`, 0)
	l := s.only()
	if l.Subnets != subnets(7) || l.PublicIP != attrs(7).PublicIP || !l.Reservation() {
		s.Errorf("lease %+v", l)
	}
	l = s.update(l, attrs(7), 0)
	if got := s.only(); !got.Reservation() || got.Attrs != attrs(7) || got.Revision != l.Revision {
		s.Errorf("lease %+v, want %+v", got, l)
	}
}

// dualStack checks that the lease and the key of a dual-stack host have both subnets, and that a
// lease of the IPv4 subnet alone is another one.
func (s *suite) dualStack() {
	const key = "10.42.7.0-24&fd42:0:0:7::-64"
	both := lease.SubnetsOf(subnets(7).V4(), netip.MustParsePrefix("fd42:0:0:7::/64"))
	index := s.listing().Index
	s.Put(key, s.value(1), ttl)
	l := s.only()
	if l.Subnets != both || l.Attrs != attrs(1) {
		s.Fatalf("lease %+v", l)
	}
	l = s.update(l, attrs(2), ttl)
	ev := s.get(both)
	if got := s.only(); got.Attrs != attrs(2) || got.Revision != l.Revision || !ev.Lease.SameAs(l) || ev.Lease.Revision != l.Revision {
		s.Errorf("lease %+v, read %+v, want %+v", got, ev, l)
	}
	stale := l
	stale.Revision--
	s.want(s.Registry.Release(s.ctx, stale), registry.ErrConflict)
	stale = l
	stale.Subnets = subnets(7)
	s.want(s.Registry.Release(s.ctx, stale), registry.ErrConflict)
	s.must(s.Registry.Release(s.ctx, l))
	events, _ := s.events(index, 4)
	for i, ev := range events {
		if ev.Lease.Subnets != both || ev.Deleted != (i == 3) || ev.Lease.Leaving != (i == 2) {
			s.Errorf("event %d is %+v", i, ev)
		}
	}
	// It is written again, beside one of the IPv4 subnet alone, which is removed.
	l = s.create(both, attrs(1), ttl)
	ev = s.get(subnets(7))
	_, err := s.Registry.Create(s.ctx, subnets(7), attrs(3), ttl)
	if refused := errors.Is(err, registry.ErrConflict); err != nil && !refused || refused == ev.Deleted || refused != ev.Lease.SameAs(l) {
		s.Errorf("there is %+v, and creating is refused: %v", ev, err)
	}
	s.Put(lease.Key(subnets(7)), s.value(3), ttl)
	if n := len(s.listing().Leases); n != 2 {
		s.Errorf("%d leases, want 2", n)
	}
	s.Remove(lease.Key(subnets(7)))
	if got := s.only(); !got.SameAs(l) {
		s.Errorf("lease %+v, want %+v", got, l)
	}
}

func (s *suite) creators() {
	var won, lost atomic.Int32
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			_, err := s.Registry.Create(s.ctx, subnets(7), attrs(i), ttl)
			switch {
			case err == nil:
				won.Add(1)
			case errors.Is(err, registry.ErrConflict):
				lost.Add(1)
			default:
				s.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 || lost.Load() != 15 {
		s.Errorf("%d won, %d lost", won.Load(), lost.Load())
	}
	l := s.only()
	won.Store(0)
	for i := range 16 {
		wg.Go(func() {
			if _, err := s.Registry.Update(s.ctx, l, attrs(i), ttl); err == nil {
				won.Add(1)
			} else if !errors.Is(err, registry.ErrConflict) {
				s.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		s.Errorf("%d updates of one revision won", won.Load())
	}
}

func (s *suite) ttl() {
	near := func(what string, l lease.Lease, want time.Duration) {
		s.Helper()
		if got := time.Until(l.Expires); got < want-10*time.Second || got > want+time.Second {
			s.Errorf("%s expires in %v, want %v", what, got, want)
		}
	}
	l := s.create(subnets(7), attrs(1), 24*time.Hour)
	near("created", l, 24*time.Hour)
	// A listing need not report when a lease expires, but that it does.
	if listed := s.only(); listed.Reservation() || listed.Expires.After(l.Expires.Add(time.Second)) {
		s.Errorf("listed as %+v", listed)
	}
	l = s.update(l, attrs(1), time.Hour)
	near("updated", l, time.Hour)
	ev := s.get(subnets(7))
	near("read", ev.Lease, time.Hour)
	l = s.update(l, attrs(1), 100*time.Millisecond)
	if l.Reservation() {
		s.Error("100 ms became forever")
	}
	// This subnet's lease expires by itself.
	s.create(subnets(9), attrs(1), time.Second)
	for s.ctx.Err() == nil && len(s.listing().Leases) > 0 {
		s.pause()
	}
}

func (s *suite) pause() {
	t := time.NewTimer(50 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.ctx.Done():
	}
}
