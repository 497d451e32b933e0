package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/driver"
	"flanneld/pkg/host"
	"flanneld/pkg/lab/logs"
	"flanneld/pkg/lease"
)

// model is a kernel with routes and links that counts operations and fails on demand.
type model struct {
	dataplane.State
	refuse    map[string]error // by object
	unread    error
	snapshots int
	applied   []dataplane.Op
	before    func() // runs before each Apply
	after     func() // runs after it
}

func newModel() *model {
	return &model{State: dataplane.NewState(), refuse: map[string]error{}, before: func() {}, after: func() {}}
}

func (m *model) Snapshot(_ dataplane.Scope, s *dataplane.State) error {
	m.snapshots++
	if m.unread == nil {
		s.Add(m.State)
	}
	return m.unread
}

func (m *model) Events() <-chan driver.Event { return nil }

func (m *model) Apply(ops []dataplane.Op) []error {
	m.before()
	defer m.after()
	results := make([]error, len(ops))
	for i, op := range ops {
		if results[i] = m.refuse[op.Object()]; results[i] != nil {
			continue
		}
		m.applied = append(m.applied, op)
		m.Update(op)
	}
	return results
}

// wish is a backend with a given wanted state.
type wish struct {
	dataplane.State
	version int    // of the state, in the facts: a plan asks again when they change
	reason  string // why all peers are skipped; empty: each for a different reason
}

func (w *wish) MTU(host.Facts) int { return 0 }
func (w *wish) Attrs(host.Facts, lease.Attrs, []lease.Lease) (lease.Attrs, error) {
	return lease.Attrs{}, nil
}
func (w *wish) Via(host.Facts, *lease.Lease) string           { return "" }
func (w *wish) Add(dataplane.State, host.Facts, backend.Peer) {}
func (w *wish) Base(host.Facts, lease.Lease) dataplane.State {
	s := dataplane.NewState()
	s.Add(w.State)
	return s
}

// Accept refuses everybody.
func (w *wish) Accept(_ host.Facts, l *lease.Lease) (backend.Peer, error) {
	if w.reason != "" {
		return backend.Peer{}, errors.New(w.reason)
	}
	return backend.Peer{}, fmt.Errorf("reason %d", l.Subnets.V4().Addr().As4()[2])
}

type fixture struct {
	*Loop
	kernel *model
	want   *wish
	view   lease.View
	facts  error // why they cannot be had
	passes int   // that were begun, and chunks of operations
	log    logs.Buffer
}

func newFixture() *fixture {
	f := &fixture{kernel: newModel(), want: &wish{State: dataplane.NewState()}, view: lease.View{Own: lease.Lease{Subnets: lease.SubnetsOf(key(200).Dst)}, Complete: true}}
	f.want.Links["flannel.1"] = dataplane.Link{Kind: dataplane.KindVXLAN, Up: true}
	log := slog.New(slog.NewTextHandler(&f.log, nil))
	f.Loop = New(Config{
		Driver: f.kernel, Backend: f.want, Network: netip.MustParsePrefix("10.42.0.0/16"), Conditions: condition.NewList(log), Log: log,
		BeforeApply: func() {}, Rivals: func([]lease.Lease) {}, Skipped: func([]backend.Skipped) {}, Missing: func([]Missing) {}, Repaired: func(_, _ string) {}, Heartbeat: func() { f.passes++ },
	})
	return f
}

func key(n int) dataplane.RouteKey {
	return dataplane.RouteKey{Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 42, byte(n), 0}), 24), Link: "flannel.1"}
}

func (f *fixture) wantRoutes(ns ...int) {
	f.want.version++
	f.want.Routes = map[dataplane.RouteKey]dataplane.Route{}
	for _, n := range ns {
		f.want.Routes[key(n)] = dataplane.Route{OnLink: true, Proto: dataplane.ProtoBoot}
	}
}

func (f *fixture) said(words string) int { return f.log.Count(words) }

// tell sets the wanted state of the loop.
func (f *fixture) tell() {
	f.SetFacts(host.Facts{MTU: f.want.version}, f.facts)
	f.SetView(f.view)
}

