package subnet_test

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/subnet"
)

func TestRenewal(t *testing.T) {
	following1(t, func(w *following) {
		elapse(ttl - time.Hour - 2*time.Second)
		if held := w.held(w.own.Subnets); held.Revision != w.own.Revision {
			t.Errorf("renewed before its time: %+v", held)
		}
		elapse(3 * time.Second)
		held := w.held(w.own.Subnets)
		if held.Revision == w.own.Revision || time.Until(held.Expires) < ttl-time.Minute {
			t.Errorf("not renewed: %+v", held)
		}
		if w.stats().Own != held {
			t.Errorf("stats say %+v, registry %+v", w.stats().Own, held)
		}
		elapse(30 * ttl)
		w.says("lease renewed", 32)
		w.expect(0)
	})
}

// Even if the margin is longer than the TTL, renewals keep a minimum distance.
func TestRenewalFloor(t *testing.T) {
	in(t, func(f *fixture) {
		f.TTL, f.Margin = time.Hour, 2*time.Hour
		w := f.follow()
		elapse(time.Hour)
		if n := w.log.Count("lease renewed"); n < 55 || n > 61 {
			t.Errorf("%d renewals in an hour", n)
		}
	})
	in(t, func(f *fixture) {
		f.TTL = 10 * time.Second
		w := f.follow()
		elapse(time.Hour)
		if held := w.held(w.own.Subnets); held.Created != w.own.Created {
			t.Errorf("a lease of 10 s was not kept: %+v, was %+v", held, w.own)
		}
	})
}

func TestReservationIsNotRenewed(t *testing.T) {
	in(t, func(f *fixture) {
		f.reg.Put("10.42.9.0-24", value(me, 1), 0)
		w := f.follow()
		elapse(100 * ttl)
		w.says("lease renewed", 0)
		if held := w.held(w.own.Subnets); held.Revision != w.own.Revision || !held.Reservation() {
			t.Errorf("reservation %+v was touched: %+v", w.own, held)
		}
		// The operator changes it into an ordinary lease, and back.
		w.reg.Put("10.42.9.0-24", value(me, 1), ttl)
		elapse(2 * ttl)
		w.says("lease renewed", 2)
		w.reg.Put("10.42.9.0-24", value(me, 1), 0)
		elapse(10 * ttl)
		w.says("lease renewed", 2)
		w.says("lease was reserved for this host", 1)
		w.says("another program writes this host's lease", 1)
		w.expect(1)
	})
}

func TestRenewalRetries(t *testing.T) {
	following1(t, func(w *following) {
		w.reg.SetHook(func(_ context.Context, op string, _ lease.Subnets, _ bool) error {
			if op == "update" {
				return errAway
			}
			return nil
		})
		elapse(ttl - 2*time.Minute)
		w.reg.SetHook(nil)
		elapse(time.Minute)
		w.says("failed to renew lease", 1)
		w.says("lease renewed", 1)
		if held := w.held(w.own.Subnets); held.Created != w.own.Created {
			t.Errorf("lease was lost: %+v", held)
		}
	})
}

// A renewal without an answer counts as one.
func TestRenewalLostAnswer(t *testing.T) {
	following1(t, func(w *following) {
		var lost atomic.Int32
		w.reg.SetHook(func(_ context.Context, op string, _ lease.Subnets, done bool) error {
			if op == "update" && done {
				lost.Add(1)
				return errAway
			}
			return nil
		})
		elapse(ttl)
		if lost.Load() != 1 {
			t.Errorf("written %d times", lost.Load())
		}
		w.says("lease renewed", 0)
		w.expect(0)
		if held := w.held(w.own.Subnets); held.Created != w.own.Created || w.stats().Own != held {
			t.Errorf("stats %+v, registry %+v", w.stats().Own, held)
		}
	})
}

