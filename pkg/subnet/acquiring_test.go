package subnet_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/subnet"
)

// elsewhere is another address of this host.
var elsewhere = netip.MustParseAddr("198.51.100.77")

// gate is a hook of a registry that can block calls until they are released or their contexts end.
type gate struct {
	mu     sync.Mutex
	closed map[string]chan struct{}
}

// hold blocks the calls of an operation, or their answers, as in "get answer". The returned function
// releases them.
func (g *gate) hold(op string) (release func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	closed := make(chan struct{})
	g.closed[op] = closed
	return func() {
		g.admit(op)
		close(closed)
	}
}

// admit stops blocking new calls.
func (g *gate) admit(op string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.closed, op)
}

func (g *gate) pass(ctx context.Context, op string, _ lease.Subnets, done bool) error {
	if done {
		op += " answer"
	}
	g.mu.Lock()
	closed := g.closed[op]
	g.mu.Unlock()
	if closed == nil {
		return nil
	}
	select {
	case <-closed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// scarce is a host in a network of three subnets, two of which are leased: 10.42.8.0/24 and
// 10.42.9.0/24.
type scarce struct {
	*fixture
	gate  gate
	wider lease.Pool // with a fourth
}

func newScarce(f *fixture) *scarce {
	s := &scarce{fixture: f, gate: gate{closed: map[string]chan struct{}{}}}
	f.reg.SetHook(s.gate.pass)
	f.Pool = pool("10.42.0.0/16", 24, "10.42.7.0", "10.42.9.0")
	s.wider = pool("10.42.0.0/16", 24, "10.42.7.0", "10.42.10.0")
	f.reg.Put("10.42.8.0-24", value(them, 8), 0)
	f.reg.Put("10.42.9.0-24", value(third, 9), 0)
	return s
}

// full leases the third subnet to another host.
func (s *scarce) full() {
	s.reg.Put("10.42.7.0-24", value(netip.MustParseAddr("198.51.100.70"), 70), 0)
}

// lose starts Follow and then gives the subnet of this host to another host.
func (s *scarce) lose() *following {
	s.Helper()
	w := s.follow()
	elapse(time.Second)
	w.take()
	s.full()
	elapse(time.Second)
	if w.take(); !w.stats().Lost || !s.waits() {
		s.Errorf("stats %+v, conditions %v\n%s", w.stats(), s.Conditions.Current(), s.log)
	}
	return w
}

func (s *scarce) waits() bool { return s.Conditions.Has(subnet.NoSubnet) }

// leases checks that w holds a subnet within d.
func (s *scarce) leases(w *following, want string, d time.Duration) lease.Lease {
	s.Helper()
	elapse(d)
	own := w.stats().Own
	if own.Subnets != ipv4(want) || w.stats().Lost || s.held(own.Subnets) != own || s.waits() {
		s.Errorf("after %v this host has %+v, the registry %+v, stats %+v\n%s", d, own, s.held(own.Subnets), w.stats(), s.log)
	}
	if n := s.noted.Load(); !n.Covers(own) {
		s.Errorf("has %+v, noted %+v", own, n)
	}
	return own
}

// TestPeersAreFollowedWhileThePoolIsFull: the own subnet is lost and no other is free. Peers join,
// change, renew and leave, and the views follow. Leases of other hosts in the registry are
// unchanged.
func TestPeersAreFollowedWhileThePoolIsFull(t *testing.T) {
	in(t, func(f *fixture) {
		s := newScarce(f)
		w := s.lose()
		s.says("lost own subnet to another host", 1)
		s.says("cannot lease a subnet, waiting for a free one", 1)
		s.says("3 subnets of length 24 (10.42.7.0 to 10.42.9.0), and 3 leases leave none of them free", 1)
		for i := range 20 {
			// Each change comes at a different point of the attempts to lease a subnet, which
			// continue.
			elapse(1700 * time.Millisecond)
			s.reg.Put("10.42.8.0-24", value(them, 100+i), 0) // another MAC
			elapse(soon)
			w.expect(1, "10.42.8.0/24", "10.42.9.0/24")
		}
		s.reg.Put("10.42.8.0-24", value(them, 119), 0) // a renewal
		elapse(time.Minute)
		w.expect(0)
		s.reg.Put("10.42.200.0-24", value(them, 20), 0) // a subnet outside the pool
		elapse(soon)
		w.expect(1, "10.42.8.0/24", "10.42.9.0/24", "10.42.200.0/24")
		s.reg.Remove("10.42.200.0-24")
		elapse(1100 * time.Millisecond)
		w.expect(1, "10.42.8.0/24", "10.42.9.0/24")
		if st := w.stats(); st.Leases != 3 || st.Moves != 1 || st.Own.Subnets != w.own.Subnets {
			t.Errorf("stats %+v", st)
		}
		s.says("level=ERROR", 2)
	})
}

// withoutSubnet runs test with a host that waits for a subnet because it has lost its own, and with
// one that starts.
func withoutSubnet(t *testing.T, test func(s *scarce, w *following, lost bool)) {
	t.Helper()
	for _, lost := range []bool{true, false} {
		in(t, func(f *fixture) {
			s := newScarce(f)
			if lost {
				test(s, s.lose(), lost)
				return
			}
			s.full()
			w := s.begin()
			elapse(time.Second)
			if !s.waits() || w.stats().Lost {
				t.Errorf("stats %+v, conditions %v", w.stats(), s.Conditions.Current())
			}
			w.expect(0)
			test(s, w, lost)
		})
	}
}

// TestEnlargedPool: a host without a subnet has one within a second of an enlargement of the pool,
// whatever it was waiting for.
func TestEnlargedPool(t *testing.T) {
	for _, waited := range []time.Duration{0, time.Second, 4 * time.Second, 7 * time.Second, time.Hour} {
		withoutSubnet(t, func(s *scarce, w *following, lost bool) {
			elapse(waited)
			s.terms <- subnet.Terms{Attrs: attrsOf(me, 1), Pool: s.wider, TTL: 2 * ttl}
			own := s.leases(w, "10.42.10.0/24", time.Second)
			if left := time.Until(own.Expires); left > 2*ttl || left < 2*ttl-time.Second {
				t.Errorf("leased for %v", left)
			}
			if v := w.take(); len(v) != 1 || v[0].Own != own || !slices.Equal(peersOf(v[0]), []string{"10.42.7.0/24", "10.42.8.0/24", "10.42.9.0/24"}) {
				t.Errorf("views %+v", v)
			}
			s.says("no longer: cannot lease a subnet", 1)
			s.says("waiting for a free one", 2) // begins and ends
			elapse(6 * ttl)
			s.says("lease renewed", 3)
		})
	}
}

// TestNewTermsComeDuringAnAttempt: an attempt with the old terms fails and is repeated with the new
// ones.
func TestNewTermsComeDuringAnAttempt(t *testing.T) {
	in(t, func(f *fixture) {
		s := newScarce(f)
		w := s.lose()
		release := s.gate.hold("list")
		elapse(time.Minute)
		s.terms <- subnet.Terms{Attrs: w.own.Attrs, Pool: pool("10.42.0.0/16", 24, "10.42.8.0", "10.42.8.0"), TTL: ttl}
		synctest.Wait()
		s.terms <- subnet.Terms{Attrs: w.own.Attrs, Pool: s.wider, TTL: ttl}
		elapse(time.Minute)
		release()
		s.leases(w, "10.42.10.0/24", time.Second)
	})
}

// TestTermsThatChangeAgainAndAgain checks that changing terms cause at most one attempt per second.
func TestTermsThatChangeAgainAndAgain(t *testing.T) {
	in(t, func(f *fixture) {
		s := newScarce(f)
		w := s.lose()
		_, lists := w.asked()
		for i := range 600 {
			s.terms <- subnet.Terms{Attrs: attrsOf(me, i), Pool: f.Pool, TTL: ttl}
			elapse(100 * time.Millisecond)
		}
		if n := lists.Load(); n < 30 || n > 70 {
			t.Errorf("%d attempts in a minute", n)
		}
		w.expect(0)
		// They do not delay later writes of the lease.
		s.terms <- subnet.Terms{Attrs: attrsOf(me, 600), Pool: s.wider, TTL: ttl}
		own := s.leases(w, "10.42.10.0/24", 2*time.Second)
		s.reg.Remove(lease.Key(own.Subnets))
		elapse(5 * time.Second)
		if held := s.held(own.Subnets); held.Attrs != own.Attrs {
			t.Errorf("five seconds after it was deleted, the lease is %+v", held)
		}
	})
}

// TestMovedNetwork: while this host waits, the network config gets entirely different subnets and
// the uplink gets another address.
func TestMovedNetwork(t *testing.T) {
	withoutSubnet(t, func(s *scarce, w *following, lost bool) {
		s.terms <- subnet.Terms{Attrs: attrsOf(elsewhere, 1), Pool: pool("10.77.0.0/16", 24, "10.77.3.0", "10.77.3.0"), TTL: ttl}
		if own := s.leases(w, "10.77.3.0/24", time.Second); lost && own.Attrs != attrsOf(elsewhere, 1) {
			t.Errorf("the lease says %+v", own.Attrs)
		}
	})
}

// TestLostSubnetComesBack: the new owner of the subnet has left, and no other is free.
func TestLostSubnetComesBack(t *testing.T) {
	in(t, func(f *fixture) {
		s := newScarce(f)
		w := s.lose()
		s.reg.Remove("10.42.7.0-24")
		s.leases(w, "10.42.7.0/24", 6*time.Second)
		w.expect(0)
		s.says("own lease was deleted, creating it again", 1)
	})
}

// TestRegistryIsAwayWhileAcquiring: the outage and its end are each logged once, and then a lease
// is acquired as soon as a subnet is free.
func TestRegistryIsAwayWhileAcquiring(t *testing.T) {
	withoutSubnet(t, func(s *scarce, w *following, lost bool) {
		s.outage(time.Hour, func() {
			s.says("is unreachable", 1)
			if w.stats().AwaySince.IsZero() || !s.waits() || w.stats().Lost != lost {
				t.Errorf("stats %+v, conditions %v", w.stats(), s.Conditions.Current())
			}
			s.reg.Remove("10.42.8.0-24")
		})
		s.leases(w, "10.42.8.0/24", 0)
		s.says("is reachable again", 1)
		if v := w.newest(); !slices.Equal(peersOf(v), []string{"10.42.7.0/24", "10.42.9.0/24"}) {
			t.Errorf("view %+v", v)
		}
	})
}

// TestCallsThatHang: while a call of the registry hangs, everything that does not need its answer
// continues: peers are followed, the grace period of a deleted lease ends, and new terms and
// reports are handled.
func TestCallsThatHang(t *testing.T) {
	goesOn := func(t *testing.T, s *scarce, w *following) {
		t.Helper()
		elapse(time.Second)
		w.take()
		s.reg.Put("10.42.8.0-24", value(them, 88), 0)
		elapse(soon)
		if v := w.take(); len(v) != 1 || v[0].Peer(ipv4("10.42.8.0/24")).Attrs != attrsOf(them, 88) {
			t.Errorf("a peer that changed: views %+v\n%s", v, s.log)
		}
		s.reg.Put("10.42.20.0-24", "nonsense", 0)
		s.reg.Remove("10.42.9.0-24")
		elapse(1100 * time.Millisecond)
		if v := w.take(); len(v) != 1 || v[0].Peer(ipv4("10.42.9.0/24")) != nil || w.stats().Invalid != 1 {
			t.Errorf("a peer that is gone: views %+v, stats %+v", v, w.stats())
		}
	}
	for name, test := range map[string]func(t *testing.T, s *scarce){
		"the listing of an attempt": func(t *testing.T, s *scarce) {
			w := s.lose()
			release := s.gate.hold("list")
			elapse(20 * time.Second)
			goesOn(t, s, w)
			release()
			s.leases(w, "10.42.9.0/24", time.Second)
		},
		"a renewal": func(t *testing.T, s *scarce) {
			w := s.follow()
			release := s.gate.hold("update answer")
			elapse(ttl - time.Hour)
			s.says("lease renewed", 0)
			goesOn(t, s, w)
			s.terms <- subnet.Terms{Attrs: attrsOf(elsewhere, 1), Pool: s.Pool, TTL: ttl}
			elapse(time.Second)
			release()
			elapse(time.Second)
			s.says("lease renewed", 1)
			if own := s.leases(w, "10.42.7.0/24", 0); own.PublicIP != elsewhere {
				t.Errorf("the lease is %+v", own)
			}
		},
		"the look after a silence": func(t *testing.T, s *scarce) {
			w := s.follow()
			s.reg.Remove("10.42.8.0-24")
			elapse(100 * time.Millisecond)
			release := s.gate.hold("get")
			s.reg.Fail(errAway) // the watch ends
			elapse(time.Millisecond)
			s.reg.Fail(nil)
			w.take()
			elapse(1100 * time.Millisecond)
			w.expect(1, "10.42.9.0/24")
			s.terms <- subnet.Terms{Attrs: attrsOf(elsewhere, 1), Pool: s.Pool, TTL: ttl}
			synctest.Wait() // is not waited for
			release()
			elapse(10 * time.Second)
			if own := s.leases(w, "10.42.7.0/24", 0); own.PublicIP != elsewhere {
				t.Errorf("the lease is %+v", own)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(f *fixture) { test(t, newScarce(f)) })
		})
	}
}

// TestOwnKeyIsWrittenWhileAStepIsUnderWay: a write by another host between the write of a step and
// its answer is detected.
func TestOwnKeyIsWrittenWhileAStepIsUnderWay(t *testing.T) {
	for name, change := range map[string]func(s *scarce){
		"overwritten": func(s *scarce) { s.reg.Put("10.42.7.0-24", value(elsewhere, 99), ttl) },
		"deleted":     func(s *scarce) { s.reg.Remove("10.42.7.0-24") },
		"all deleted": func(s *scarce) { s.reg.RemoveAll() },
		"wiped":       func(s *scarce) { s.reg.Wipe(0) },
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(f *fixture) {
				s := newScarce(f)
				w := s.follow()
				release := s.gate.hold("update answer")
				s.terms <- subnet.Terms{Attrs: attrsOf(elsewhere, 1), Pool: f.Pool, TTL: ttl}
				elapse(time.Second)
				change(s)
				elapse(time.Minute) // a listing, too
				release()
				if own := s.leases(w, "10.42.7.0/24", 10*time.Second); own.PublicIP != elsewhere {
					t.Errorf("the lease is %+v", own)
				}
			})
		})
	}
}

