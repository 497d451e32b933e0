package subnet_test

import (
	"fmt"
	"testing"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/subnet"
)

// These tests measure delays of views in the fake time of synctest.

// soon is when a change after a quiet period must be emitted.
const soon = 2 * time.Millisecond

func leavingValue(mac int) string {
	a := attrsOf(them, mac)
	a.Leaving = true
	b, _ := a.Encode() // cannot fail: the data is JSON
	return string(b)
}

func TestChangeIsToldAtOnce(t *testing.T) {
	following1(t, func(w *following) {
		w.reg.Put("10.42.9.0-24", value(them, 9), ttl)
		elapse(soon)
		w.expect(1, "10.42.8.0/24", "10.42.9.0/24")
		elapse(30 * time.Millisecond)
		w.reg.Put("10.42.9.0-24", value(them, 10), ttl)
		elapse(soon)
		w.expect(1, "10.42.8.0/24", "10.42.9.0/24")
		// Changes right after it are delayed and combined.
		w.reg.Put("10.42.10.0-24", value(them, 10), ttl)
		elapse(soon)
		w.reg.Put("10.42.11.0-24", value(them, 11), ttl)
		elapse(20 * time.Millisecond)
		w.expect(0)
		elapse(5 * time.Millisecond)
		w.expect(1, "10.42.8.0/24", "10.42.9.0/24", "10.42.10.0/24", "10.42.11.0/24")
	})
}

// A storm of changes does not cause a storm of views.
func TestChangesAreGathered(t *testing.T) {
	following1(t, func(w *following) {
		const each, changes = time.Millisecond, 200
		begin := time.Now()
		for i := range changes {
			w.reg.Put(fmt.Sprintf("10.42.%d.0-24", i+10), value(them, i), ttl)
			elapse(each)
		}
		elapse(25 * time.Millisecond)
		views := w.take()
		if len(views) < 5 || len(views) > changes*int(each)/int(25*time.Millisecond)+2 {
			t.Errorf("%d views of %d changes in %v", len(views), changes, time.Since(begin))
		}
		if n := len(views[len(views)-1].Peers); n != 1+changes {
			t.Errorf("the last view has %d peers", n)
		}
	})
}

// Unchanged leases are not copied.
func TestViewsShareLeases(t *testing.T) {
	following1(t, func(w *following) {
		w.reg.Put("10.42.9.0-24", value(them, 9), ttl)
		elapse(time.Second)
		before := w.take()[0]
		if _, err := w.reg.Update(w.Context(), w.held(ipv4("10.42.8.0/24")), attrsOf(them, 8), ttl); err != nil { // a renewal
			t.Fatal(err)
		}
		w.reg.Put("10.42.9.0-24", value(them, 10), ttl)
		elapse(time.Second)
		w.reg.Fail(errAway)
		w.reg.SetHistory(0)
		elapse(time.Minute)
		w.reg.Put("10.42.10.0-24", value(them, 10), ttl)
		w.reg.Fail(nil)
		elapse(time.Minute)
		views := w.take()
		if len(views) != 2 || views[0].Peers[0] != before.Peers[0] || views[1].Peers[0] != before.Peers[0] || views[1].Peers[1] != views[0].Peers[1] {
			t.Errorf("views share nothing: %+v, before %+v", views, before)
		}
		if before.Peers[1].Attrs != attrsOf(them, 9) {
			t.Errorf("a lease that was told became %+v", before.Peers[1])
		}
	})
}

// A peer whose lease was deleted and is recreated within a second stays in the view. Otherwise it
// is removed.
func TestGrace(t *testing.T) {
	following1(t, func(w *following) {
		w.reg.Put("10.42.20.0-24", value(third, 2), ttl)
		elapse(time.Second)
		w.expect(1, "10.42.8.0/24", "10.42.20.0/24")
		w.reg.Remove("10.42.20.0-24")
		elapse(900 * time.Millisecond)
		w.reg.Put("10.42.20.0-24", value(third, 2), ttl)
		elapse(time.Minute)
		w.expect(0)
		w.reg.Remove("10.42.20.0-24")
		elapse(900 * time.Millisecond)
		w.expect(0)
		elapse(200 * time.Millisecond)
		w.expect(1, "10.42.8.0/24")
	})
}

// The same holds if the deletion is learned from a listing.
func TestGraceAfterListing(t *testing.T) {
	following1(t, func(w *following) {
		w.reg.Put("10.42.20.0-24", value(third, 2), ttl)
		elapse(time.Second)
		w.expect(1, "10.42.8.0/24", "10.42.20.0/24")
		removeUnheard := func() {
			w.reg.SetHistory(0)
			w.reg.Remove("10.42.20.0-24")
			elapse(100 * time.Millisecond)
			w.reg.SetHistory(1000)
		}
		removeUnheard()
		elapse(500 * time.Millisecond)
		w.reg.Put("10.42.20.0-24", value(third, 2), ttl)
		elapse(time.Minute)
		w.expect(0)
		removeUnheard()
		elapse(700 * time.Millisecond)
		w.expect(0)
		elapse(400 * time.Millisecond)
		w.expect(1, "10.42.8.0/24")
		if n := w.stats().Relists[subnet.HistoryLost]; n != 2 {
			t.Errorf("%d listings", n)
		}
	})
}