// The own key was deleted, has expired or was overwritten.
func TestOwnKeyIsRestored(t *testing.T) {
	deleted := "own lease was deleted"
	put := func(v string) func(*following) {
		return func(w *following) { w.reg.Put("10.42.7.0-24", v, ttl) }
	}
	for name, c := range map[string]struct {
		change func(w *following)
		says   string
	}{
		"deleted":                             {func(w *following) { w.reg.Remove("10.42.7.0-24") }, deleted},
		"expired while the registry was away": {func(w *following) { w.outage(ttl+time.Hour, func() {}) }, deleted},
		"another MAC":                         {put(value(me, 99)), "own lease was overwritten"},
		"no MAC":                              {put(`{"PublicIP":"198.51.100.7"}`), "own lease was overwritten"},
		"nonsense":                            {put("nonsense"), "own lease was overwritten"},
		"empty":                               {put(""), "own lease was overwritten"},
	} {
		t.Run(name, func(t *testing.T) {
			following1(t, func(w *following) {
				c.change(w)
				elapse(100 * time.Millisecond)
				if held := w.held(w.own.Subnets); !held.SameAs(w.own) || held.Reservation() {
					t.Errorf("registry holds %+v", held)
				}
				w.expect(0)
				elapse(2 * ttl)
				w.says("lease renewed", 2)
				w.says(c.says, 1)
			})
		})
	}
}

// The lease is renewed before it expires, however often the own key changed in the last minute.
func TestOwnKeyAboutToExpire(t *testing.T) {
	for _, fail := range []bool{false, true} {
		following1(t, func(w *following) {
			for range 10 {
				w.reg.Put("10.42.7.0-24", value(me, 1), ttl)
				elapse(3 * time.Second)
			}
			var failed atomic.Bool
			w.reg.SetHook(func(_ context.Context, op string, _ lease.Subnets, _ bool) error {
				if fail && op == "update" && !failed.Swap(true) {
					return errAway
				}
				return nil
			})
			w.reg.Put("10.42.7.0-24", value(me, 1), 4*time.Second)
			before := w.held(w.own.Subnets)
			elapse(5 * time.Second)
			if held := w.held(w.own.Subnets); held.Created != before.Created || time.Until(held.Expires) < ttl/2 {
				t.Errorf("a write fails: %v; the lease became %+v", fail, held)
			}
			w.says("own lease was deleted", 0)
		})
	}
}

// Two daemons with one public IP and different data must not fight at full speed.
func TestOwnKeyFight(t *testing.T) {
	following1(t, func(w *following) {
		var writes atomic.Int32
		w.reg.SetHook(func(_ context.Context, op string, p lease.Subnets, done bool) error {
			if op == "update" && done {
				writes.Add(1)
				w.reg.Put(lease.Key(p), value(me, 99), ttl)
			}
			return nil
		})
		w.reg.Put("10.42.7.0-24", value(me, 99), ttl)
		elapse(10 * time.Minute)
		if n := writes.Load(); n < 10 || n > 20 {
			t.Errorf("%d writes in ten minutes", n)
		}
		w.expect(0)
	})
}

// When the own key is deleted, another key with an IPv6 subnet may have the own IPv4 subnet: that
// of another host, which then owns it; that of another daemon on this host; or a stale one.
func TestOwnSubnetUnderAnotherKey(t *testing.T) {
	const key = "10.42.7.0-24&fd42:0:0:7::-64"
	both := lease.SubnetsOf(prefix("10.42.7.0/24"), prefix("fd42:0:0:7::/64"))
	for name, c := range map[string]struct {
		value       string
		keeps, mine bool // the IPv4 subnet; the other key as well
	}{
		"another host": {value(them, 70), false, false},
		"this host":    {value(me, 99), true, true},
		"nobody":       {"nonsense", true, false},
	} {
		t.Run(name, func(t *testing.T) {
			following1(t, func(w *following) {
				w.reg.Remove("10.42.7.0-24")
				w.reg.Put(key, c.value, ttl)
				elapse(3 * time.Second)
				own := w.stats().Own
				if own.Subnets.V4() == both.V4() != c.keeps || own.Subnets == both != c.mine {
					t.Errorf("own lease is %+v", own)
				}
				if held := w.held(own.Subnets); !held.SameAs(own) || held.PublicIP != me {
					t.Errorf("registry holds %+v, own is %+v", held, own)
				}
				if theirs := w.held(both); c.keeps == (theirs.PublicIP == them) {
					t.Errorf("under the other key there is %+v", theirs)
				}
				views := w.take()
				for _, v := range views {
					for _, p := range v.Peers {
						if !p.Subnets.IsValid() || p.PublicIP == me {
							t.Errorf("peer %+v", p)
						}
					}
				}
			})
		})
	}
}

