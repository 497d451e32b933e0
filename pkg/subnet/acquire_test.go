package subnet_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"flanneld/pkg/lease"
)

func TestAcquire(t *testing.T) {
	anywhere := netip.Prefix{}
	for _, c := range []struct {
		name     string
		puts     map[string]string // with a TTL
		reserved map[string]string // without
		previous string
		claim    lease.Claim // of the previous run
		want     netip.Prefix
		mac      int // in the lease afterwards
		reserve  bool
		gone     string // deleted
		log      string
	}{
		{name: "empty registry", want: anywhere, mac: 1, log: "allocated lease"},
		{name: "own lease", puts: map[string]string{"10.42.9.0-24": value(me, 5)}, previous: "10.42.3.0/24",
			want: prefix("10.42.9.0/24"), mac: 5, log: "reused own lease"},
		{name: "reservation", reserved: map[string]string{"10.42.9.0-24": value(me, 5)},
			want: prefix("10.42.9.0/24"), mac: 5, reserve: true, log: "reused own lease"},
		{name: "pre-assigned", reserved: map[string]string{"10.42.9.0-24": `{"PublicIP":"198.51.100.7"}`},
			want: prefix("10.42.9.0/24"), mac: 1, reserve: true},
		{name: "previous before reservation", puts: map[string]string{"10.42.3.0-24": value(me, 4)},
			reserved: map[string]string{"10.42.9.0-24": value(me, 5)}, previous: "10.42.3.0/24",
			want: prefix("10.42.3.0/24"), mac: 4},
		{name: "reservation before others", puts: map[string]string{"10.42.3.0-24": value(me, 4)},
			reserved: map[string]string{"10.42.9.0-24": value(me, 5)},
			want:     prefix("10.42.9.0/24"), mac: 5, reserve: true},
		{name: "previous of two own", puts: map[string]string{"10.42.2.0-24": value(me, 2), "10.42.3.0-24": value(me, 3)},
			previous: "10.42.3.0/24", want: prefix("10.42.3.0/24"), mac: 3},
		{name: "own lease does not fit", puts: map[string]string{"10.42.9.0-25": value(me, 5)},
			want: anywhere, mac: 1, gone: "10.42.9.0/25"},
		{name: "own lease outside", puts: map[string]string{"10.43.9.0-24": value(me, 5)}, previous: "10.42.3.0/24",
			want: prefix("10.42.3.0/24"), mac: 1, gone: "10.43.9.0/24"},
		{name: "reservation does not fit", reserved: map[string]string{"10.43.9.0-24": value(me, 5)},
			want: anywhere, mac: 1, log: "ignored reservation that does not fit"},
		{name: "previous", previous: "10.42.3.0/24", want: prefix("10.42.3.0/24"), mac: 1},
		{name: "previous does not fit", previous: "10.42.3.0/25", want: anywhere, mac: 1, log: "previous subnet does not fit"},
		{name: "previous held", puts: map[string]string{"10.42.3.0-24": value(them, 8)}, previous: "10.42.3.0/24",
			want: anywhere, mac: 1, log: "previous subnet is leased by another"},
		{name: "previous at a former address", puts: map[string]string{"10.42.3.0-24": value(them, 1)}, previous: "10.42.3.0/24",
			want: prefix("10.42.3.0/24"), mac: 1, log: "this host's previous address"},
		{name: "our MAC elsewhere", puts: map[string]string{"10.42.4.0-24": value(them, 1)}, previous: "10.42.3.0/24",
			want: prefix("10.42.3.0/24"), mac: 1, log: "allocated lease"},
		{name: "claimed", puts: map[string]string{"10.42.3.0-24": value(them, 8)}, previous: "10.42.3.0/24",
			claim: claim("10.42.3.0/24", attrsOf(them, 8), attrsOf(me, 8)), want: prefix("10.42.3.0/24"), mac: 8, log: "this host's previous address"},
		{name: "claimed without an answer", puts: map[string]string{"10.42.3.0-24": value(them, 8)}, previous: "10.42.3.0/24",
			claim: claim("10.42.3.0/24", attrsOf(third, 8), attrsOf(them, 8)), want: prefix("10.42.3.0/24"), mac: 8, log: "this host's previous address"},
		{name: "claimed, being given up", puts: map[string]string{"10.42.3.0-24": leavingValue(8)}, previous: "10.42.3.0/24",
			claim: claim("10.42.3.0/24", attrsOf(them, 8), attrsOf(them, 8)), want: prefix("10.42.3.0/24"), mac: 8},
		{name: "claimed reservation", reserved: map[string]string{"10.42.3.0-24": value(them, 8)}, previous: "10.42.3.0/24",
			claim: claim("10.42.3.0/24", attrsOf(them, 8), attrsOf(them, 8)), want: prefix("10.42.3.0/24"), mac: 8, reserve: true},
		{name: "claimed, no subnet.env", puts: map[string]string{"10.42.3.0-24": value(them, 8)}, reserved: map[string]string{"10.42.9.0-24": value(me, 5)},
			claim: claim("10.42.3.0/24", attrsOf(them, 8), attrsOf(them, 8)), want: prefix("10.42.3.0/24"), mac: 8},
		{name: "claimed, and our address had a lease of its own", puts: map[string]string{"10.42.2.0-24": value(me, 2), "10.42.3.0-24": value(them, 8)},
			previous: "10.42.3.0/24", claim: claim("10.42.3.0/24", attrsOf(them, 8), attrsOf(them, 8)), want: prefix("10.42.3.0/24"), mac: 8},
		{name: "claimed, another's now", puts: map[string]string{"10.42.3.0-24": value(them, 9)}, previous: "10.42.3.0/24",
			claim: claim("10.42.3.0/24", attrsOf(third, 8), attrsOf(third, 8)), want: anywhere, mac: 1, log: "previous subnet is leased by another"},
		{name: "claimed, does not fit", puts: map[string]string{"10.43.3.0-24": value(them, 8)},
			claim: claim("10.43.3.0/24", attrsOf(them, 8), attrsOf(them, 8)), want: anywhere, mac: 1, gone: "10.43.3.0/24"},
		{name: "previous overlapped", puts: map[string]string{"10.42.3.128-25": value(them, 8)}, previous: "10.42.3.0/24",
			want: anywhere, mac: 1},
		{name: "previous held by nonsense", puts: map[string]string{"10.42.3.0-24": "?"}, previous: "10.42.3.0/24",
			want: anywhere, mac: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			in(t, func(f *fixture) {
				for k, v := range c.puts {
					f.reg.Put(k, v, time.Hour)
				}
				for k, v := range c.reserved {
					f.reg.Put(k, v, 0)
				}
				if c.previous != "" {
					f.Previous = prefix(c.previous)
				}
				f.Claim = c.claim
				l := f.mustAcquire()
				if !f.Pool.Fits(l.Subnets.V4()) || (c.want.IsValid() && l.Subnets.V4() != c.want) || (!c.want.IsValid() && c.previous == l.Subnets.V4().String()) {
					t.Errorf("leased %s, want %s", l.Subnets, c.want)
				}
				if l.Attrs != attrsOf(me, c.mac) || l.Reservation() != c.reserve {
					t.Errorf("lease %+v", l)
				}
				if left := time.Until(l.Expires); !c.reserve && left != ttl {
					t.Errorf("expires in %v", left)
				}
				if held := f.held(l.Subnets); held != l {
					t.Errorf("registry holds %+v, want %+v", held, l)
				}
				if c.gone != "" && !f.held(ipv4(c.gone)).Leaving {
					t.Errorf("%s does not say that its owner is leaving", c.gone)
				}
				if c.log != "" {
					f.says(c.log, 1)
				}
				if f.Claim = *f.noted.Load(); !f.Claim.Covers(l) {
					t.Errorf("leased %+v, and claims %+v", l, f.Claim)
				}
				elapse(time.Second)
				if c.gone != "" && f.held(ipv4(c.gone)).Subnets.IsValid() {
					t.Errorf("%s is still there", c.gone)
				}
				if again := f.mustAcquire(); again.Subnets != l.Subnets || again.Attrs != l.Attrs {
					t.Errorf("after a restart %+v, before %+v", again, l)
				}
			})
		})
	}
}

