package registrytest

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab/etcdkeys"
	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// An Operator does to an etcd what operators, other hosts and expiry do. Leases are identified by
// the last element of their keys.
type Operator struct {
	T      testing.TB
	Store  etcdkeys.Store
	Prefix string
}

// NewOperator returns the Operator of an etcd through one of its APIs, at the prefix of the tests.
func NewOperator(t testing.TB, e *etcdtest.Etcd, api string) Operator {
	t.Helper()
	return Operator{t, e.Store(t, api), Prefix}
}

// Must reports an error of what the operator does.
func (o Operator) Must(err error) {
	o.T.Helper()
	if err != nil {
		o.T.Error(err)
	}
}

// Key returns the key of a lease.
func (o Operator) Key(name string) string { return o.Prefix + "/subnets/" + name }

// Set writes any key; ttl 0 is forever.
func (o Operator) Set(key, value string, ttl time.Duration) {
	o.T.Helper()
	o.Must(o.Store.Put(context.Background(), key, value, ttl))
}

// SetConfig writes the network config.
func (o Operator) SetConfig(value string) {
	o.T.Helper()
	o.Set(o.Prefix+"/config", value, 0)
}

// Put writes a lease; ttl 0 is forever.
func (o Operator) Put(name, value string, ttl time.Duration) {
	o.T.Helper()
	o.Set(o.Key(name), value, ttl)
}

// Remove deletes a lease.
func (o Operator) Remove(name string) {
	o.T.Helper()
	o.Must(o.Store.Delete(context.Background(), o.Key(name)))
}

// RemoveAll deletes all leases at once.
func (o Operator) RemoveAll() {
	o.T.Helper()
	o.Must(o.Store.Delete(context.Background(), o.Prefix+"/subnets"))
}

// ForgetHistory makes etcd drop the history of its events.
func (o Operator) ForgetHistory() {
	o.T.Helper()
	o.Must(o.Store.ForgetHistory(context.Background()))
}

// Timeout returns a context for one call, also on a busy machine.
func Timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// List lists the leases. It ends the test on an error.
func List(t testing.TB, r registry.Registry) registry.Listing {
	t.Helper()
	l, err := r.List(Timeout(t))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Lease7 returns the lease that Create creates.
func Lease7() lease.Lease { return lease.Lease{Subnets: subnets(7), Attrs: attrs(7), Revision: 7} }

// Create leases 10.42.7.0/24 for an hour. It ends the test on an error.
func Create(t testing.TB, r registry.Registry) lease.Lease {
	t.Helper()
	l, err := r.Create(Timeout(t), subnets(7), attrs(7), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Update renews the lease of Create. It ends the test on an error.
func Update(t testing.TB, r registry.Registry, prev lease.Lease) lease.Lease {
	t.Helper()
	l, err := r.Update(Timeout(t), prev, attrs(7), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Calls calls each method once and returns the errors by name.
func Calls(ctx context.Context, r registry.Registry) map[string]error {
	l7 := Lease7()
	errs := map[string]error{}
	_, errs["list"] = r.List(ctx)
	_, errs["config"] = r.Config(ctx)
	_, errs["get"] = r.Get(ctx, subnets(7))
	_, errs["create"] = r.Create(ctx, subnets(7), attrs(7), time.Hour)
	_, errs["update"] = r.Update(ctx, l7, attrs(7), time.Hour)
	errs["release"] = r.Release(ctx, l7)
	_, _, errs["watch"] = r.Watch(ctx, 7)
	return errs
}

// Fails checks that each call fails without an answer of etcd, with an error that is one line, has
// all words and not the password "secret". It returns the errors by name.
func Fails(t testing.TB, r registry.Registry, words ...string) map[string]error {
	t.Helper()
	ctx := Timeout(t)
	errs := Calls(ctx, r)
	if ctx.Err() != nil {
		t.Error("the calls take too long")
	}
	for op, err := range errs {
		if err == nil || errors.Is(err, registry.ErrConflict) || errors.Is(err, registry.ErrNoConfig) || errors.Is(err, registry.ErrHistoryLost) {
			t.Errorf("%s: error %v", op, err)
			continue
		}
		for _, word := range words {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: error %q, want %q in it", op, err, word)
			}
		}
		if strings.ContainsAny(err.Error(), "\n") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: error %q", op, err)
		}
	}
	return errs
}
