package subnet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lab/logs"
	"flanneld/pkg/lab/wait"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry/etcdv2"
	"flanneld/pkg/registry/registrytest"
	"flanneld/pkg/subnet"
)

// These tests use a real etcd and real time.

const etcdPrefix = registrytest.Prefix

// host is a host of a network in etcd.
type host struct {
	*testing.T
	etcd *etcdtest.Etcd
	log  *logs.Buffer
	subnet.Options
	noted atomic.Pointer[lease.Claim] // for the next run

	mu      sync.Mutex
	last    lease.View
	changed time.Time // time of last
}

func newHost(t *testing.T, etcd *etcdtest.Etcd, n int) *host {
	t.Helper()
	return newHostOf(t, etcd, n, apis[0])
}

// newHostOf returns a host whose lease is in one of etcd's two stores.
func newHostOf(t *testing.T, etcd *etcdtest.Etcd, n int, a api) *host {
	t.Helper()
	r, err := a.open(etcdv2.Options{Endpoints: []string{etcd.URL}, Prefix: etcdPrefix})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	h := &host{T: t, etcd: etcd, log: &logs.Buffer{}}
	h.Options = subnet.Options{
		Registry: r,
		Pool:     pool("10.42.0.0/16", 24, "10.42.1.0", "10.42.255.0"),
		PublicIP: netip.AddrFrom4([4]byte{198, 51, byte(n >> 8), byte(n)}),
		TTL:      ttl,
		Margin:   time.Hour,
		Log:      slog.New(slog.NewTextHandler(h.log, nil)),
		Attrs:    h.attrs,
		Remember: func(c lease.Claim) { h.noted.Store(&c) },
	}
	h.Conditions = condition.NewList(h.Log)
	return h
}

func (h *host) acquire() lease.Lease {
	h.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	l, err := acquire(ctx, h.Options)
	if err != nil {
		h.Error(err)
	}
	return l
}

func (h *host) attrs(lease.Attrs, []lease.Lease) (lease.Attrs, error) {
	return attrsOf(h.PublicIP, 1), nil
}

// follow acquires and follows until the test ends.
func (h *host) follow() lease.Lease {
	h.Helper()
	l, _ := h.followUntil()
	return l
}

// followUntil follows until end is called and returns the first lease.
func (h *host) followUntil() (l lease.Lease, end func()) {
	h.Helper()
	h.mu.Lock()
	h.last = lease.View{} // before that
	h.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		subnet.Follow(ctx, h.Options, func(v lease.View) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.last, h.changed = v, time.Now()
		})
	}()
	end = func() { cancel(); <-done }
	h.Cleanup(end)
	h.until("there is a lease", func() bool { return h.view().Own.Subnets.IsValid() })
	return h.view().Own, end
}

func (h *host) view() lease.View {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last
}

// until waits until a condition is true.
func (h *host) until(what string, ok func() bool) {
	h.Helper()
	wait.For(h.T, 30*time.Second, what, func() error {
		if !ok() {
			return fmt.Errorf("%+v\n%s", h.view(), h.log)
		}
		return nil
	})
}

func (h *host) holds(want lease.Lease) bool {
	ev, err := h.Registry.Get(context.Background(), want.Subnets)
	return err == nil && !ev.Deleted && ev.Invalid == nil && ev.Lease.SameAs(want)
}

// Two hundred hosts that start at once get two hundred subnets of 255.
func TestJoinStorm(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	const hosts = 200
	leased := make([]lease.Lease, hosts)
	var wg sync.WaitGroup
	for i := range hosts {
		h := newHost(t, etcd, i)
		wg.Go(func() { leased[i] = h.acquire() })
	}
	wg.Wait()
	seen := map[lease.Subnets]int{}
	for i, l := range leased {
		if j, ok := seen[l.Subnets]; ok {
			t.Errorf("hosts %d and %d both have %s", i, j, l.Subnets)
		}
		seen[l.Subnets] = i
	}
	listing, err := newHost(t, etcd, 0).Registry.List(context.Background())
	if err != nil || len(listing.Leases) != hosts {
		t.Errorf("%d leases, %v", len(listing.Leases), err)
	}
}

func TestEtcdComesLate(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.NewEtcd(t)
	others := registrytest.NewOperator(t, etcd, "v2")
	h := newHost(t, etcd, 7)
	type result struct {
		config string
		lease  lease.Lease
		at     time.Time
	}
	done := make(chan result, 1)
	go func() {
		c, err := subnet.WaitConfig(context.Background(), h.Registry, h.Log, condition.NewList(h.Log), func(b []byte) (string, error) {
			if bytes.Equal(b, []byte("broken")) {
				return "", errors.New("broken config")
			}
			return string(b), nil
		})
		if err != nil {
			t.Error(err)
		}
		done <- result{c, h.acquire(), time.Now()}
	}()
	h.until("etcd is missed", func() bool { return h.log.Count("is unreachable") == 1 })
	etcd.Start(t)
	h.until("config is missed", func() bool { return h.log.Count("config is missing") == 1 })
	others.SetConfig("broken")
	h.until("config is refused", func() bool { return h.log.Count("config is invalid") == 1 })
	others.SetConfig("good")
	start := time.Now()
	r := <-done
	if d := r.at.Sub(start); r.config != "good" || d > 3*time.Second {
		t.Errorf("config %q after %v", r.config, d)
	}
	if !h.holds(r.lease) {
		t.Errorf("etcd does not hold %+v", r.lease)
	}
	if n := h.log.Count("is reachable again"); n != 1 {
		t.Errorf("says %d times that etcd is back", n)
	}
}