// Pass is the loop's Pass with the present wanted state, and so are Settle and run.
func (f *fixture) Pass() bool {
	f.tell()
	return f.Loop.Pass(context.Background())
}

func (f *fixture) Settle(ctx context.Context) error {
	f.tell()
	return f.Loop.Settle(ctx)
}

// run runs the loop for a while of the bubble's time.
func (f *fixture) run(t *testing.T, d time.Duration) {
	f.tell()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	f.Run(ctx)
}

func TestPassConverges(t *testing.T) {
	f := newFixture()
	f.wantRoutes(1, 2)
	if !f.Pass() || len(f.kernel.Routes) != 2 || len(f.kernel.Links) != 1 {
		t.Errorf("the kernel holds\n%s", f.kernel.Text())
	}
	applied := len(f.kernel.applied)
	if !f.Pass() || len(f.kernel.applied) != applied {
		t.Errorf("the second pass applied %v", f.kernel.applied[applied:])
	}
	if f.said("programmed the kernel") != 1 || f.said("\n") != 1 {
		t.Errorf("log:\n%s", &f.log)
	}
	delete(f.kernel.Routes, key(1))
	f.Reread()
	f.kernel.Routes[key(9)] = dataplane.Route{}
	f.Pass()
	if f.said(`msg="repaired drift" ops="+1 route, -1 route" example="ip route replace 10.42.1.0/24 dev flannel.1 scope global onlink"`) != 1 {
		t.Errorf("log:\n%s", &f.log)
	}
}

// TestStopEndsPass: when the context ends, a pass ends before its next batch, and the next pass
// treats the rest as newly wanted.
func TestStopEndsPass(t *testing.T) {
	f := newFixture()
	f.wantRoutes()
	for n := range 3 * chunkSize {
		dst := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 42, byte(n >> 8), byte(n)}), 32)
		f.want.Routes[dataplane.RouteKey{Dst: dst, Link: "flannel.1"}] = dataplane.Route{Proto: dataplane.ProtoBoot}
	}
	ctx, cancel := context.WithCancel(t.Context())
	f.kernel.before = cancel
	f.tell()
	if f.Loop.Pass(ctx) || len(f.kernel.applied) != chunkSize || f.kernel.snapshots != 1 {
		t.Errorf("%d operations were applied after %d readings, want %d after one", len(f.kernel.applied), f.kernel.snapshots, chunkSize)
	}
	if f.Loop.Pass(ctx) || len(f.kernel.applied) != chunkSize {
		t.Errorf("a pass after the end has applied %d operations", len(f.kernel.applied)-chunkSize)
	}
	if err := f.Settle(ctx); err == nil {
		t.Error("settled after the end")
	}
	if !f.Pass() || len(f.kernel.Routes) != 3*chunkSize {
		t.Errorf("the kernel holds %d routes, want %d", len(f.kernel.Routes), 3*chunkSize)
	}
	if f.said("programmed the kernel") != 2 || f.said("\n") != 2 {
		t.Errorf("log:\n%s", &f.log)
	}
}

func TestIncompleteViewPrunesNothing(t *testing.T) {
	f := newFixture()
	f.kernel.Routes[key(9)] = dataplane.Route{}
	f.view.Complete = false
	if f.Pass(); len(f.kernel.Routes) != 1 {
		t.Error("a route was deleted on the word of an incomplete view")
	}
	f.view.Complete = true
	if f.Pass(); len(f.kernel.Routes) != 0 {
		t.Error("a stale route stayed")
	}
}

func TestFailureDelaysNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.wantRoutes(1, 2, 3)
		bad := dataplane.KindRoute.Put(key(2), dataplane.Route{}).Object()
		f.kernel.refuse[bad] = errors.New("no buffer space available")
		if !f.Pass() || len(f.kernel.Routes) != 2 {
			t.Errorf("the kernel holds\n%s", f.kernel.Text())
		}
		before := f.kernel.snapshots
		f.run(t, 5*time.Minute)
		// 100 ms doubling to 30 s, and one reading each time.
		if n := f.kernel.snapshots - before; n < 15 || n > 25 {
			t.Errorf("%d readings in five minutes", n)
		}
		if f.said("failed to apply changes to the kernel") != 1 {
			t.Errorf("log:\n%s", &f.log)
		}
		delete(f.kernel.refuse, bad)
		f.run(t, time.Minute)
		if len(f.kernel.Routes) != 3 || f.said("changes to the kernel no longer fail") != 1 || f.said("repaired") != 0 {
			t.Errorf("the kernel holds\n%slog:\n%s", f.kernel.Text(), &f.log)
		}
	})
}

