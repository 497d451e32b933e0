package subnet_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/subnet"
)

// following is a host that runs Follow.
type following struct {
	*fixture
	own    lease.Lease // the first one
	first  sync.Once
	joined chan struct{} // closed when there is one
	end    func()        // of Follow
	done   chan error    // how it ended

	mu    sync.Mutex
	views []lease.View
	last  subnet.Stats
}

func (w *following) emit(v lease.View) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.views = append(w.views, v)
	w.first.Do(func() {
		w.own = v.Own
		close(w.joined)
	})
}

func (w *following) report(s subnet.Stats) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = s
}

// take returns the views emitted since the last call.
func (w *following) take() []lease.View {
	w.mu.Lock()
	defer w.mu.Unlock()
	views := w.views
	w.views = nil
	return views
}

// newest returns the last of the views emitted since the last call.
func (w *following) newest() lease.View {
	w.Helper()
	views := w.take()
	if len(views) == 0 {
		w.Fatalf("no view\n%s", w.log)
	}
	return views[len(views)-1]
}

func (w *following) stats() subnet.Stats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

// follow acquires and follows until the test ends. The subnet is 10.42.7.0/24, unless the test
// specifies another. A random one would be a peer's with a probability of 1 in 255.
func (f *fixture) follow() *following {
	f.Helper()
	if !f.Previous.IsValid() {
		f.Previous = prefix("10.42.7.0/24")
	}
	f.Attrs = options(nil, me, nil).Attrs
	w := f.begin()
	<-w.joined
	synctest.Wait()
	return w
}

// begin follows until the test ends and does not wait for a lease.
func (f *fixture) begin() *following {
	f.Helper()
	w := &following{fixture: f, joined: make(chan struct{}), done: make(chan error, 1)}
	f.Report = w.report
	f.Conditions = condition.NewList(f.Log)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { w.done <- subnet.Follow(ctx, f.Options, w.emit) }()
	w.end = sync.OnceFunc(func() {
		cancel()
		if err := <-w.done; !errors.Is(err, context.Canceled) {
			f.Error(err)
		}
	})
	f.Cleanup(w.end)
	return w
}

// expect takes the views emitted since the last time: there must be n of them
// and the last must have these peers.
func (w *following) expect(n int, peers ...string) {
	w.Helper()
	synctest.Wait()
	views := w.take()
	if len(views) != n {
		w.Errorf("%d views, want %d\n%s", len(views), n, w.log)
		for _, v := range views {
			w.Logf("own %s, peers %v", v.Own.Subnets, peersOf(v))
		}
		w.FailNow()
	}
	if n == 0 {
		return
	}
	if v := views[n-1]; !slices.Equal(peersOf(v), peers) || !v.Complete {
		w.Errorf("own %+v, complete %v, peers %v, want %v", v.Own, v.Complete, peersOf(v), peers)
	}
}

func peersOf(v lease.View) []string {
	var subnets []string
	for _, p := range v.Peers {
		subnets = append(subnets, p.Subnets.String())
	}
	return subnets
}

func following1(t *testing.T, test func(w *following)) {
	t.Helper()
	in(t, func(f *fixture) {
		f.reg.Put("10.42.8.0-24", value(them, 8), 0)
		w := f.follow()
		w.expect(1, "10.42.8.0/24")
		elapse(time.Second)
		w.expect(0)
		test(w)
	})
}

func TestFollowPeers(t *testing.T) {
	following1(t, func(w *following) {
		w.reg.Put("10.42.9.0-24", value(third, 9), ttl)
		elapse(time.Second)
		w.expect(1, "10.42.8.0/24", "10.42.9.0/24")
		w.reg.Put("10.42.9.0-24", value(third, 9), ttl) // a renewal
		elapse(time.Second)
		w.expect(0)
		w.reg.Put("10.42.9.0-24", value(them, 10), ttl) // another MAC
		elapse(time.Second)
		w.expect(1, "10.42.8.0/24", "10.42.9.0/24")
		w.reg.Remove("10.42.8.0-24")
		elapse(time.Second)
		w.expect(1, "10.42.9.0/24")
		elapse(ttl) // expires
		w.expect(1)
		for i := range 200 {
			w.reg.Put(fmt.Sprintf("10.42.%d.0-24", i+10), value(them, i), 0)
		}
		elapse(time.Second)
		if views := w.take(); len(views) != 1 || len(views[0].Peers) != 200 {
			t.Errorf("200 joins at once made %d views", len(w.views))
		}
	})
}