// Another host takes the subnet of a running host by deleting and recreating its key, as every
// unconditional write in etcd's v2 API does; see TestIdentityWhileRunning.
func TestOwnKeyTaken(t *testing.T) {
	following1(t, func(w *following) {
		w.reg.Remove("10.42.7.0-24")
		w.reg.Put("10.42.7.0-24", value(them, 70), ttl)
		elapse(time.Second)
		w.says("lost own subnet to another host", 1)
		w.says("times=1", 1)
		if n := w.stats().Moves; n != 1 {
			t.Errorf("%d moves are reported", n)
		}
		v := w.newest()
		if v.Own.Subnets == w.own.Subnets || v.Own.Attrs != w.own.Attrs {
			t.Errorf("own lease is %+v now, was %+v", v.Own, w.own)
		}
		if len(v.Peers) != 2 || v.Peers[0].Subnets != w.own.Subnets || v.Peers[0].PublicIP != them {
			t.Errorf("peers %+v", v.Peers)
		}
		if held := w.held(ipv4("10.42.7.0/24")); held.PublicIP != them {
			t.Errorf("the other's lease became %+v", held)
		}
		if held := w.held(v.Own.Subnets); !held.SameAs(v.Own) {
			t.Errorf("registry holds %+v, own is %+v", held, v.Own)
		}
		w.own = v.Own
		elapse(2 * ttl) // the new one is renewed like the old one; the other's expires
		w.expect(1, "10.42.8.0/24")
		w.reg.Remove(lease.Key(w.own.Subnets))
		elapse(time.Second)
		if held := w.held(w.own.Subnets); !held.SameAs(w.own) {
			t.Errorf("registry holds %+v", held)
		}
	})
}

// Another host takes the subnet between the expiry of our lease and our return.
func TestOwnKeyTakenWhileAway(t *testing.T) {
	following1(t, func(w *following) {
		w.outage(ttl+time.Hour, func() { w.reg.Put("10.42.7.0-24", value(them, 70), ttl) })
		w.says("lost own subnet to another host", 1)
		if v := w.newest(); v.Own.Subnets == w.own.Subnets {
			t.Errorf("view %+v\n%s", v, w.log)
		}
	})
}

// A new address of the uplink is published at once under the same subnet, also for a reservation.
// During an outage it is published when that ends.
func TestNewAddress(t *testing.T) {
	for _, reserved := range []bool{false, true} {
		in(t, func(f *fixture) {
			if reserved {
				f.reg.Put("10.42.9.0-24", value(me, 1), 0)
			}
			w := f.follow()
			w.take()
			tell := func(ip netip.Addr) lease.Lease {
				f.terms <- subnet.Terms{Attrs: attrsOf(ip, 1), Pool: f.Pool, TTL: ttl}
				elapse(time.Second)
				return w.held(w.own.Subnets)
			}
			if held := tell(elsewhere); held.PublicIP != elsewhere || held.Created != w.own.Created || held.Reservation() != reserved {
				t.Errorf("the lease is %+v, was %+v", held, w.own)
			}
			if views := w.take(); len(views) != 1 || views[0].Own.PublicIP != elsewhere {
				t.Errorf("views %+v", views)
			}
			w.reg.Fail(errAway)
			f.terms <- subnet.Terms{Attrs: attrsOf(third, 1), Pool: f.Pool, TTL: ttl}
			elapse(time.Minute)
			w.reg.Fail(nil)
			elapse(6 * time.Second)
			if held := w.held(w.own.Subnets); held.PublicIP != third || held.Created != w.own.Created {
				t.Errorf("the lease is %+v, was %+v", held, w.own)
			}
			w.says("lost own subnet", 0)
			w.reg.Put("10.42.20.0-24", value(them, 2), ttl)
			elapse(2 * ttl)
			if held := w.held(w.own.Subnets); held.PublicIP != third {
				t.Errorf("after renewals the lease is %+v", held)
			}
		})
	}
}