// TestNewSubnetIsWrittenBeforeTheAnswer: another host writes the key of the new subnet that
// replaces a lost one before the answer arrives.
func TestNewSubnetIsWrittenBeforeTheAnswer(t *testing.T) {
	in(t, func(f *fixture) {
		s := newScarce(f)
		w := s.lose()
		release := s.gate.hold("create answer")
		s.terms <- subnet.Terms{Attrs: w.own.Attrs, Pool: s.wider, TTL: ttl}
		elapse(time.Second)
		s.reg.Remove("10.42.10.0-24")
		elapse(time.Second)
		release()
		s.leases(w, "10.42.10.0/24", 5*time.Second)
	})
}

// TestRegistryIsWipedUnheard: when the watch continues, the registry is a different one with a
// higher index, and a step has already recreated the own key, which hides the change. All leases
// are listed again, and missing peers are retained for a while.
func TestRegistryIsWipedUnheard(t *testing.T) {
	in(t, func(f *fixture) {
		s := newScarce(f)
		f.Registry = restless{s.reg}
		w := s.follow()
		release := s.gate.hold("get answer")
		s.reg.Fail(errAway) // the watch ends
		elapse(time.Millisecond)
		s.reg.Fail(nil)
		elapse(2 * time.Second) // the own key was looked at
		s.gate.admit("get answer")
		s.reg.Wipe(1000)
		s.reg.Put("10.42.8.0-24", value(them, 80), 0)
		s.terms <- subnet.Terms{Attrs: attrsOf(elsewhere, 1), Pool: f.Pool, TTL: ttl}
		release()
		for _, then := range []struct {
			after time.Duration
			peers []string
		}{{time.Minute, []string{"10.42.8.0/24", "10.42.9.0/24"}}, {2*time.Minute + time.Second, []string{"10.42.8.0/24"}}} {
			elapse(then.after)
			if v := w.take(); len(v) == 0 || !slices.Equal(peersOf(v[len(v)-1]), then.peers) {
				t.Errorf("after %v: views %+v", then.after, v)
			}
		}
		s.says("own lease was deleted, creating it again", 1)
		if own := s.leases(w, "10.42.7.0/24", 0); own.PublicIP != elsewhere {
			t.Errorf("the lease is %+v", own)
		}
	})
}

