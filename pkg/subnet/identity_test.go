package subnet_test

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"flanneld/pkg/lease"
)

// TestIdentityAtStart starts a host with the address me and with files of a run with the address
// them. It is either the same host after a move, or a copy of a host that still exists.
func TestIdentityAtStart(t *testing.T) {
	const nobody, since, doubt = "", "another host has written the lease", "cannot tell"
	key, kept := "10.42.3.0-24", prefix("10.42.3.0/24")
	for _, c := range []struct {
		name   string
		claim  lease.Claim
		now    bool // the claim has the revision of the key
		later  bool // its owner has written the lease since
		former bool // subnet.env names the subnet
		answer string
		probed bool
		keeps  bool
		reason string
	}{
		{name: "moved", claim: claim("10.42.3.0/24", attrsOf(them, 8), attrsOf(them, 8)), now: true, answer: nobody, probed: true, keeps: true},
		{name: "moved, with subnet.env", claim: claim("10.42.3.0/24", attrsOf(them, 8), attrsOf(them, 8)), now: true, former: true, answer: nobody, probed: true, keeps: true},
		{name: "cloned, the other answers", claim: claim("10.42.3.0/24", attrsOf(them, 8), attrsOf(them, 8)), now: true, former: true, answer: "it answers ARP", probed: true, reason: "answers ARP"},
		{name: "cloned, the other has renewed its lease", claim: claim("10.42.3.0/24", attrsOf(them, 8), attrsOf(them, 8)), later: true, former: true, answer: nobody, reason: since},
		{name: "it cannot be found out", claim: claim("10.42.3.0/24", attrsOf(them, 8), attrsOf(them, 8)), now: true, answer: doubt, probed: true, reason: doubt},
		{name: "claim of an older version, moved", claim: claim("10.42.3.0/24", attrsOf(them, 8), attrsOf(them, 8)), answer: nobody, probed: true, keeps: true},
		{name: "claim of an older version, cloned", claim: claim("10.42.3.0/24", attrsOf(them, 8), attrsOf(them, 8)), answer: "it answers ICMP", probed: true, reason: "answers ICMP"},
		{name: "last write without an answer, moved", claim: claim("10.42.3.0/24", attrsOf(third, 8), attrsOf(them, 8)), answer: nobody, probed: true, keeps: true},
		{name: "last write without an answer, cloned", claim: claim("10.42.3.0/24", attrsOf(third, 8), attrsOf(them, 8)), answer: "it answers ARP", probed: true, reason: "answers ARP"},
		{name: "no claim, but the data of a device, moved", former: true, answer: nobody, probed: true, keeps: true},
		{name: "no claim, but the data of a device, cloned", former: true, answer: "it answers ARP", probed: true, reason: "answers ARP"},
		{name: "another's lease with the subnet of the claim", claim: claim("10.42.3.0/24", attrsOf(third, 8), attrsOf(third, 8)), answer: nobody},
		{name: "another's lease since, with the data of a device", claim: claim("10.42.3.0/24", attrsOf(third, 8), attrsOf(third, 8)), later: true, former: true, answer: nobody, reason: since},
	} {
		t.Run(c.name, func(t *testing.T) {
			in(t, func(f *fixture) {
				f.reg.Put(key, value(them, 8), ttl)
				theirs := f.held(lease.SubnetsOf(kept))
				if f.Claim = c.claim; c.now || c.later {
					f.Claim.Revision = theirs.Revision
				}
				if c.later {
					var err error
					if theirs, err = f.reg.Update(f.Context(), theirs, theirs.Attrs, ttl); err != nil {
						t.Fatal(err)
					}
				}
				if c.former {
					f.Previous = kept
				}
				var probed []netip.Addr
				f.Probe = func(ctx context.Context, a netip.Addr) string {
					if until, ok := ctx.Deadline(); !ok || time.Until(until) > time.Second {
						t.Errorf("the probe may take until %v", until)
					}
					probed = append(probed, a)
					return c.answer
				}
				var others []lease.Lease
				f.Attrs = func(previous lease.Attrs, o []lease.Lease) (lease.Attrs, error) {
					if others = o; previous.BackendData != "" {
						return previous, nil
					}
					return attrsOf(me, 8), nil
				}
				l := f.mustAcquire()
				if (l.Subnets.V4() == kept) != c.keeps || l.PublicIP != me || f.held(l.Subnets) != l {
					t.Errorf("leased %+v", l)
				}
				if held := f.held(lease.SubnetsOf(kept)); !c.keeps && held != theirs {
					t.Errorf("the other's lease was %+v, is %+v", theirs, held)
				}
				if c.probed != slices.Equal(probed, []netip.Addr{them}) {
					t.Errorf("probed %v", probed)
				}
				if taken := len(others) == 1 && others[0] == theirs; taken == c.keeps {
					t.Errorf("other hosts' leases: %+v", others)
				}
				errors := 0
				if c.reason != "" {
					errors = 1
					f.says("before=198.51.100.8 public_ip=198.51.100.7 reason=", 1)
					f.says(c.reason, 1)
				}
				if !c.keeps && c.reason == "" {
					errors = f.log.Count("previous subnet is leased by another")
				}
				f.says("level=ERROR", errors)
				if n := f.noted.Load(); n.Revision != l.Revision || !n.Covers(l) {
					t.Errorf("leased %+v, noted %+v", l, n)
				}
			})
		})
	}
}

