package subnet_test

import (
	"context"
	"fmt"
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
	log *logs.Buffer
	subnet.Options
	noted atomic.Pointer[lease.Claim] // for the next run

	mu      sync.Mutex
	last    lease.View
	changed time.Time // time of last
}

// newHost returns a host whose lease is in one of etcd's two stores.
func newHost(t *testing.T, etcd *etcdtest.Etcd, n int, a api) *host {
	t.Helper()
	h := &host{T: t, log: &logs.Buffer{}}
	r := a.Open(t, etcdv2.Options{Endpoints: []string{etcd.URL}, Prefix: etcdPrefix})
	h.Options = options(r, netip.AddrFrom4([4]byte{198, 51, byte(n >> 8), byte(n)}), h.log)
	h.Remember = func(c lease.Claim) { h.noted.Store(&c) }
	h.Conditions = condition.NewList(h.Log)
	return h
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

// When a host releases its lease, peers remove it at once. After any other deletion they wait for
// the grace period.
func TestReleaseEtcd(t *testing.T) {
	// It does not run in parallel, because it measures times.
	for _, a := range apis {
		t.Run(a.Name, func(t *testing.T) {
			etcd := etcdtest.StartEtcd(t)
			one, two := newHost(t, etcd, 1, a), newHost(t, etcd, 2, a)
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
					registrytest.NewOperator(t, etcd, a.Name).Remove(lease.Key(l.Subnets))
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