// It does not matter what else happens in that second.
func TestGraceAmongChanges(t *testing.T) {
	following1(t, func(w *following) {
		w.reg.Put("10.42.20.0-24", value(them, 2), ttl)
		w.reg.Put("10.42.21.0-24", value(them, 3), ttl)
		elapse(time.Second)
		w.expect(1, "10.42.8.0/24", "10.42.20.0/24", "10.42.21.0/24")
		w.reg.Remove("10.42.20.0-24")
		elapse(500 * time.Millisecond)
		w.reg.Remove("10.42.21.0-24")
		w.reg.Put("10.42.9.0-24", value(third, 9), ttl)
		elapse(100 * time.Millisecond)
		w.expect(1, "10.42.8.0/24", "10.42.9.0/24", "10.42.20.0/24", "10.42.21.0/24")
		if n := w.stats().Leases; n != 3 {
			t.Errorf("status counts %d leases, the registry has 3", n)
		}
		w.reg.SetHistory(0) // all is listed again
		w.reg.Put("10.42.9.0-24", value(third, 9), ttl)
		elapse(300 * time.Millisecond)
		w.expect(0)
		elapse(200 * time.Millisecond)
		w.expect(1, "10.42.8.0/24", "10.42.9.0/24", "10.42.21.0/24")
		elapse(450 * time.Millisecond)
		w.expect(1, "10.42.8.0/24", "10.42.9.0/24")
	})
}

// A peer with Leaving is removed at once, and added again at once if it returns.
func TestLeaving(t *testing.T) {
	following1(t, func(w *following) {
		w.reg.Put("10.42.9.0-24", value(them, 9), ttl)
		elapse(time.Second)
		w.expect(1, "10.42.8.0/24", "10.42.9.0/24")
		w.reg.Put("10.42.9.0-24", leavingValue(9), ttl)
		elapse(soon)
		w.expect(1, "10.42.8.0/24")
		w.reg.Remove("10.42.9.0-24")
		elapse(time.Minute)
		w.expect(0)
		for range 2 { // after the deletion, and before
			w.reg.Put("10.42.9.0-24", value(them, 9), ttl)
			elapse(soon)
			w.expect(1, "10.42.8.0/24", "10.42.9.0/24")
			elapse(time.Second)
			w.reg.Put("10.42.9.0-24", leavingValue(9), ttl)
			elapse(time.Second)
			w.expect(1, "10.42.8.0/24")
		}
		w.reg.Put("10.42.9.0-24", `{"PublicIP":"198.51.100.8","Leaving":"x"}`, ttl)
		elapse(time.Second)
		w.expect(0)
		w.says(`Leaving is neither true nor false`, 1)
	})
}

// A host that joins while another one leaves sees no peer and chooses another subnet.
func TestLeavingInListing(t *testing.T) {
	in(t, func(f *fixture) {
		f.Pool = pool("10.42.0.0/16", 24, "10.42.9.0", "10.42.10.0")
		f.Previous = prefix("10.42.9.0/24")
		f.reg.Put("10.42.9.0-24", leavingValue(9), ttl)
		w := f.follow()
		w.expect(1)
		if w.own.Subnets != ipv4("10.42.10.0/24") {
			t.Errorf("leased %s", w.own.Subnets)
		}
		w.reg.Put("10.42.9.0-24", value(them, 9), ttl)
		elapse(time.Second)
		w.expect(1, "10.42.9.0/24")
	})
}

// A host that restarts before its released lease has expired gets its subnet again.
func TestOwnLeavingIsTakenUp(t *testing.T) {
	in(t, func(f *fixture) {
		l := f.mustAcquire()
		if _, err := f.release(); err != nil {
			t.Error(err)
		}
		marked := f.held(l.Subnets)
		if left := time.Until(marked.Expires); !marked.Leaving || left > time.Second {
			t.Errorf("lease %+v", marked)
		}
		again := f.mustAcquire()
		if held := f.held(l.Subnets); !again.SameAs(l) || held != again || time.Until(held.Expires) != ttl {
			t.Errorf("leased %+v, before %+v; the registry has %+v", again, l, held)
		}
	})
}

// If another program marks our lease as Leaving, that is repaired.
func TestOwnMarkedByAnother(t *testing.T) {
	following1(t, func(w *following) {
		for _, ttl := range []time.Duration{ttl, 0} { // for a reservation, the mark is repaired as one
			marked := w.own.Attrs
			marked.Leaving = true
			b, err := marked.Encode()
			if err != nil {
				t.Fatal(err)
			}
			w.reg.Put(lease.Key(w.own.Subnets), string(b), ttl)
			elapse(10 * time.Second)
			if held := w.held(w.own.Subnets); !held.SameAs(w.own) || held.Reservation() != (ttl == 0) {
				t.Errorf("registry holds %+v", held)
			}
		}
		w.says("own lease was overwritten", 2)
		w.expect(0)
	})
}
