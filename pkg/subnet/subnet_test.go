package subnet_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/lab/logs"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/memory"
	"flanneld/pkg/subnet"
)

const ttl = 24 * time.Hour

var (
	me      = netip.MustParseAddr("198.51.100.7")
	them    = netip.MustParseAddr("198.51.100.8")
	third   = netip.MustParseAddr("198.51.100.78")
	errAway = errors.New("dial tcp: connection refused")
)

func pool(network string, length int, first, last string) lease.Pool {
	return lease.Pool{
		Network: netip.MustParsePrefix(network), SubnetLen: length,
		Min: netip.MustParseAddr(first), Max: netip.MustParseAddr(last),
	}
}

func attrsOf(ip netip.Addr, mac int) lease.Attrs {
	return lease.Attrs{PublicIP: ip, BackendType: "vxlan", BackendData: fmt.Sprintf(`{"VtepMAC":"02:00:00:00:00:%02x"}`, mac)}
}

func value(ip netip.Addr, mac int) string {
	b, _ := attrsOf(ip, mac).Encode() // cannot fail: the data is JSON
	return string(b)
}

// fixture is a host and its registry.
type fixture struct {
	*testing.T
	reg *memory.Registry
	log *logs.Buffer
	subnet.Options
	terms chan subnet.Terms           // changes of the terms
	noted atomic.Pointer[lease.Claim] // for the next run
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{T: t, reg: memory.New(), log: &logs.Buffer{}, terms: make(chan subnet.Terms, 1)}
	f.Options = options(f.reg, me, f.log)
	f.Attrs, f.Options.Terms = keepMAC, f.terms
	f.Remember = func(c lease.Claim) { f.noted.Store(&c) }
	return f
}

// options returns the options of a host with MAC 1.
func options(r registry.Registry, ip netip.Addr, log io.Writer) subnet.Options {
	return subnet.Options{
		Registry: r,
		Pool:     pool("10.42.0.0/16", 24, "10.42.1.0", "10.42.255.0"),
		PublicIP: ip,
		TTL:      ttl,
		Margin:   time.Hour,
		Log:      slog.New(slog.NewTextHandler(log, nil)),
		Attrs:    func(lease.Attrs, []lease.Lease) (lease.Attrs, error) { return attrsOf(ip, 1), nil },
	}
}

// keepMAC returns attributes with the previous MAC, or MAC 1 if there is none.
func keepMAC(previous lease.Attrs, _ []lease.Lease) (lease.Attrs, error) {
	if previous.BackendData != "" {
		return previous, nil
	}
	return attrsOf(netip.Addr{}, 1), nil
}

// acquire follows until there is a lease.
func acquire(ctx context.Context, o subnet.Options) (own lease.Lease, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o.Conditions = condition.NewList(o.Log)
	err = subnet.Follow(ctx, o, func(v lease.View) {
		own = v.Own
		cancel()
	})
	if own.Subnets.IsValid() {
		err = nil
	}
	return own, err
}

func (f *fixture) acquire(ctx context.Context) (lease.Lease, error) { return acquire(ctx, f.Options) }

// release releases the acquired lease.
func (f *fixture) release() (lease.Lease, error) {
	return subnet.Release(f.Context(), f.reg, *f.noted.Load())
}

func (f *fixture) mustAcquire() lease.Lease {
	f.Helper()
	l, err := f.acquire(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	return l
}

// held returns the registry's lease of a subnet.
func (f *fixture) held(s lease.Subnets) lease.Lease {
	f.Helper()
	ev, err := f.reg.Get(f.Context(), s)
	if err != nil {
		f.Fatal(err)
	}
	if ev.Deleted || ev.Invalid != nil {
		return lease.Lease{}
	}
	return ev.Lease
}

func (f *fixture) says(text string, n int) {
	f.Helper()
	if got := f.log.Count(text); got != n {
		f.Errorf("log says %q %d times, want %d:\n%s", text, got, n, f.log)
	}
}

// outage makes the registry fail for d, calls do, and waits until the host notices that it answers.
func (f *fixture) outage(d time.Duration, do func()) {
	f.reg.Fail(errAway)
	elapse(d)
	do()
	f.reg.Fail(nil)
	elapse(10 * time.Second)
}

// in runs test in a bubble with fake time.
func in(t *testing.T, test func(f *fixture)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(newFixture(t)) })
}

// elapse advances the time in a synctest bubble.
func elapse(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func ipv4(s string) lease.Subnets { return lease.SubnetsOf(prefix(s)) }