// A previous lease of this host is a peer like any other. Package backend skips it with a reason.
func TestFollowShowsOwnOldLeases(t *testing.T) {
	following1(t, func(w *following) {
		w.reg.Put("10.42.9.0-24", value(me, 9), ttl)
		elapse(time.Second)
		w.expect(1, "10.42.8.0/24", "10.42.9.0/24")
	})
}

func TestFollowRegistryAway(t *testing.T) {
	following1(t, func(w *following) {
		w.outage(time.Hour, func() {
			w.says("is unreachable", 1)
			w.reg.Put("10.42.9.0-24", value(them, 9), 0)
		})
		w.says("is reachable again", 1)
		w.says("duration=1h0m", 1)
		w.expect(1, "10.42.8.0/24", "10.42.9.0/24")
	})
}

func TestFollowHistoryLost(t *testing.T) {
	following1(t, func(w *following) {
		w.outage(time.Minute, func() {
			w.reg.Put("10.42.8.0-24", value(them, 88), 0) // changed
			w.reg.Put("10.42.9.0-24", value(third, 9), 0)
			w.reg.SetHistory(0)
		})
		w.expect(1, "10.42.8.0/24", "10.42.9.0/24")
		w.says("listing all leases again", 1)
		w.reg.Put("10.42.9.0-24", value(third, 9), 0)
		elapse(10 * time.Second)
		w.expect(0)
	})
}

// Of two peers with the same public IP the older one wins. Which one is older may change while
// their attributes stay the same.
func TestFollowTellsWhoIsOlder(t *testing.T) {
	following1(t, func(w *following) { // 10.42.8.0/24 is there
		w.reg.Put("10.42.20.0-24", value(them, 2), ttl)
		elapse(time.Second)
		w.expect(1, "10.42.8.0/24", "10.42.20.0/24")
		w.reg.Remove("10.42.8.0-24")
		w.reg.Put("10.42.8.0-24", value(them, 8), ttl)
		elapse(10 * time.Second)
		w.expect(1, "10.42.8.0/24", "10.42.20.0/24")
	})
}

// All keys are deleted: every host recreates its own key, and until then no peer is removed.
func TestFollowAllDeleted(t *testing.T) {
	following1(t, func(w *following) {
		w.reg.RemoveAll()
		elapse(time.Second)
		w.expect(0)
		if held := w.held(w.own.Subnets); !held.SameAs(w.own) {
			t.Errorf("registry holds %+v", held)
		}
		w.says("own lease was deleted", 1)
		w.reg.Put("10.42.8.0-24", value(them, 8), 0)
		elapse(10 * time.Minute)
		w.expect(0)
	})
}

// A new registry restarts its index at 0.
func TestFollowWiped(t *testing.T) {
	following1(t, func(w *following) {
		for range 50 {
			w.reg.Put("10.42.8.0-24", value(them, 8), 0)
		}
		elapse(time.Second)
		w.outage(time.Minute, func() { w.reg.Wipe(0) })
		w.expect(0)
		if held := w.held(w.own.Subnets); !held.SameAs(w.own) {
			t.Errorf("registry holds %+v", held)
		}
		w.reg.Put("10.42.9.0-24", value(them, 9), 0)
		elapse(time.Second)
		w.expect(1, "10.42.8.0/24", "10.42.9.0/24")
		elapse(2 * time.Minute) // peers that have not returned by then are removed
		w.expect(1, "10.42.9.0/24")
	})
}

