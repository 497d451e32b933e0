package subnet_test

import (
	"testing"
	"testing/synctest"
	"time"

	"flanneld/pkg/subnet"
)

// TestStatsOfLeasesAndAnswers checks the state and the time of the last answer.
func TestStatsOfLeasesAndAnswers(t *testing.T) {
	following1(t, func(w *following) {
		s := w.stats()
		if s.Leases != 2 || s.Invalid != 0 || s.Own.Subnets != w.own.Subnets || s.Outages != 0 || s.Conflicts != 0 || s.Relists != (subnet.Stats{}).Relists {
			t.Errorf("stats at first: %+v", s)
		}
		w.reg.Put("10.42.9.0-24", value(them, 9), 0)
		w.reg.Put("10.42.10.0-24", "nonsense", 0)
		elapse(time.Second)
		s = w.stats()
		if s.Leases != 3 || s.Invalid != 1 || time.Since(s.Event) != time.Second || s.Answered != s.Event {
			t.Errorf("stats after two events: %+v", s)
		}
	})
}

// TestStatsOfOutages: each outage counts once, however many retries it has.
func TestStatsOfOutages(t *testing.T) {
	following1(t, func(w *following) {
		for n := range uint64(3) {
			w.reg.Fail(errAway)
			elapse(5 * time.Minute)
			if s := w.stats(); s.Outages != n+1 || s.AwaySince.IsZero() || time.Since(s.Answered) < 4*time.Minute {
				t.Errorf("in outage %d: %+v", n+1, s)
			}
			w.reg.Fail(nil)
			elapse(time.Minute)
			if s := w.stats(); s.Outages != n+1 || !s.AwaySince.IsZero() || time.Since(s.Answered) > time.Minute {
				t.Errorf("after outage %d: %+v", n+1, s)
			}
		}
	})
}

// TestStatsOfRelists: listings are counted by cause.
func TestStatsOfRelists(t *testing.T) {
	names := map[string]bool{}
	for c := range (subnet.Stats{}).Relists {
		names[subnet.Cause(c).String()] = true
	}
	for want, happens := range map[subnet.Cause]func(w *following){
		subnet.HistoryLost: func(w *following) {
			w.reg.SetHistory(0)
			w.reg.Put("10.42.9.0-24", value(third, 9), 0)
			w.reg.Put("10.42.9.0-24", value(third, 99), 0)
		},
		subnet.RolledBack: func(w *following) {
			for range 50 {
				w.reg.Put("10.42.8.0-24", value(them, 8), 0)
			}
			elapse(time.Second)
			w.reg.Wipe(0)
			w.reg.Put("10.42.8.0-24", value(them, 8), 0)
		},
		subnet.Behind: func(w *following) {
			w.reg.SetBatch(1)
			for i := range 10_000 {
				w.reg.Put("10.42.9.0-24", value(third, i), ttl)
				elapse(time.Millisecond)
			}
		},
		subnet.OwnLease: func(w *following) {
			w.outage(time.Minute, func() { w.reg.Put("10.42.7.0-24", "nonsense", ttl) })
		},
	} {
		t.Run(want.String(), func(t *testing.T) {
			following1(t, func(w *following) {
				happens(w)
				elapse(time.Minute)
				for c, n := range w.stats().Relists {
					if (n > 0) != (subnet.Cause(c) == want) {
						t.Errorf("%d listings for %s", n, subnet.Cause(c))
					}
				}
			})
		})
		delete(names, want.String())
	}
	if len(names) > 0 {
		t.Errorf("not tested: %v", names)
	}
}

// TestStatsOfConflicts: each foreign write of the own key counts once. Our own writes do not.
func TestStatsOfConflicts(t *testing.T) {
	following1(t, func(w *following) {
		elapse(2 * ttl) // renewals
		for n, v := range []string{value(me, 99), "nonsense", value(me, 1), value(me, 99)} {
			w.reg.Put("10.42.7.0-24", v, ttl)
			elapse(10 * time.Minute)
			if s := w.stats(); s.Conflicts != uint64(n+1) || s.Moves != 0 {
				t.Errorf("after %s: %d conflicts, %d moves, want %d and none", v, s.Conflicts, s.Moves, n+1)
			}
		}
		w.reg.Remove("10.42.7.0-24")
		elapse(10 * time.Minute)
		if s := w.stats(); s.Conflicts != 4 {
			t.Errorf("%d conflicts after the key was deleted, want 4", s.Conflicts)
		}
		w.reg.Remove("10.42.7.0-24")
		w.reg.Put("10.42.7.0-24", value(them, 70), 0)
		elapse(10 * time.Minute)
		if s := w.stats(); s.Conflicts != 5 || s.Moves != 1 {
			t.Errorf("%d conflicts and %d moves after the subnet was lost, want 5 and 1", s.Conflicts, s.Moves)
		}
	})
}

// TestViewsHaveTheTimeOfTheirEvent: a view has the time of the first event since the previous one
// that changed a peer; renewals and deletions, which are retained for a while, do not count.
func TestViewsHaveTheTimeOfTheirEvent(t *testing.T) {
	following1(t, func(w *following) {
		w.take()
		elapse(time.Minute)
		at := time.Now()
		w.reg.Put("10.42.9.0-24", value(third, 9), ttl)
		synctest.Wait()
		w.reg.Put("10.42.10.0-24", value(third, 10), ttl)
		elapse(time.Second)
		if v := w.newest(); len(v.Peers) != 3 || !v.Received.Equal(at) {
			t.Errorf("%d peers, received at %s, want %s", len(v.Peers), v.Received, at)
		}
		w.reg.Put("10.42.9.0-24", value(third, 9), ttl)
		w.reg.Remove("10.42.10.0-24")
		elapse(time.Minute)
		if v := w.newest(); len(v.Peers) != 2 || !v.Received.IsZero() {
			t.Errorf("%d peers, received at %s, want no time", len(v.Peers), v.Received)
		}
	})
}