func TestFollowEtcd(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	others := registrytest.NewOperator(t, etcd, "v2")
	a, b := newHost(t, etcd, 1), newHost(t, etcd, 2)
	la, lb := a.follow(), b.follow()
	both := func() bool {
		va, vb := a.view(), b.view()
		return len(va.Peers) == 1 && va.Peers[0].SameAs(lb) && len(vb.Peers) == 1 && vb.Peers[0].SameAs(la)
	}
	a.until("both see each other", both)

	others.Remove(lease.Key(la.Subnets))
	a.until("deleted key is back", func() bool { return a.holds(la) })
	b.until("a is seen again", both)

	others.Put(lease.Key(la.Subnets), "nonsense", 0)
	others.Put("not-a-lease", "nonsense", 0)
	a.until("overwritten key is back", func() bool { return a.holds(la) })

	others.RemoveAll()
	a.until("directory is back", func() bool { return a.holds(la) && b.holds(lb) && both() })

	others.Put(lease.Key(la.Subnets), value(netip.MustParseAddr("198.51.100.200"), 3), 0)
	a.until("a moves", func() bool { v := a.view(); return v.Own.Subnets != la.Subnets && a.holds(v.Own) })
	b.until("b sees both", func() bool { return len(b.view().Peers) == 2 })
}

// After an outage etcd has lost all data.
func TestFollowEtcdOutage(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	others := registrytest.NewOperator(t, etcd, "v2")
	a, b := newHost(t, etcd, 1), newHost(t, etcd, 2)
	la := a.follow()
	lb := b.acquire()
	a.until("a sees b", func() bool { return len(a.view().Peers) == 1 })
	before := a.view()

	etcd.Stop()
	a.until("outage is noticed", func() bool { return a.log.Count("is unreachable") == 1 })
	etcd.Start(t)
	a.until("end is noticed", func() bool { return a.log.Count("is reachable again") == 1 })

	etcd.Stop()
	a.until("outage is noticed", func() bool { return a.log.Count("is unreachable") == 2 })
	etcd.Start(t)
	others.ForgetHistory()
	others.Put(lease.Key(lb.Subnets), value(b.PublicIP, 99), 0)
	a.until("changed peer is seen", func() bool {
		v := a.view()
		return len(v.Peers) == 1 && v.Peers[0].Attrs == attrsOf(b.PublicIP, 99)
	})
	if before.Own.Subnets != a.view().Own.Subnets {
		t.Errorf("own subnet changed from %s to %s", before.Own.Subnets, a.view().Own.Subnets)
	}

	etcd.Stop()
	etcd.Wipe(t)
	a.until("outage is noticed", func() bool { return a.log.Count("is unreachable") == 3 })
	etcd.Start(t)
	a.until("own lease is in the new etcd", func() bool { return a.holds(la) })
	if n := len(a.view().Peers); n != 1 {
		t.Errorf("%d peers after etcd has forgotten the one", n)
	}
}

// When a host releases its lease, peers remove it at once. After any other deletion they wait for
// the grace period.
func TestReleaseEtcd(t *testing.T) {
	// It does not run in parallel, because it measures times.
	for _, a := range apis {
		t.Run(a.name, func(t *testing.T) {
			etcd := etcdtest.StartEtcd(t)
			one, two := newHostOf(t, etcd, 1, a), newHostOf(t, etcd, 2, a)
			two.follow()
			left := func() bool { return len(two.view().Peers) == 0 }
			for _, c := range []struct {
				how         string
				leave       func(lease.Lease) error
				least, most time.Duration
			}{
				{"released", func(lease.Lease) error {
					_, err := subnet.Release(t.Context(), one.Registry, *one.noted.Load())
					return err
				}, 0, 800 * time.Millisecond},
				{"deleted", func(l lease.Lease) error {
					registrytest.NewOperator(t, etcd, a.name).Remove(lease.Key(l.Subnets))
					return nil
				}, time.Second, 5 * time.Second},
			} {
				l, end := one.followUntil()
				two.until("a peer is there", func() bool { return !left() })
				end()
				start := time.Now()
				if err := c.leave(l); err != nil {
					t.Fatal(err)
				}
				done := time.Since(start)
				two.until("the peer is gone", left)
				two.mu.Lock()
				took := two.changed.Sub(start)
				two.mu.Unlock()
				if took < c.least || took > c.most+done {
					t.Errorf("a lease that was %s left the view after %v, want %v to %v", c.how, took, c.least, c.most)
				}
				t.Logf("%s within %v, gone from the view after %v", c.how, done, took)
				two.until("the key is gone", func() bool { ev, err := one.Registry.Get(t.Context(), l.Subnets); return err == nil && ev.Deleted })
				t.Logf("the key of the lease that was %s was gone after %v", c.how, time.Since(start))
			}
		})
	}
}