// TestOvertakenReading: a link goes down after it was read, and loses its routes.
func TestOvertakenReading(t *testing.T) {
	f := newFixture()
	f.wantRoutes(1, 2)
	f.Pass()
	delete(f.kernel.Routes, key(1))
	delete(f.kernel.Routes, key(2))
	down := dataplane.KindRoute.Put(key(2), dataplane.Route{}).Object()
	f.kernel.refuse[down] = errors.New("network is down")
	f.kernel.after = func() { // what is read now shows the reason, and its repair lifts it
		if f.kernel.refuse[down] != nil {
			f.kernel.Links["flannel.1"] = dataplane.Link{Kind: dataplane.KindVXLAN}
		}
		delete(f.kernel.refuse, down)
	}
	f.Reread()
	if !f.Pass() || len(f.kernel.Routes) != 2 || !f.kernel.Links["flannel.1"].Up {
		t.Errorf("the kernel holds\n%s", f.kernel.Text())
	}
	if f.said("failed to apply") != 0 || f.said("repaired") != 1 || f.said("+2 route, ~1 link") != 1 {
		t.Errorf("log:\n%s", &f.log)
	}
}

func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.wantRoutes(1)
		bad := dataplane.KindRoute.Put(key(1), dataplane.Route{}).Object()
		f.kernel.refuse[bad] = errors.New("network is down")
		f.Pass()
		f.run(t, 2*time.Minute) // long enough for the longest wait
		delete(f.kernel.refuse, bad)
		f.Retry()
		if f.run(t, time.Second); len(f.kernel.Routes) != 1 {
			t.Error("what failed waits, though its reason may be gone")
		}
	})
}

func TestFightIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.wantRoutes(1, 2)
		f.kernel.after = func() { // another program deletes it at once, and the event wakes the loop
			delete(f.kernel.Routes, key(1))
			f.Reread()
		}
		f.Pass()
		f.run(t, 10*time.Minute)
		n := 0
		for _, op := range f.kernel.applied {
			if k, _ := dataplane.KindRoute.Of(op); k == key(1) {
				n++
			}
		}
		if n < 100 || n > 230 {
			t.Errorf("%d attempts in ten minutes", n)
		}
		if f.said("keeps undoing changes to the kernel") != 1 || f.said("10.42.1.0/24 dev flannel.1") < 1 {
			t.Errorf("said %d times in\n%.2000s", f.said("keeps undoing changes to the kernel"), &f.log)
		}
		// After the fight it is mended at once again.
		f.kernel.after = func() {}
		f.run(t, 10*time.Minute)
		delete(f.kernel.Routes, key(1))
		f.Reread()
		f.run(t, time.Second)
		if len(f.kernel.Routes) != 2 {
			t.Error("not repaired after the fight")
		}
		if len(f.backoffs.objects) > 1 {
			t.Errorf("%d objects are still remembered", len(f.backoffs.objects))
		}
	})
}

// TestFlood: while events keep coming, a reading is delayed, but not for longer than another
// reading would take.
func TestFlood(t *testing.T) {
	for _, c := range []struct{ cost, flood, from, to time.Duration }{
		{0, 100 * time.Millisecond, debounce, debounce},
		{60 * time.Millisecond, 90 * time.Millisecond, 90 * time.Millisecond, 90*time.Millisecond + quietTime},
		{60 * time.Millisecond, time.Second, 115 * time.Millisecond, 120 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture()
			f.Pass()
			f.readCost = c.cost
			begun := time.Now()
			go func() {
				for time.Since(begun) < c.flood {
					f.Reread()
					time.Sleep(2 * time.Millisecond)
				}
			}()
			synctest.Wait()
			if err := f.wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begun); took < c.from || took > c.to {
				t.Errorf("a pass %v after the begin of a flood of %v, where reading takes %v", took, c.flood, c.cost)
			}
			time.Sleep(c.flood)
		})
	}
}

