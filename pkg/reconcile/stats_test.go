package reconcile

import (
	"errors"
	"maps"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/lease"
)

// TestStatsCountPasses: each pass counts by trigger and result.
func TestStatsCountPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		want := map[Outcome]uint64{}
		pass := func(trigger Trigger, result Result) {
			t.Helper()
			f.Pass()
			if want[Outcome{trigger, result}]++; !maps.Equal(f.Stats().Passes, want) {
				t.Errorf("passes are %v, want %v", f.Stats().Passes, want)
			}
		}
		f.wantRoutes(1, 2)
		f.kernel.after = func() { time.Sleep(time.Second) }
		pass(OnChange, Changed)
		if took := f.Stats().PassTime; took != (Timing{1, time.Second}) {
			t.Errorf("the passes took %v", took)
		}
		f.wantRoutes(1, 2, 3)
		f.kernel.refuse[dataplane.KindRoute.Put(key(3), dataplane.Route{}).Object()] = errors.New("no")
		pass(OnChange, Incomplete)
		clear(f.kernel.refuse)
		time.Sleep(10 * time.Second)
		f.stale.Store(true) // as the timer does
		pass(OnRetry, Changed)
		f.Reread()
		pass(OnEvent, Unchanged)
		f.kernel.unread = errors.New("no")
		f.Reread()
		pass(OnEvent, Unread)
		f.kernel.unread = nil
		time.Sleep(resync)
		f.stale.Store(true)
		pass(OnResync, Unchanged)

		f.view.Peers = []*lease.Lease{{Subnets: lease.SubnetsOf(key(1).Dst), Attrs: lease.Attrs{PublicIP: netip.MustParseAddr("192.0.2.1")}}}
		f.want.reason = "not welcome"
		pass(OnChange, Unchanged)
		if got := f.Stats().Skipped; len(got) != 1 || got["not welcome"] != 1 {
			t.Errorf("skipped peers are %v", got)
		}
		f.view.Peers = nil
		pass(OnChange, Unchanged)
		if got := f.Stats().Skipped; len(got) != 0 {
			t.Errorf("skipped peers are %v, want none", got)
		}
	})
}

// TestStatsCountOperations: by kind and verb, which of them failed, and which were repairs.
func TestStatsCountOperations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		route := func(v dataplane.Verb) OpClass { return OpClass{v, dataplane.KindRoute} }
		refused := dataplane.KindRoute.Put(key(2), dataplane.Route{}).Object()
		f.kernel.refuse[refused] = errors.New("no")
		f.wantRoutes(1, 2, 3)
		f.Pass()
		s := f.Stats()
		if want := map[OpClass]uint64{{dataplane.Put, dataplane.KindLink}: 1, route(dataplane.Put): 2}; !maps.Equal(s.Done, want) {
			t.Errorf("done are %v, want %v", s.Done, want)
		}
		// Tried again with a new reading before it counts as refused.
		if want := map[OpClass]uint64{route(dataplane.Put): 2}; !maps.Equal(s.Failed, want) {
			t.Errorf("failed are %v, want %v", s.Failed, want)
		}
		drift := map[dataplane.Kind]int{dataplane.KindRoute: 1}
		if !maps.Equal(s.Drift, drift) || len(s.Repairs) != 0 {
			t.Errorf("drift is %v, repairs are %v", s.Drift, s.Repairs)
		}

		// Somebody deletes a route, and sets another one. The refused one is left for later.
		time.Sleep(time.Second)
		delete(f.kernel.Routes, key(1))
		f.kernel.Routes[key(9)] = dataplane.Route{}
		f.Reread()
		time.Sleep(50 * time.Millisecond)
		f.Reread()
		f.Pass()
		if s = f.Stats(); !maps.Equal(s.Repairs, map[dataplane.Kind]uint64{dataplane.KindRoute: 2}) || !maps.Equal(s.Drift, drift) {
			t.Errorf("repairs are %v, drift is %v", s.Repairs, s.Drift)
		}
		if s.Done[route(dataplane.Put)] != 3 || s.Done[route(dataplane.Del)] != 1 {
			t.Errorf("done are %v", s.Done)
		}
		if s.RepairTime != (Timing{1, 50 * time.Millisecond}) {
			t.Errorf("repairs took %v", s.RepairTime)
		}

		clear(f.kernel.refuse)
		f.Retry()
		f.Pass()
		if s = f.Stats(); len(s.Drift) != 0 {
			t.Errorf("drift is %v, want none", s.Drift)
		}
		s.Done[route(dataplane.Set)] = 9 // a copy
		if f.Stats().Done[route(dataplane.Set)] != 0 {
			t.Error("a returned value is part of the loop")
		}
	})
}

// TestStatsOfPropagation: from the first event that a view shows, through views that no pass has
// seen and passes that could not read the kernel, to the end of the pass.
func TestStatsOfPropagation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.wantRoutes(1)
		f.Pass()
		if got := f.Stats().Propagation; got != (Timing{}) {
			t.Errorf("without an event: %v", got)
		}
		for _, wait := range []time.Duration{time.Second, 2 * time.Second} {
			f.view.Received = time.Now()
			f.SetView(f.view)
			time.Sleep(wait)
		}
		f.kernel.unread = errors.New("no")
		f.Reread()
		f.Loop.Pass(t.Context())
		time.Sleep(time.Second)
		f.kernel.unread = nil
		f.Reread()
		f.view.Received = time.Time{}
		for range 2 { // the second one has nothing to add
			f.Pass()
		}
		if got := f.Stats().Propagation; got != (Timing{1, 4 * time.Second}) {
			t.Errorf("propagation is %v, want 4 s once", got)
		}
	})
}