// TestHolderIsGoneBeforeAnotherSubnetIsLeased: a store was wiped and another host has this host's
// subnet. When this host has a new one, the other host has released the subnet. It is not a peer.
func TestHolderIsGoneBeforeAnotherSubnetIsLeased(t *testing.T) {
	in(t, func(f *fixture) {
		s := newScarce(f)
		f.Pool = s.wider
		for range 1000 { // makes the index of the new store lower
			s.reg.SetConfig(nil)
		}
		w := s.follow()
		elapse(time.Second)
		s.reg.Fail(errAway)
		elapse(time.Second)
		s.reg.Wipe(0)
		s.full()
		release := s.gate.hold("create answer")
		s.reg.Fail(nil)
		elapse(10 * time.Second)
		s.says("lost own subnet to another host", 1)
		s.reg.Remove("10.42.7.0-24")
		elapse(2 * time.Second)
		release()
		elapse(3 * time.Minute) // nor are the peers that the new store does not have
		own, v := w.stats().Own, w.newest()
		if own.Subnets == w.own.Subnets || s.held(own.Subnets) != own || len(v.Peers) > 0 {
			t.Errorf("has %+v, view %+v\n%s", own, v, s.log)
		}
	})
}

// TestEndWhileAcquiring: Follow ends at once, whatever it is waiting for. A lease that it wrote,
// even without an answer, can be released. Another host's lease cannot.
func TestEndWhileAcquiring(t *testing.T) {
	for _, c := range []struct {
		name     string
		begin    func(s *scarce) *following
		released string
	}{
		{"lost, full", (*scarce).lose, ""},
		{"at the start, full", func(s *scarce) *following { s.full(); return s.begin() }, ""},
		{"at the start, listing", func(s *scarce) *following { s.gate.hold("list"); return s.begin() }, ""},
		{"at the start, without an answer", func(s *scarce) *following { s.gate.hold("create answer"); return s.begin() }, "10.42.7.0/24"},
		{"lost, without an answer", func(s *scarce) *following {
			w := s.lose()
			s.gate.hold("create answer")
			s.terms <- subnet.Terms{Attrs: w.own.Attrs, Pool: s.wider, TTL: ttl}
			elapse(time.Second)
			return w
		}, "10.42.10.0/24"},
		{"lost, has another", func(s *scarce) *following {
			w := s.lose()
			s.terms <- subnet.Terms{Attrs: w.own.Attrs, Pool: s.wider, TTL: ttl}
			elapse(time.Second)
			return w
		}, "10.42.10.0/24"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in(t, func(f *fixture) {
				s := newScarce(f)
				w := c.begin(s)
				elapse(time.Minute)
				start := time.Now()
				w.end()
				if d := time.Since(start); d != 0 {
					t.Errorf("ended after %v", d)
				}
				before := map[string]lease.Lease{}
				for i := 7; i <= 10; i++ {
					p := fmt.Sprintf("10.42.%d.0/24", i)
					before[p] = s.held(ipv4(p))
				}
				var l lease.Lease
				var err error
				if s.noted.Load() != nil {
					l, err = s.release()
				}
				if err != nil || l.Subnets.IsValid() != (c.released != "") || l.Subnets.IsValid() && l.Subnets != ipv4(c.released) {
					t.Errorf("released %+v, %v, want %s", l, err, c.released)
				}
				for p, was := range before {
					if is := s.held(ipv4(p)); (is != was) != (p == c.released) {
						t.Errorf("%s was %+v, is %+v", p, was, is)
					}
				}
			})
		})
	}
}

