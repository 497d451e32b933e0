package etcdv3_test

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	client "go.etcd.io/etcd/client/v3"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/registrytest"
)

// left returns the remaining TTL of an etcd lease.
func (o *operator) left(id client.LeaseID) (left, granted int64, keys int) {
	o.T.Helper()
	resp, err := o.TimeToLive(context.Background(), id, client.WithAttachedKeys())
	o.Must(err)
	return resp.TTL, resp.GrantedTTL, len(resp.Keys)
}

func TestEtcdLeases(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	b := newOperator(t, etcd)
	r := api.At(t, etcd)
	day := 24 * time.Hour

	made, err := r.Create(registrytest.Timeout(t), subnet7, attrs7, day)
	if err != nil {
		t.Fatal(err)
	}
	value, id := b.at("10.42.7.0-24")
	if want := `{"PublicIP":"198.51.0.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:07"}}`; value != want {
		t.Errorf("value %s, want %s", value, want)
	}
	if left, granted, keys := b.left(id); left < 86390 || granted != 86400 || keys != 1 {
		t.Errorf("%d of %d s left, %d keys", left, granted, keys)
	}

	// A creator that loses leaves no etcd lease behind, and neither does one that is too late.
	for range 3 {
		if _, err := r.Create(registrytest.Timeout(t), subnet7, attrs7, day); !errors.Is(err, registry.ErrConflict) {
			t.Error(err)
		}
		if _, err := r.Update(registrytest.Timeout(t), lease.Lease{Subnets: subnet7, Revision: made.Revision - 1}, attrs7, time.Hour); !errors.Is(err, registry.ErrConflict) {
			t.Error(err)
		}
	}
	var racers sync.WaitGroup
	for range 16 { // all but one lose after their grant
		racers.Go(func() { r.Create(registrytest.Timeout(t), lease8.Subnets, attrs7, day) })
	}
	racers.Wait()
	if n := b.leases(); n != 2 {
		t.Errorf("%d etcd leases, want 2", n)
	}

	// A renewal keeps the etcd lease, also with another value and from another process.
	old := made.Expires
	for _, a := range []string{attrs7.BackendData, `{"VtepMAC":"02:00:00:00:00:08"}`} {
		attrs := attrs7
		attrs.BackendData = a
		other := api.At(t, etcd)
		if made, err = other.Update(registrytest.Timeout(t), made, attrs, day); err != nil {
			t.Fatal(err)
		}
		if _, now := b.at("10.42.7.0-24"); now != id || b.leases() != 2 || !made.Expires.After(old) {
			t.Errorf("lease %x became %x; %d etcd leases; expires %v after %v", id, now, b.leases(), made.Expires, old)
		}
	}

	// The lease becomes a reservation and back.
	if made, err = r.Update(registrytest.Timeout(t), made, attrs7, 0); err != nil || !made.Reservation() {
		t.Fatal(made, err)
	}
	if _, now := b.at("10.42.7.0-24"); now != 0 {
		t.Error("a reservation has an etcd lease")
	}
	if made, err = r.Update(registrytest.Timeout(t), made, attrs7, day); err != nil || made.Reservation() {
		t.Fatal(made, err)
	}
	if _, now := b.at("10.42.7.0-24"); now == id || now == 0 {
		t.Errorf("etcd lease %x", now)
	}
}

// Other keys of an operator's etcd lease are left alone.
func TestSharedEtcdLease(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	b := newOperator(t, etcd)
	r := api.At(t, etcd)
	g, err := b.Grant(context.Background(), 3600)
	b.Must(err)
	for _, key := range []string{b.Key("10.42.7.0-24"), "/elsewhere/their-own"} {
		_, err := b.Client.Put(context.Background(), key, `{"PublicIP":"198.51.100.7"}`, client.WithLease(g.ID))
		b.Must(err)
	}
	ev, err := r.Get(registrytest.Timeout(t), subnet7)
	if left := time.Until(ev.Lease.Expires); err != nil || left > time.Hour || left < 59*time.Minute {
		t.Errorf("%+v, %v", ev, err)
	}
	renewed, err := r.Update(registrytest.Timeout(t), ev.Lease, attrs7, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, granted, keys := b.left(g.ID); granted != 3600 || keys != 1 {
		t.Errorf("granted for %d s, %d keys", granted, keys)
	}
	if err := r.Release(registrytest.Timeout(t), renewed); err != nil {
		t.Error(err)
	}
	if resp, err := b.Client.Get(context.Background(), "/elsewhere/their-own"); err != nil || resp.Count != 1 {
		t.Errorf("%v, %v", resp, err)
	}
}

// The IPv4 subnet of a dual-stack host is taken, alone and with any IPv6 subnet.
func TestDualStackHost(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	b := newOperator(t, etcd)
	r := api.At(t, etcd)
	const name = "10.42.7.0-24&fd42:0:0:7::-64"
	b.Put(name, `{"PublicIP":"198.51.100.7","PublicIPv6":"fd00::7"}`, time.Hour)
	if _, err := r.Create(registrytest.Timeout(t), subnet7, attrs7, time.Hour); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("create: %v", err)
	}
	both := lease.SubnetsOf(subnet7.V4(), netip.MustParsePrefix("fd42:0:0:7::/64"))
	other := lease.SubnetsOf(subnet7.V4(), netip.MustParsePrefix("fd42:0:0:8::/64"))
	if _, err := r.Create(registrytest.Timeout(t), other, attrs7, time.Hour); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("create with another IPv6 subnet: %v", err)
	}
	for _, s := range []lease.Subnets{subnet7, other} {
		if ev, err := r.Get(registrytest.Timeout(t), s); err != nil || ev.Lease.Subnets != both {
			t.Errorf("read %+v, %v, which keeps %s from being created", ev, err, s)
		}
	}
	b.Put(name, `{"PublicIP":7}`, time.Hour) // none
	if _, err := r.Create(registrytest.Timeout(t), both, attrs7, time.Hour); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("create over what is no lease: %v", err)
	}
	if _, err := r.Create(registrytest.Timeout(t), other, attrs7, time.Hour); err != nil {
		t.Error(err)
	}
	if _, err := r.Create(registrytest.Timeout(t), subnet7, attrs7, time.Hour); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("create beside another dual-stack host: %v", err)
	}
}