func claim(subnet string, held, next lease.Attrs) lease.Claim {
	return lease.Claim{Subnets: ipv4(subnet), Held: held, Next: next}
}

func TestAcquireWaitsForRegistry(t *testing.T) {
	in(t, func(f *fixture) {
		f.reg.Fail(errAway)
		done := make(chan lease.Lease, 1)
		go func() { done <- f.mustAcquire() }()
		elapse(time.Hour)
		f.reg.Fail(nil)
		start := time.Now()
		<-done
		if d := time.Since(start); d > time.Second {
			t.Errorf("joined %v after the registry came", d)
		}
		f.says("is unreachable", 1)
		f.says("is reachable again", 1)
	})
}

// A write without an answer looks like another host's write.
func TestAcquireLostAnswer(t *testing.T) {
	for _, op := range []string{"create", "update", "release"} {
		t.Run(op, func(t *testing.T) {
			in(t, func(f *fixture) {
				switch op {
				case "update":
					f.reg.Put("10.42.9.0-24", value(me, 1), time.Hour)
				case "release":
					f.reg.Put("10.43.9.0-24", value(me, 1), time.Hour)
				}
				lost := false
				f.reg.SetHook(func(_ context.Context, o string, _ lease.Subnets, done bool) error {
					if o == op && done && !lost {
						lost = true
						return errAway
					}
					return nil
				})
				l := f.mustAcquire()
				elapse(time.Second) // a released lease has ended
				listing, err := f.reg.List(f.Context())
				if err != nil || len(listing.Leases) != 1 || listing.Leases[0] != l {
					t.Errorf("leased %+v, registry holds %+v (%v)", l, listing, err)
				}
			})
		})
	}
}