func TestFollowBadEntries(t *testing.T) {
	following1(t, func(w *following) {
		w.reg.Put("10.42.8.0-24", "nonsense", 0) // was valid
		w.reg.Put("10.42.9.0-24", "nonsense", 0) // never existed
		w.reg.Put("notes", "call me", 0)
		elapse(time.Second)
		w.reg.Put("10.42.9.0-24", "nonsense", 0)
		w.reg.Put("10.42.10.0-24", value(them, 10), 0)
		elapse(time.Second)
		w.expect(1, "10.42.8.0/24", "10.42.10.0/24")
		w.says("skipped invalid entries in the registry", 2) // for two reasons
		w.says(`reason="value is not lease JSON" examples="10.42.8.0-24`, 1)
		if w.stats().Invalid != 3 {
			t.Errorf("stats count %d invalid entries", w.stats().Invalid)
		}
		w.reg.RemoveAll() // and a listing that still has one
		w.reg.Put("10.42.8.0-24", "nonsense", 0)
		w.reg.Put("10.42.10.0-24", "{}", 0)
		elapse(10 * time.Second)
		w.expect(0)
		w.says(`reason="PublicIP is missing" examples=10.42.10.0-24`, 1)
		w.reg.Remove("10.42.8.0-24")
		w.reg.Put("10.42.10.0-24", value(them, 11), 0)
		elapse(time.Second)
		w.expect(2, "10.42.10.0/24") // with the new attributes of one and without the other
		if w.stats().Invalid != 0 {
			t.Errorf("stats count %d invalid entries", w.stats().Invalid)
		}
	})
}

// TestFollowJunk: a few invalid keys, whatever their number and names, are logged by key, and peers
// are followed as usual.
func TestFollowJunk(t *testing.T) {
	following1(t, func(w *following) {
		const n = 5000
		w.reg.SetHistory(2 * n) // so that all arrive as events in any schedule
		junk := func(i int) string { return fmt.Sprintf("junk\nlevel=ERROR msg=forged %d", i) }
		for i := range n {
			w.reg.Put(junk(i), "x", 0)
		}
		w.reg.Put(strings.Repeat("k", 1<<20), "x", 0)
		w.reg.Put("10.42.10.0-24", value(them, 10), 0)
		elapse(30 * time.Second)
		w.expect(1, "10.42.8.0/24", "10.42.10.0/24")
		if s := w.stats(); s.Invalid < 1000 || s.Invalid > n+1 {
			t.Errorf("stats count %d invalid entries", s.Invalid)
		}
		w.says("there are too many to name them all", 1)
		w.reg.SetHistory(0) // so that all is listed
		w.reg.Put("10.42.11.0-24", value(them, 11), 0)
		elapse(30 * time.Second)
		w.expect(1, "10.42.8.0/24", "10.42.10.0/24", "10.42.11.0/24")
		if s := w.stats(); s.Invalid != n+1 {
			t.Errorf("stats count %d invalid entries after a listing", s.Invalid)
		}
		for line := range strings.Lines(w.log.String()) {
			if !strings.HasPrefix(line, "time=") || len(line) > 1000 {
				t.Errorf("line in the log: %.200q", line)
			}
		}
		for i := range n {
			w.reg.Remove(junk(i))
		}
		w.reg.Remove(strings.Repeat("k", 1<<20))
		elapse(30 * time.Second)
		if s := w.stats(); s.Invalid != 0 {
			t.Errorf("stats count %d invalid entries of none", s.Invalid)
		}
	})
}

// A host that receives more events, at one per request, than its budget allows lists all leases
// instead.
func TestFollowCatchesUp(t *testing.T) {
	for _, batch := range []int{1, 0} {
		following1(t, func(w *following) {
			const peers, rounds = 200, 40
			w.reg.SetBatch(batch)
			w.reg.SetHistory(4 * peers * rounds)
			_, lists := w.asked()
			for range 2 {
				for r := range rounds {
					v := value(them, r)
					for i := range peers {
						w.reg.Put(fmt.Sprintf("10.42.%d.0-24", i+10), v, ttl)
					}
				}
				w.reg.Put("10.42.9.0-24", value(them, 9), ttl)
				elapse(time.Second)
				v := w.newest()
				if n := len(v.Peers); n != peers+2 || v.Peers[n-1].Attrs != attrsOf(them, rounds-1) {
					t.Errorf("batches of %d: %d peers after a second, the last %+v", batch, n, v.Peers[n-1])
				}
				w.reg.Remove("10.42.9.0-24")
				elapse(3 * time.Second)
				w.take()
			}
			if n := lists.Load(); batch == 1 && n == 0 || n > 4 {
				t.Errorf("batches of %d: %d listings", batch, n)
			}
		})
	}
}