// TestHostErrors: errors of Attrs and Avoid are retried or end the start. Later they are always
// retried.
func TestHostErrors(t *testing.T) {
	broken := errors.New("no uplink")
	passing := fmt.Errorf("%w: %w", subnet.ErrTryAgain, broken)
	// fails makes Attrs or Avoid return an error as long as it is set.
	fails := func(f *fixture, avoid bool) *atomic.Pointer[error] {
		failing := new(atomic.Pointer[error])
		fail := func(now bool) (err error) {
			if e := failing.Load(); now && e != nil {
				err = *e
			}
			return err
		}
		f.Avoid = func() ([]netip.Prefix, error) { return nil, fail(avoid) }
		f.Attrs = func(a lease.Attrs, o []lease.Lease) (lease.Attrs, error) {
			if err := fail(!avoid); err != nil {
				return lease.Attrs{}, err
			}
			return keepMAC(a, o)
		}
		return failing
	}
	for name, avoid := range map[string]bool{"Attrs": false, "Avoid": true} {
		t.Run(name, func(t *testing.T) {
			for _, err := range []error{broken, passing} {
				in(t, func(f *fixture) {
					s := newScarce(f)
					failing := fails(f, avoid)
					failing.Store(&err)
					w := s.begin()
					elapse(time.Minute)
					if err == broken {
						if got := <-w.done; got != broken {
							t.Errorf("ended with %v", got)
						}
						w.done <- context.Canceled // for the end of the test
						return
					}
					failing.Store(nil)
					s.leases(w, "10.42.7.0/24", time.Second)
					s.says("is unreachable", 0)
				})
			}
		})
	}
	in(t, func(f *fixture) {
		s := newScarce(f)
		f.Pool, s.wider = s.wider, f.Pool
		failing := fails(f, true)
		w := s.follow()
		failing.Store(&broken)
		s.full()
		elapse(time.Minute)
		if !w.stats().Lost || s.waits() {
			t.Errorf("stats %+v, conditions %v", w.stats(), s.Conditions.Current())
		}
		failing.Store(nil)
		s.leases(w, "10.42.10.0/24", 6*time.Second)
	})
}

