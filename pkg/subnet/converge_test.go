package subnet_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/subnet"
)

// erratic is a registry whose calls are delayed before and after they take effect, and whose
// answers may be lost.
type erratic struct {
	registry.Registry
	mu    sync.Mutex
	r     *rand.Rand
	sound bool // no longer
	store int  // calls started in another store get no answer
}

// which returns the number of the current store.
func (e *erratic) which() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.store
}

func (e *erratic) number(n int) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.sound {
		return 1 // not a failure
	}
	return e.r.IntN(n)
}

// delay waits for a few milliseconds, or occasionally for seconds.
func (e *erratic) delay(ctx context.Context) error {
	d := time.Duration(e.number(5)) * time.Millisecond
	if e.number(5) == 0 {
		d = time.Duration(e.number(20_000)) * time.Millisecond
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
	}
	if e.number(20) == 0 {
		return errAway
	}
	return nil
}

func call[T any](ctx context.Context, e *erratic, do func() (T, error)) (T, error) {
	var none T
	store := e.which()
	if err := e.delay(ctx); err != nil {
		return none, err
	}
	result, err := do()
	if err := e.delay(ctx); err != nil {
		return none, err
	}
	if e.which() != store {
		return none, errAway
	}
	return result, err
}

func (e *erratic) List(ctx context.Context) (registry.Listing, error) {
	return call(ctx, e, func() (registry.Listing, error) { return e.Registry.List(ctx) })
}

func (e *erratic) Get(ctx context.Context, subnets lease.Subnets) (registry.Event, error) {
	return call(ctx, e, func() (registry.Event, error) { return e.Registry.Get(ctx, subnets) })
}

func (e *erratic) Create(ctx context.Context, subnets lease.Subnets, a lease.Attrs, ttl time.Duration) (lease.Lease, error) {
	return call(ctx, e, func() (lease.Lease, error) { return e.Registry.Create(ctx, subnets, a, ttl) })
}

func (e *erratic) Update(ctx context.Context, prev lease.Lease, a lease.Attrs, ttl time.Duration) (lease.Lease, error) {
	return call(ctx, e, func() (lease.Lease, error) { return e.Registry.Update(ctx, prev, a, ttl) })
}

// TestFollowerConverges checks that, some time after arbitrary changes to the registry, the own key
// and the terms during calls, the own lease is in the registry with the latest terms, and the view
// has all leases of the registry.
func TestFollowerConverges(t *testing.T) {
	moves := uint64(0)
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t)
			r := rand.New(rand.NewPCG(seed, 15))
			e := &erratic{Registry: f.reg, r: rand.New(rand.NewPCG(seed, 16))}
			f.Registry, f.TTL, f.Margin = restless{e}, time.Hour, 50*time.Minute
			f.Pool = pool("10.42.0.0/16", 24, "10.42.1.0", "10.42.9.0")
			now := subnet.Terms{Attrs: attrsOf(me, 1), Pool: f.Pool, TTL: f.TTL}
			w := f.follow()
			wipes := 0
			key := func() string { return fmt.Sprintf("10.42.%d.0-24", 1+r.IntN(9)) }
			for range 100 {
				switch r.IntN(16) {
				case 0:
					f.reg.RemoveAll()
				case 1:
					f.reg.Fail(errAway)
					elapse(time.Duration(r.IntN(20_000)) * time.Millisecond)
					// The index is lower or higher than before, and never equal to an earlier one.
					index := uint64(2000 * (1 + wipes/2))
					if wipes++; wipes%2 == 1 {
						index = uint64(2000 * (100 - wipes))
					}
					f.reg.Wipe(index)
					e.mu.Lock()
					e.store++
					e.mu.Unlock()
					if r.IntN(2) == 0 {
						f.reg.Fail(nil)
					}
				case 2:
					f.reg.SetHistory(0)
					f.reg.SetHistory(1000)
				case 3:
					f.reg.Fail(errAway)
				case 4, 5:
					f.reg.Fail(nil)
				case 6: // another host takes this host's subnet
					own := lease.Key(w.stats().Own.Subnets)
					f.reg.Remove(own)
					f.reg.Put(own, value(them, r.IntN(9)), time.Duration(r.IntN(3))*time.Minute)
				case 7:
					f.reg.Put(lease.Key(w.stats().Own.Subnets), []string{"?", value(me, 99), value(them, 70)}[r.IntN(3)], ttl)
				case 8:
					f.reg.Remove(lease.Key(w.stats().Own.Subnets))
				case 9:
					now.Attrs = attrsOf([]netip.Addr{me, elsewhere}[r.IntN(2)], r.IntN(5))
					f.terms <- now
				case 10, 11:
					f.reg.Remove(key())
				default:
					f.reg.Put(key(), value(netip.AddrFrom4([4]byte{203, 0, 113, byte(r.IntN(200))}), r.IntN(200)), time.Duration(r.IntN(3))*time.Minute)
				}
				elapse(time.Duration(r.IntN(3_000)) * time.Duration(1+99*(r.IntN(10)/9)) * time.Millisecond)
			}
			e.mu.Lock()
			e.sound = true
			e.mu.Unlock()
			f.reg.Fail(nil)
			for i := 1; i <= 4; i++ { // otherwise it could wait forever
				f.reg.Remove(fmt.Sprintf("10.42.%d.0-24", i))
			}
			list := func() registry.Listing {
				l, err := f.reg.List(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return l
			}
			for _, bad := range list().Invalid { // otherwise their previous values would be retained
				f.reg.Remove(bad.Key)
			}
			elapse(5 * time.Minute)
			own, held := w.stats().Own, list()
			if s := w.stats(); s.Lost || !s.AwaySince.IsZero() || own.Attrs != now.Attrs || f.held(own.Subnets) != own || !f.noted.Load().Covers(own) {
				t.Errorf("seed %d: stats %+v, terms %+v, the registry has %+v, noted %+v\n%s", seed, s, now, f.held(own.Subnets), f.noted.Load(), f.log)
			}
			var peers []string
			for _, l := range held.Leases {
				if l.Subnets != own.Subnets {
					peers = append(peers, l.Subnets.String()+" "+l.BackendData)
				}
			}
			last := w.newest()
			var seen []string
			for _, p := range last.Peers {
				seen = append(seen, p.Subnets.String()+" "+p.BackendData)
			}
			if slices.Sort(peers); !slices.Equal(peers, seen) || !last.Own.SameAs(own) {
				t.Errorf("seed %d: the last view has %s and %q, the registry %q\n%s", seed, last.Own.Subnets, seen, peers, f.log)
			}
			moves += w.stats().Moves
			w.end()
		})
	}
	if moves < 60 {
		t.Errorf("only %d subnets were lost", moves)
	}
}