// An endless storm of changes causes a bounded number of requests, and the view lags only slightly,
// whether or not the registry keeps much history.
func TestFollowStormWithoutEnd(t *testing.T) {
	const peers, seconds, burst, behind = 200, 8, 3, 500 // the first burst of requests lasts 2.1 s
	for _, row := range []struct{ history, batch int }{{1000, 1}, {1_000_000, 1}, {1_000_000, 0}} {
		following1(t, func(w *following) {
			w.reg.SetBatch(row.batch)
			w.reg.SetHistory(row.history)
			asked, lists := w.asked()
			first := int32(0) // requests of the first burst
			for i := range 1000 * seconds {
				if i == 1000*burst {
					first = asked.Load()
				}
				w.reg.Put(fmt.Sprintf("10.42.%d.0-24", i%peers+10), value(third, i), ttl)
				elapse(time.Millisecond)
				if i < 1000 || i%1000 != 0 {
					continue
				}
				known := w.newest().Peers[1:]
				if !recent(known, i, behind) {
					t.Fatalf("%+v: more than %d changes behind after %d", row, behind, i)
				}
			}
			// A Watch that has to wait for its event counts twice.
			if n := asked.Load() - first; first > 2*(1900+100*burst) || n > 100*(seconds-burst) {
				t.Errorf("%+v: %d requests in %d s, and %d in %d s after them", row, first, burst, n, seconds-burst)
			}
			if n := lists.Load(); row.batch == 0 && n > 0 || n > 5*seconds {
				t.Errorf("%+v: %d listings in %d s", row, n, seconds)
			}
		})
	}
}

// recent reports whether one of the last changes is known.
func recent(known []*lease.Lease, last, n int) bool {
	return slices.ContainsFunc(known, func(p *lease.Lease) bool {
		for i := last - n; i <= last; i++ {
			if p.Attrs == attrsOf(third, i) {
				return true
			}
		}
		return false
	})
}

// asked returns the number of calls that follow the registry, and how many of these are listings.
func (w *following) asked() (all, lists *atomic.Int32) {
	all, lists = new(atomic.Int32), new(atomic.Int32)
	w.reg.SetHook(func(_ context.Context, op string, _ lease.Subnets, done bool) error {
		if done {
			return nil
		}
		if op == "list" {
			lists.Add(1)
		}
		if op == "list" || op == "watch" {
			all.Add(1)
		}
		return nil
	})
	return all, lists
}

// A host that receives events between losses of history is not delayed, however often they occur.
func TestFollowListsAtOnceIfThatHelps(t *testing.T) {
	following1(t, func(w *following) {
		for i := range 20 {
			w.reg.SetHistory(0)
			w.reg.Put("10.42.9.0-24", value(them, 2*i), ttl)
			elapse(500 * time.Millisecond)
			w.reg.SetHistory(1000)
			w.reg.Put("10.42.9.0-24", value(them, 2*i+1), ttl)
			elapse(500 * time.Millisecond)
			views := w.take()
			if len(views) != 2 || views[1].Peers[1].Attrs != attrsOf(them, 2*i+1) {
				t.Fatalf("second %d: %d views", i, len(views))
			}
		}
	})
}