// TestIdentityWithoutLease: the store was wiped, or the lease expired while its owner could not
// reach the store. A copy of the owner does not use the subnet. The owner does, moved or not.
func TestIdentityWithoutLease(t *testing.T) {
	kept := prefix("10.42.3.0/24")
	for _, c := range []struct {
		name   string
		was    netip.Addr // the address in the claim
		answer string
		keeps  bool
	}{
		{"not moved", me, "it answers ARP", true},
		{"moved", them, "", true},
		{"cloned", them, "it answers ARP", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			in(t, func(f *fixture) {
				f.Claim, f.Previous = claim("10.42.3.0/24", attrsOf(c.was, 8), attrsOf(c.was, 8)), kept
				f.Pool.Min, f.Pool.Max = kept.Addr(), netip.MustParseAddr("10.42.4.0")
				f.Probe = func(context.Context, netip.Addr) string { return c.answer }
				l := f.mustAcquire()
				if (l.Subnets.V4() == kept) != c.keeps {
					t.Errorf("leased %s", l.Subnets)
				}
				errors := 1
				if c.keeps {
					errors = 0
				}
				f.says("belongs to another host", errors)
			})
		})
	}
}

// A lease of a copied claim that does not fit the network config is not released.
func TestIdentityOfLeaseThatDoesNotFit(t *testing.T) {
	for answer, released := range map[string]bool{"": true, "it answers ARP": false} {
		in(t, func(f *fixture) {
			f.reg.Put("10.43.3.0-24", value(them, 8), ttl)
			f.Claim = claim("10.43.3.0/24", attrsOf(them, 8), attrsOf(them, 8))
			f.Probe = func(context.Context, netip.Addr) string { return answer }
			f.mustAcquire()
			if held := f.held(ipv4("10.43.3.0/24")); held.Leaving != released {
				t.Errorf("probed: %q, the lease is %+v", answer, held)
			}
		})
	}
}