// The pool of a new config applies to the next subnet, and its TTL to the next renewal.
func TestNewTerms(t *testing.T) {
	in(t, func(f *fixture) {
		w := f.follow()
		w.take()
		f.terms <- subnet.Terms{Attrs: attrsOf(me, 1), Pool: pool("10.42.0.0/16", 24, "10.42.99.0", "10.42.99.0"), TTL: 2 * ttl}
		elapse(ttl)
		held := w.held(w.own.Subnets)
		if left := time.Until(held.Expires); held.Created != w.own.Created || left < ttl+time.Hour {
			t.Errorf("the lease is %+v, was %+v", held, w.own)
		}
		w.reg.Put(lease.Key(w.own.Subnets), value(them, 2), ttl)
		elapse(time.Second)
		if v := w.newest(); v.Own.Subnets != ipv4("10.42.99.0/24") {
			t.Errorf("view %+v", v)
		}
	})
}

// The claim covers all writes whose answers may be lost, so the next run recognizes them.
func TestClaimIsNotedBeforeWriting(t *testing.T) {
	in(t, func(f *fixture) {
		lost, taken := 0, "10.42.7.0/24"
		lose := func(_ context.Context, o string, _ lease.Subnets, done bool) error {
			if done && (o == "create" || o == "update") {
				lost++
				f.reg.SetHook(nil)
				return errAway
			}
			return nil
		}
		covered := func(after string) {
			t.Helper()
			elapse(100 * time.Millisecond) // less than until the next attempt
			if held := f.held(ipv4(taken)); !f.noted.Load().Covers(held) {
				t.Errorf("after %s: the lease is %+v, what was noted %+v", after, held, f.noted.Load())
			}
		}
		f.Previous = prefix(taken)
		f.reg.SetHook(lose)
		joined := make(chan *following)
		go func() { joined <- f.follow() }()
		covered("a join")
		<-joined
		for what, do := range map[string]func(){
			"a new address": func() { f.terms <- subnet.Terms{Attrs: attrsOf(third, 1), Pool: f.Pool, TTL: ttl} },
			"a deletion":    func() { f.reg.Remove(lease.Key(ipv4(taken))) },
			"nonsense":      func() { f.reg.Put(lease.Key(ipv4(taken)), "?", ttl) },
			"a renewal":     func() { elapse(ttl - time.Hour) },
		} {
			f.reg.SetHook(lose)
			do()
			covered(what)
			elapse(5 * time.Minute)
			covered("the answer to " + what)
		}
		if lost != 5 {
			t.Errorf("%d answers were lost", lost)
		}
	})
}

// A second new address, before the answer for the first, finds the first in the registry, which is
// our own write too.
func TestNewAddressBeforeTheAnswer(t *testing.T) {
	in(t, func(f *fixture) {
		w := f.follow()
		f.reg.SetHook(func(_ context.Context, o string, _ lease.Subnets, done bool) error {
			if o == "update" && done {
				f.reg.SetHook(nil)
				f.reg.Fail(errAway) // cut off before the answer arrives
				return errAway
			}
			return nil
		})
		for _, ip := range []netip.Addr{third, elsewhere} {
			f.terms <- subnet.Terms{Attrs: attrsOf(ip, 1), Pool: f.Pool, TTL: ttl}
			elapse(time.Millisecond)
		}
		f.reg.Fail(nil)
		if held := w.held(w.own.Subnets); held.PublicIP != third || !f.noted.Load().Covers(held) {
			t.Errorf("the lease is %+v, what was noted %+v", held, f.noted.Load())
		}
		elapse(time.Minute)
		if held := w.held(w.own.Subnets); held.PublicIP != elsewhere || held.Created != w.own.Created {
			t.Errorf("the lease is %+v, was %+v\n%s", held, w.own, w.log)
		}
		w.says("lost own subnet", 0)
	})
}