// A fight over so many objects that a pass takes long is slowed down, too, and reported as soon.
func TestHeavyFightIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		begun := time.Now()
		f.budget.Clock = func() time.Duration { return time.Since(begun) }
		f.wantRoutes(1, 2)
		f.Pass()
		f.kernel.before = func() { time.Sleep(300 * time.Millisecond) }
		f.kernel.after = func() {
			delete(f.kernel.Routes, key(1))
			f.Reread()
		}
		delete(f.kernel.Routes, key(1))
		f.Reread()
		before := len(f.kernel.applied)
		if f.run(t, 5*time.Second); f.said("keeps undoing changes to the kernel") != 1 {
			t.Errorf("after five seconds:\n%s", &f.log)
		}
		f.run(t, 10*time.Minute)
		if took := time.Duration(len(f.kernel.applied)-before) * 300 * time.Millisecond; took < 10*time.Second || took > 40*time.Second {
			t.Errorf("%v spent in ten minutes", took)
		}
		if f.said("keeps undoing changes to the kernel") != 1 {
			t.Errorf("log:\n%.2000s", &f.log)
		}
	})
}

func TestTriggers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.Pass()
		before := f.kernel.snapshots
		for range 1000 {
			f.Reread()
		}
		f.run(t, 50*time.Second)
		if n := f.kernel.snapshots - before; n != 1 {
			t.Errorf("a thousand triggers made %d readings", n)
		}
		before = f.kernel.snapshots
		f.run(t, 10*time.Minute+time.Second)
		if n := f.kernel.snapshots - before; n != 10 {
			t.Errorf("%d readings in ten idle minutes", n)
		}
	})
}

func TestUnreadable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, break_ := range map[string]func(*fixture, error){
			"kernel": func(f *fixture, err error) { f.kernel.unread = err },
			"host":   func(f *fixture, err error) { f.facts = err },
		} {
			f := newFixture()
			f.Pass()
			f.kernel.Routes[key(9)] = dataplane.Route{}
			break_(f, errors.New("interrupted"))
			f.Reread()
			f.run(t, time.Minute)
			if len(f.kernel.Routes) != 1 || f.said("reconcile failed") != 1 {
				t.Errorf("%s: log:\n%s", name, &f.log)
			}
			break_(f, nil)
			f.run(t, time.Minute)
			if len(f.kernel.Routes) != 0 || f.said("reconcile works again") != 1 {
				t.Errorf("%s: log:\n%s", name, &f.log)
			}
		}
	})
}

// TestPassesAreFewWithoutFacts: while the facts are unknown, for example because the uplink is
// down, there are few passes; later changes are followed at once.
func TestPassesAreFewWithoutFacts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.Pass()
		f.facts = errors.New("the uplink is down")
		f.Reread()
		before := f.passes
		f.run(t, time.Minute)
		if n := f.passes - before; n < 5 || n > 12 {
			t.Errorf("%d passes in a minute", n)
		}
		f.facts = nil
		f.kernel.Routes[key(9)] = dataplane.Route{}
		f.Reread()
		f.run(t, 100*time.Millisecond)
		if len(f.kernel.Routes) != 0 {
			t.Error("what has changed was not followed at once")
		}
	})
}

func TestSettleWaitsForOurOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.wantRoutes(1)
		f.kernel.refuse["link flannel.1"] = errors.New("operation not supported")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := f.Settle(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("settled without a link: %v", err)
		}
		start := time.Now()
		f.kernel.before = func() {
			if time.Since(start) > 10*time.Second {
				clear(f.kernel.refuse)
			}
		}
		if err := f.Settle(t.Context()); err != nil || time.Since(start) > 45*time.Second {
			t.Errorf("settled after %v, %v", time.Since(start), err)
		}
		// A peer that fails is no reason to wait.
		f.kernel.before = func() {}
		f.wantRoutes(1, 2)
		f.kernel.refuse[dataplane.KindRoute.Put(key(2), dataplane.Route{}).Object()] = errors.New("x")
		start = time.Now()
		if err := f.Settle(t.Context()); err != nil || time.Since(start) > 0 {
			t.Errorf("settled after %v, %v", time.Since(start), err)
		}
	})
}