// A registry that answers nonsense is not called in a tight loop, and not by very many hosts more
// often than it can answer. A small network learns of changes soon after the registry works again.
func TestFollowPausesByTheNetworksSize(t *testing.T) {
	nonsense := map[string]func(op string) error{
		"no history": func(op string) error {
			if op == "watch" {
				return registry.ErrHistoryLost
			}
			return nil
		},
		"no answers": func(string) error { return errors.New("connection refused") },
		"answers to reads": func(op string) error {
			if op == "watch" {
				return errors.New("nonsense")
			}
			return nil
		},
	}
	for what, answer := range nonsense {
		for _, row := range []struct {
			peers, most int           // most requests in a minute: two for a listing, one for an attempt
			late        time.Duration // how long after the outage a change is learned, at most
		}{
			{1, 100, 2200 * time.Millisecond},
			{150, 64, 4 * time.Second},
		} {
			t.Run(fmt.Sprint(what, ", ", row.peers, " peers"), func(t *testing.T) {
				in(t, func(f *fixture) {
					for i := range row.peers {
						f.reg.Put(fmt.Sprintf("10.42.%d.0-24", 100+i), value(them, i), 0)
					}
					w := f.follow()
					elapse(time.Minute)
					w.take()
					var requests atomic.Int32
					f.reg.SetHook(func(_ context.Context, op string, _ lease.Subnets, done bool) error {
						if !done && (op == "list" || op == "get") {
							requests.Add(1)
						}
						return answer(op)
					})
					f.reg.Put("10.42.8.0-24", value(them, 8), 0)
					elapse(2 * time.Minute)
					requests.Store(0)
					elapse(time.Minute)
					if n := int(requests.Load()); n < 5 || n > row.most {
						t.Errorf("%d requests in a minute", n)
					}
					f.reg.SetHook(nil)
					f.reg.Put("10.42.9.0-24", value(them, 9), 0)
					elapse(row.late)
					views := w.take()
					if len(views) == 0 || len(views[len(views)-1].Peers) != row.peers+2 {
						t.Errorf("the change is not learned within %v: %d views", row.late, len(views))
					}
				})
			})
		}
	}
}

func TestFollowEndsWithContext(t *testing.T) {
	for _, fail := range []error{nil, errors.New("away")} {
		in(t, func(f *fixture) {
			w := f.follow()
			f.reg.Fail(fail)
			elapse(time.Minute)
			start := time.Now()
			w.end()
			if d := time.Since(start); d != 0 {
				t.Errorf("ended after %v", d)
			}
		})
	}
}

// If a peer is deleted or forgotten by a wiped registry, and then has another subnet, its old lease
// is stale. Package backend assigns its address to the new lease.
func TestFollowMarksStaleLeases(t *testing.T) {
	for name, forget := range map[string]func(w *following){
		"deleted": func(w *following) { w.reg.Remove("10.42.8.0-24") },
		"wiped":   func(w *following) { w.outage(time.Minute, func() { w.reg.Wipe(0) }) },
	} {
		t.Run(name, func(t *testing.T) {
			following1(t, func(w *following) {
				forget(w)
				elapse(100 * time.Millisecond)
				w.expect(0)
				w.reg.Put("10.42.9.0-24", value(them, 8), 0)
				elapse(100 * time.Millisecond)
				views := w.take()
				if len(views) != 1 || len(views[0].Peers) != 2 || !views[0].Peers[0].Stale || views[0].Peers[1].Stale {
					t.Fatalf("views %+v\n%s", views, w.log)
				}
				w.reg.Put("10.42.8.0-24", value(them, 8), 0) // and back
				w.reg.Put("10.42.10.0-24", value(third, 10), 0)
				elapse(100 * time.Millisecond)
				views = w.take()
				if len(views) != 1 || len(views[0].Peers) != 3 || views[0].Peers[0].Stale || views[0].Peers[0].Created < views[0].Peers[1].Created {
					t.Fatalf("views %+v\n%s", views, w.log)
				}
			})
		})
	}
}

// A stale peer whose key exists again with an invalid value is no longer stale, so no other lease
// gets its address.
func TestFollowBadEntryIsNotStale(t *testing.T) {
	following1(t, func(w *following) {
		w.outage(time.Minute, func() { w.reg.Wipe(0) })
		w.outage(time.Second, func() {
			w.reg.Put("10.42.8.0-24", "{", 0)
			w.reg.SetHistory(0) // all is listed again
		})
		w.take()
		w.reg.Put("10.42.9.0-24", value(them, 8), 0)
		elapse(time.Second)
		views := w.take()
		if len(views) != 1 || len(views[0].Peers) != 2 || views[0].Peers[0].Stale {
			t.Fatalf("views %+v\n%s", views, w.log)
		}
	})
}