// TestIdentityWhileRunning overwrites the lease of a running host.
func TestIdentityWhileRunning(t *testing.T) {
	const own = "10.42.7.0-24"
	swap := func(a lease.Attrs) func(*following) { // like a plain put in v3
		return func(w *following) {
			if _, err := w.reg.Update(w.Context(), w.held(w.own.Subnets), a, ttl); err != nil {
				w.Error(err)
			}
		}
	}
	for _, c := range []struct {
		name  string
		had   lease.Attrs // the lease reused at the start
		claim lease.Claim
		write func(w *following)
		keeps bool
		says  string
	}{
		{name: "compare-and-swap by another", write: swap(attrsOf(them, 70)), keeps: true, says: "own lease was overwritten"},
		{name: "compare-and-swap by another, our MAC", write: swap(attrsOf(them, 1)), keeps: true, says: "own lease was overwritten"},
		{name: "plain set in v2 by another", write: func(w *following) { w.reg.Put(own, value(them, 70), ttl) }, says: "lost own subnet to another host"},
		{name: "made anew by another", write: func(w *following) { w.reg.Remove(own); w.reg.Put(own, value(them, 70), ttl) }, says: "lost own subnet to another host"},
		{name: "our own value", write: swap(attrsOf(me, 1)), keeps: true, says: "set -public-ip or -iface on one of them"},
		{name: "our own value, plain set in v2", write: func(w *following) { w.reg.Put(own, value(me, 1), ttl) }, keeps: true, says: "set -public-ip or -iface on one of them"},
		{name: "our public IP, other data", write: swap(attrsOf(me, 70)), keeps: true, says: "set -public-ip or -iface on one of them"},
		{name: "our public IP, other data, plain set in v2", write: func(w *following) { w.reg.Put(own, value(me, 70), ttl) }, keeps: true, says: "own lease was overwritten"},
		{name: "taken by a claim, the former value returns", had: attrsOf(them, 1), claim: claim("10.42.7.0/24", attrsOf(them, 1), attrsOf(them, 1)),
			write: swap(attrsOf(them, 1)), says: "reused lease belongs to another host"},
		{name: "taken by a claim, something else is written", had: attrsOf(them, 1), claim: claim("10.42.7.0/24", attrsOf(them, 1), attrsOf(them, 1)),
			write: swap(attrsOf(them, 2)), keeps: true, says: "own lease was overwritten"},
		{name: "taken by a claim in the run before, the former value returns", had: attrsOf(me, 1),
			claim: lease.Claim{Subnets: ipv4("10.42.7.0/24"), Held: attrsOf(me, 1), Next: attrsOf(me, 1), Adopted: attrsOf(them, 1)},
			write: swap(attrsOf(them, 1)), says: "reused lease belongs to another host"},
		{name: "taken by the public IP, the former value returns", had: attrsOf(me, 70), write: swap(attrsOf(me, 70)), says: "reused lease belongs to another host"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in(t, func(f *fixture) {
				if c.had != (lease.Attrs{}) {
					b, _ := c.had.Encode()
					f.reg.Put(own, string(b), ttl)
				}
				f.Claim = c.claim
				w := f.follow()
				if w.own.Subnets != ipv4("10.42.7.0/24") {
					t.Fatalf("leased %+v", w.own)
				}
				if n := f.noted.Load(); n.Adopted != c.had && n.Adopted != c.claim.Adopted {
					t.Errorf("noted %+v", n)
				}
				elapse(time.Second)
				w.take()
				c.write(w)
				written := w.held(w.own.Subnets)
				elapse(10 * time.Second)
				held, now := w.held(w.own.Subnets), w.stats().Own
				if c.keeps && (held.Attrs != w.own.Attrs || now.Subnets != w.own.Subnets) {
					t.Errorf("the lease is %+v, the host has %+v\n%s", held, now, w.log)
				}
				if !c.keeps && (held != written || now.Subnets == w.own.Subnets || !w.held(now.Subnets).SameAs(now) || now.PublicIP != me) {
					t.Errorf("the lease is %+v, the host has %+v\n%s", held, now, w.log)
				}
				if moved := w.stats().Moves; c.keeps != (moved == 0) || moved > 1 {
					t.Errorf("moved %d times", moved)
				}
				w.says(c.says, 1)
				if n := f.noted.Load(); !n.Covers(now) || n.Revision != now.Revision || !c.keeps && n.Adopted != (lease.Attrs{}) {
					t.Errorf("has %+v, noted %+v", now, n)
				}
			})
		})
	}
}

// Two hosts that write one lease as their own are reported, but not for every write.
func TestDoublesAreReportedAtIntervals(t *testing.T) {
	following1(t, func(w *following) {
		for range 100 {
			w.reg.Put("10.42.7.0-24", value(me, 1), ttl)
			elapse(time.Second)
		}
		if n := w.log.Count("-public-ip"); n < 1 || n > 3 {
			t.Errorf("reported %d times within 100 s", n)
		}
		w.expect(0)
	})
}

// A lease that another host created in a wiped store belongs to that host, even if it has the
// revision at which we created ours in the old store.
func TestIdentityInWipedStore(t *testing.T) {
	following1(t, func(w *following) {
		for range 9 { // makes the index of the new store lower
			w.reg.Put("10.42.8.0-24", value(them, 8), 0)
		}
		elapse(time.Second)
		w.outage(10*time.Second, func() {
			w.reg.Wipe(0)
			for n := uint64(1); n < w.own.Created; n++ {
				w.reg.Put("10.42.9.0-24", value(third, 9), 0)
			}
			w.reg.Put("10.42.7.0-24", value(them, 70), ttl)
		})
		elapse(20 * time.Second)
		held := w.held(ipv4("10.42.7.0/24"))
		if held.Created != w.own.Created {
			t.Fatalf("created at %d, ours at %d", held.Created, w.own.Created)
		}
		if held.Attrs != attrsOf(them, 70) || w.stats().Own.Subnets == w.own.Subnets {
			t.Errorf("the other's lease is %+v, ours %+v", held, w.stats().Own)
		}
		w.says("lost own subnet to another host", 1)
	})
}