func TestSkippedAndConflictsAreNamedOnce(t *testing.T) {
	f := newFixture()
	f.wantRoutes(3)
	f.kernel.Routes[dataplane.RouteKey{Dst: key(3).Dst, Link: "eth0"}] = dataplane.Route{Proto: dataplane.ProtoKernel}
	f.view.Peers = []*lease.Lease{peer(1), peer(2)}
	for range 3 {
		f.Pass()
	}
	if f.said("reason 1") != 1 || f.said("reason 2") != 1 || f.said("operations blocked by a conflict") != 1 || len(f.kernel.Routes) > 1 {
		t.Errorf("log:\n%s", &f.log)
	}
}

// TestUnblock: what another program's object blocks is tried again when that may be gone, and the
// kernel is not read again if nothing is blocked.
func TestUnblock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.wantRoutes(3)
		foreign := dataplane.RouteKey{Dst: key(3).Dst, Link: "eth0"}
		f.kernel.Routes[foreign] = dataplane.Route{Proto: dataplane.ProtoKernel}
		f.Pass()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go f.Run(ctx)
		time.Sleep(time.Second)
		synctest.Wait()
		if len(f.kernel.Routes) > 1 {
			t.Fatalf("routes %v", f.kernel.Routes)
		}
		delete(f.kernel.Routes, foreign)
		f.Unblock()
		time.Sleep(time.Second)
		synctest.Wait()
		if _, ok := f.kernel.Routes[key(3)]; !ok {
			t.Errorf("routes %v", f.kernel.Routes)
		}
		passes := f.Stats().PassTime.Count
		f.Unblock()
		time.Sleep(time.Second)
		synctest.Wait()
		if n := f.Stats().PassTime.Count - passes; n > 0 {
			t.Errorf("%d passes without a reason", n)
		}
	})
}

// peer is one that the backend skips.
func peer(n int) *lease.Lease {
	return &lease.Lease{Subnets: lease.SubnetsOf(key(n).Dst), Attrs: lease.Attrs{PublicIP: netip.AddrFrom4([4]byte{198, 51, 100, byte(n)})}}
}

// TestManySkippedPeersAreOneLine: seventeen with one reason are one line at once, and one
// when they are skipped no longer, without another pass.
func TestManySkippedPeersAreOneLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.want.reason = "MAC is missing"
		for n := range 17 {
			f.view.Peers = append(f.view.Peers, peer(n))
		}
		f.Pass()
		if f.said("skipped peers") != 1 || f.said(`count=17 reason="MAC is missing" examples="10.42.0.0/24, 10.42.1.0/24, 10.42.2.0/24"`) != 1 {
			t.Errorf("log:\n%s", &f.log)
		}
		f.view.Peers = append(f.view.Peers, peer(17))
		f.Pass()
		f.view.Peers = append(f.view.Peers, peer(18))
		f.Pass()
		before := f.kernel.snapshots
		f.run(t, 10*time.Second)
		if f.said("skipped peers") != 2 || f.said("count=2") != 1 || f.said("total=19") != 1 || f.kernel.snapshots != before {
			t.Errorf("%d readings, log:\n%s", f.kernel.snapshots-before, &f.log)
		}
		f.view.Peers = nil
		f.Pass()
		if f.said("no longer skipping peers") != 1 || f.said("count=19") != 1 {
			t.Errorf("log:\n%s", &f.log)
		}
	})
}

// TestLinesDueOneAfterAnother: group lines about two reasons, due at two times, are logged without
// another pass.
func TestLinesDueOneAfterAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		for n := range 2 {
			f.view.Peers = append(f.view.Peers, peer(n))
			f.Pass()
			f.run(t, time.Second)
		}
		f.view.Peers = nil
		f.Pass()
		before := f.kernel.snapshots
		f.run(t, 10*time.Second)
		if n := f.said("no longer skipping peers"); n != 2 || f.kernel.snapshots != before {
			t.Errorf("%d lines and %d readings, log:\n%s", n, f.kernel.snapshots-before, &f.log)
		}
	})
}
