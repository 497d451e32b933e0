package registrytest

import (
	"context"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// watch checks that a waiting watch returns writes of the registry and of others.
func (s *suite) watch() {
	index := s.listing().Index
	type result struct {
		events []registry.Event
		err    error
	}
	got := make(chan result, 1)
	go func() {
		var r result
		for r.err == nil && len(r.events) == 0 {
			r.events, index, r.err = s.Registry.Watch(s.ctx, index)
		}
		got <- r
	}()
	s.Put(lease.Key(subnets(8)), s.value(8), ttl)
	r := <-got
	if r.err != nil || len(r.events) != 1 || r.events[0].Lease.Attrs != attrs(8) {
		s.Fatalf("watch returned %+v", r)
	}
	s.create(subnets(7), attrs(7), ttl)
	s.Put(lease.Key(subnets(7)), s.value(9), 0)
	s.Remove(lease.Key(subnets(8)))
	events, _ := s.events(index, 3)
	if events[0].Lease.Attrs != attrs(7) || events[1].Lease.Attrs != attrs(9) || !events[1].Lease.Reservation() {
		s.Errorf("events %+v", events)
	}
	if !events[2].Deleted || events[2].Lease.Subnets != subnets(8) {
		s.Errorf("last event %+v", events[2])
	}
}

// watchFromIndex checks that events that happened without a watch are returned later, once and in
// order.
func (s *suite) watchFromIndex() {
	index := s.listing().Index
	const n = 50
	for i := range n {
		s.Put(lease.Key(subnets(i)), s.value(i), ttl)
	}
	events, next := s.events(index, n)
	for i, ev := range events {
		if ev.Lease.Attrs != attrs(i) {
			s.Fatalf("event %d is %+v", i, ev)
		}
	}
	again, _ := s.events(events[n-2].Lease.Revision, 1)
	if again[0].Lease.Revision != events[n-1].Lease.Revision {
		s.Errorf("after the last but one: %+v", again)
	}
	ctx, cancel := context.WithTimeout(s.ctx, 200*time.Millisecond)
	defer cancel()
	if more, _, err := s.Registry.Watch(ctx, next); len(more) != 0 || (err != nil && ctx.Err() == nil) {
		s.Errorf("after the last: %+v, %v", more, err)
	}
}

func (s *suite) watchContext() {
	index := s.listing().Index
	ctx, cancel := context.WithCancel(s.ctx)
	done := make(chan error, 1)
	go func() {
		_, _, err := s.Registry.Watch(ctx, index)
		done <- err
	}()
	s.pause()
	cancel()
	select {
	case err := <-done:
		s.want(err, context.Canceled)
	case <-time.After(5 * time.Second):
		s.Error("watch goes on without its context")
	}
	s.want(errorOf(s.Registry.List(ctx)), context.Canceled)
}

// watchBad checks that entries that are no leases are reported and do not stop the watch.
func (s *suite) watchBad() {
	index := s.listing().Index
	for key, b := range badValues() {
		s.Put(key, b.value, 0)
	}
	s.Put(lease.Key(subnets(7)), s.value(7), ttl)
	events, index := s.events(index, len(badValues())+1)
	for _, ev := range events[:len(badValues())] {
		given, ok := badValues()[ev.Invalid.Key]
		if !ok || ev.Deleted || ev.Invalid.Err == nil || ev.Invalid.Subnets.IsValid() != given.good {
			s.Errorf("event %+v", ev)
		}
	}
	if last := events[len(badValues())]; last.Lease.Attrs != attrs(7) {
		s.Errorf("last event %+v", last)
	}
	for key := range badValues() {
		s.Remove(key)
	}
	events, _ = s.events(index, len(badValues()))
	for _, ev := range events {
		if !ev.Deleted || (ev.Invalid == nil) != ev.Lease.Subnets.IsValid() {
			s.Errorf("event %+v", ev)
		}
		if ev.Invalid != nil {
			if given, ok := badValues()[ev.Invalid.Key]; !ok || given.good {
				s.Errorf("event %+v", ev)
			}
		}
	}
}

func (s *suite) watchExpiry() {
	index := s.listing().Index
	l := s.create(subnets(7), attrs(7), time.Second)
	events, _ := s.events(index, 2)
	if gone := events[1]; !gone.Deleted || gone.Lease.Subnets != subnets(7) || gone.Lease.Revision <= l.Revision {
		s.Errorf("event %+v", gone)
	}
}

func (s *suite) historyForgotten() {
	index := s.listing().Index
	s.Put(lease.Key(subnets(7)), s.value(7), ttl)
	s.ForgetHistory()
	_, _, err := s.Registry.Watch(s.ctx, index)
	s.want(err, registry.ErrHistoryLost)
	l := s.listing()
	s.Put(lease.Key(subnets(8)), s.value(8), ttl)
	events, _ := s.events(l.Index, 1)
	if events[0].Lease.Subnets != subnets(8) {
		s.Errorf("event %+v", events[0])
	}
}

func (s *suite) allDeleted() {
	s.Put(lease.Key(subnets(7)), s.value(7), ttl)
	s.Put(lease.Key(subnets(8)), s.value(8), ttl)
	index := s.listing().Index
	s.RemoveAll()
	// One event for all leases cannot be reported by lease; one for each can.
	gone := map[lease.Subnets]bool{}
	var err error
	for err == nil && len(gone) < 2 {
		var events []registry.Event
		events, index, err = s.Registry.Watch(s.ctx, index)
		for _, ev := range events {
			if !ev.Deleted || ev.Invalid != nil {
				s.Errorf("event %+v", ev)
			}
			gone[ev.Lease.Subnets] = true
		}
	}
	if err != nil {
		s.want(err, registry.ErrHistoryLost)
	} else if !gone[subnets(7)] || !gone[subnets(8)] {
		s.Errorf("deleted: %v", gone)
	}
	l := s.listing()
	if len(l.Leases) != 0 {
		s.Errorf("listing %+v", l)
	}
	s.create(subnets(7), attrs(7), ttl)
	// The directory is created again implicitly. That is no event of a lease.
	events, _ := s.events(l.Index, 1)
	if events[0].Lease.Attrs != attrs(7) {
		s.Errorf("event %+v", events[0])
	}
}