func TestAcquireConflicts(t *testing.T) {
	for times, warnings := range map[int]int{9: 0, 20: 1, 30: 1} {
		in(t, func(f *fixture) {
			n := 0
			f.reg.SetHook(func(_ context.Context, op string, p lease.Subnets, done bool) error {
				if op == "create" && !done && n < times {
					n++
					f.reg.Put(lease.Key(p), value(them, n), time.Hour)
				}
				return nil
			})
			start := time.Now()
			f.mustAcquire()
			limit := 10 * time.Second
			if times > 20 { // too few hosts for conflicts
				limit = time.Minute
			}
			if d := time.Since(start); n != times || d > limit {
				t.Errorf("%d of %d conflicts took %v", n, times, d)
			}
			f.says("conflicts with other hosts", warnings)
		})
	}
}

func TestAcquireExhausted(t *testing.T) {
	in(t, func(f *fixture) {
		f.Pool = pool("10.42.0.0/22", 24, "10.42.1.0", "10.42.3.0")
		f.reg.Put("10.42.0.0-23", value(them, 1), 0)
		f.reg.Put("10.42.2.0-24", value(them, 2), time.Hour)
		f.reg.Put("10.42.3.0-24", "nonsense", 0)
		done := make(chan lease.Lease, 1)
		go func() { done <- f.mustAcquire() }()
		elapse(30 * time.Minute)
		f.says("waiting for a free one", 1)
		f.says("network 10.42.0.0/22 has 3 subnets of length 24 (10.42.1.0 to 10.42.3.0), and 3 leases", 1)
		if l := <-done; l.Subnets != ipv4("10.42.2.0/24") {
			t.Errorf("leased %s", l.Subnets)
		}
	})
}

func TestAcquireErrors(t *testing.T) {
	in(t, func(f *fixture) {
		mine := errors.New("no MAC")
		f.Attrs = func(lease.Attrs, []lease.Lease) (lease.Attrs, error) { return lease.Attrs{}, mine }
		if _, err := f.acquire(f.Context()); err != mine {
			t.Error(err)
		}
		f.reg.Fail(errAway)
		ctx, cancel := context.WithTimeout(f.Context(), time.Minute)
		defer cancel()
		if _, err := f.acquire(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}