// TestHeartbeat: as long as calls return, each minute; not while one hangs.
func TestHeartbeat(t *testing.T) {
	in(t, func(f *fixture) {
		s := newScarce(f)
		var last atomic.Pointer[time.Time]
		var longest atomic.Int64
		f.Heartbeat = func() {
			now := time.Now()
			if before := last.Swap(&now); before != nil {
				longest.Store(max(longest.Load(), int64(now.Sub(*before))))
			}
		}
		f.Registry = restless{s.reg}
		w := s.follow()
		for what, fail := range map[string]error{"quiet": nil, "away": errAway} {
			s.reg.Fail(fail)
			longest.Store(0)
			elapse(2 * time.Hour)
			if silent := time.Duration(longest.Load()); silent > time.Minute || silent == 0 {
				t.Errorf("%s: silent for %v", what, silent)
			}
		}
		s.reg.Fail(nil)
		elapse(time.Minute)
		for _, op := range []string{"get", "update answer"} {
			release := s.gate.hold(op)
			s.terms <- subnet.Terms{Attrs: attrsOf(me, len(op)), Pool: f.Pool, TTL: ttl}
			elapse(10 * time.Minute)
			if d := time.Since(*last.Load()); d < 8*time.Minute {
				t.Errorf("%s hangs, alive %v ago", op, d)
			}
			release()
			elapse(time.Minute)
			if d := time.Since(*last.Load()); d > time.Minute {
				t.Errorf("%s is back, alive %v ago", op, d)
			}
		}
		w.end()
	})
}

// restless is a registry whose watches return after 45 s, like those of etcd.
type restless struct{ registry.Registry }

func (r restless) Watch(ctx context.Context, index uint64) ([]registry.Event, uint64, error) {
	limited, cancel := context.WithTimeout(ctx, 45*time.Second)
	defer cancel()
	events, next, err := r.Registry.Watch(limited, index)
	if ctx.Err() == nil && limited.Err() != nil {
		err = nil
	}
	return events, next, err
}
