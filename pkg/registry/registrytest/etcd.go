package registrytest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"flanneld/pkg/lab/etcdkeys"
	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lab/relay"
	"flanneld/pkg/lab/wait"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcd"
)

// An API is a registry in one of etcd's APIs.
type API struct {
	Name string // v2 or v3
	New  func(etcd.Options) (Closer, error)
}

// A Closer is a registry that has connections.
type Closer interface {
	registry.Registry
	Close()
}

// Prefix is the prefix of the tests' leases.
const Prefix = "/coreos.com/network"

// Open opens a registry until the test ends.
func (a API) Open(t testing.TB, o etcd.Options) registry.Registry {
	t.Helper()
	r, err := a.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// at opens the registry of an etcd without TLS and users.
func (a API) at(t testing.TB, e *etcdtest.Etcd) registry.Registry {
	t.Helper()
	return a.Open(t, etcd.Options{Endpoints: []string{e.URL}, Prefix: Prefix})
}

// Run runs the contract and additional tests for a registry in etcd.
func (a API) Run(t *testing.T) {
	for name, test := range map[string]func(*testing.T, API){
		"contract":             testContract,
		"bad options":          testBadOptions,
		"certificates":         testCertificates,
		"certificates in time": testCertificatesInTime,
		"renewed":              testRenewed,
		"no TLS there":         testNoTLSThere,
		"password":             testPassword,
		"long config":          testLongConfig,
		"failover":             testFailover,
		"restart and wipe":     testRestartAndWipe,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, a)
		})
	}
}

func testContract(t *testing.T, a API) {
	server := etcdtest.StartEtcd(t)
	var n atomic.Int32
	Run(t, func(t *testing.T) Harness {
		prefix := fmt.Sprintf("%s%d", Prefix, n.Add(1))
		o := Operator{t, server.Store(t, a.Name), prefix}
		return Harness{
			Registry:  a.Open(t, etcd.Options{Endpoints: []string{server.URL}, Prefix: prefix}),
			SetConfig: o.SetConfig, Put: o.Put, Remove: o.Remove, RemoveAll: o.RemoveAll, ForgetHistory: o.ForgetHistory,
		}
	})
}

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

func (o Operator) check(err error) {
	o.T.Helper()
	if err != nil {
		o.T.Error(err)
	}
}

func (o Operator) key(name string) string { return o.Prefix + "/subnets/" + name }

// SetConfig writes the network config.
func (o Operator) SetConfig(value string) {
	o.T.Helper()
	o.check(o.Store.Put(context.Background(), o.Prefix+"/config", value, 0))
}

// Put writes a lease; ttl 0 is forever.
func (o Operator) Put(name, value string, ttl time.Duration) {
	o.T.Helper()
	o.check(o.Store.Put(context.Background(), o.key(name), value, ttl))
}

// Remove deletes a lease.
func (o Operator) Remove(name string) {
	o.T.Helper()
	o.check(o.Store.Delete(context.Background(), o.key(name)))
}

// RemoveAll deletes all leases at once.
func (o Operator) RemoveAll() {
	o.T.Helper()
	o.check(o.Store.Delete(context.Background(), o.Prefix+"/subnets"))
}

// ForgetHistory makes etcd drop the history of its events.
func (o Operator) ForgetHistory() {
	o.T.Helper()
	o.check(o.Store.ForgetHistory(context.Background()))
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

// Calls calls each method once and returns the errors by name.
func Calls(ctx context.Context, r registry.Registry) (registry.Listing, map[string]error) {
	l7 := lease.Lease{Subnets: subnets(7), Attrs: attrs(7), Revision: 7}
	errs := map[string]error{}
	l, err := r.List(ctx)
	errs["list"] = err
	_, errs["config"] = r.Config(ctx)
	_, errs["get"] = r.Get(ctx, subnets(7))
	_, errs["create"] = r.Create(ctx, subnets(7), attrs(7), time.Hour)
	_, errs["update"] = r.Update(ctx, l7, attrs(7), time.Hour)
	errs["release"] = r.Release(ctx, l7)
	_, _, errs["watch"] = r.Watch(ctx, 7)
	return l, errs
}

// Invalid options are tested in package etcd; New must return their errors.
func testBadOptions(t *testing.T, a API) {
	for want, o := range map[string]etcd.Options{
		"-etcd-endpoints": {Endpoints: []string{" "}},
		"with a host":     {Endpoints: []string{"http://etcd:2379", "http://"}},
		"-etcd-keyfile":   {Endpoints: []string{"etcd:2379"}, CertFile: "cert.pem"},
		"-etcd-cafile":    {Endpoints: []string{"etcd:2379"}, CAFile: "/nonexistent"},
	} {
		if _, err := a.New(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, want %q in it", o, err, want)
		}
	}
}

// testFailover checks that one endpoint of several is enough.
func testFailover(t *testing.T, a API) {
	server := etcdtest.StartEtcd(t)
	NewOperator(t, server, a.Name).SetConfig("{}")
	r := a.Open(t, etcd.Options{Endpoints: []string{"http://127.0.0.1:1", " " + strings.TrimPrefix(server.URL, "http://") + " ", "http://[::1]:1"}, Prefix: "/coreos.com//network/"})
	for range 10 {
		if c, err := r.Config(Timeout(t)); err != nil || string(c) != "{}" {
			t.Errorf("config %q, %v", c, err)
		}
	}
	// Create is tried at one endpoint only, because it may have been done. The next call uses the
	// next endpoint.
	var err error
	for range 3 {
		if _, err = r.Create(Timeout(t), subnets(7), attrs(7), time.Hour); err == nil {
			break
		}
	}
	if err != nil {
		t.Error(err)
	}
}

// testLongConfig checks that the error for a config that is too long has its approximate length.
func testLongConfig(t *testing.T, a API) {
	server := etcdtest.StartEtcd(t, etcdtest.LargeRequests)
	r, o := a.at(t, server), NewOperator(t, server, a.Name)
	for _, size := range []int{registry.MaxValue, registry.MaxValue + 1, 9 << 20} {
		o.SetConfig(strings.Repeat("x", size))
		raw, err := r.Config(Timeout(t))
		if size <= registry.MaxValue {
			if len(raw) != size || err != nil {
				t.Errorf("%d bytes, %v", len(raw), err)
			}
			continue
		}
		var n int
		_, scanned := fmt.Sscanf(fmt.Sprint(err), Prefix+"/config: network config is too long: must be at most 65536 bytes long, not %d", &n)
		if !errors.Is(err, registry.ErrLongConfig) || scanned != nil || n < size || n > size+1000 {
			t.Errorf("config of %d bytes: %v", size, err)
		}
	}
}

// RunUnixSocket is a separate test, because it changes the environment.
func (a API) RunUnixSocket(t *testing.T) {
	server := etcdtest.StartEtcd(t)
	socket := filepath.Join(t.TempDir(), "etcd.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go relay.Serve(l, func() (net.Conn, error) { return net.Dial("tcp", strings.TrimPrefix(server.URL, "http://")) })
	NewOperator(t, server, a.Name).SetConfig("{}")
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY"} { // they do not apply to sockets
		t.Setenv(name, "http://127.0.0.1:1")
	}
	r := a.Open(t, etcd.Options{Endpoints: []string{"unix://" + socket}, Prefix: Prefix})
	if c, err := r.Config(Timeout(t)); err != nil || string(c) != "{}" {
		t.Errorf("config %q, %v", c, err)
	}
}

// testRestartAndWipe checks that a watch continues after a restart of etcd, and fails after the
// loss of its data.
func testRestartAndWipe(t *testing.T, a API) {
	server := etcdtest.StartEtcd(t)
	r := a.at(t, server)
	l7, err := r.Create(Timeout(t), subnets(7), attrs(7), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	o := NewOperator(t, server, a.Name)
	for range 50 {
		o.SetConfig("{}")
	}
	index := List(t, r).Index
	ended := make(chan error, 1)
	watch := func() {
		go func() {
			_, _, err := r.Watch(context.Background(), index)
			ended <- err
		}()
	}

	watch()
	server.Stop()
	if err := <-ended; err == nil || errors.Is(err, registry.ErrHistoryLost) {
		t.Errorf("watch of a stopped etcd: %v", err)
	}
	if _, err := r.List(Timeout(t)); err == nil || !strings.Contains(err.Error(), strings.TrimPrefix(server.URL, "http://")) {
		t.Errorf("listing of a stopped etcd: %v", err)
	}
	server.Start(t)
	wait.True(t, "etcd is back", func() bool { _, err := r.Config(Timeout(t)); return err == nil })
	if l7, err = r.Update(Timeout(t), l7, attrs(7), time.Hour); err != nil {
		t.Fatal(err)
	}
	events, index := Events(t, r, index, 1)
	if events[0].Lease.Revision != l7.Revision {
		t.Errorf("watch after the restart: %+v", events)
	}

	// A new etcd at the old address has lower indexes: the old index would never be reached.
	watch()
	server.Stop()
	if err := <-ended; err == nil {
		t.Error("watch of a stopped etcd ends well")
	}
	server.Wipe(t)
	server.Start(t)
	wait.True(t, "history is lost", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, _, err := r.Watch(ctx, index)
		return errors.Is(err, registry.ErrHistoryLost)
	})
	l := List(t, r)
	if len(l.Leases) != 0 {
		t.Errorf("listing of a new etcd: %+v", l)
	}
	if l7, err = r.Create(Timeout(t), subnets(7), attrs(7), time.Hour); err != nil {
		t.Fatal(err)
	}
	if events, _ := Events(t, r, l.Index, 1); events[0].Lease.Revision != l7.Revision {
		t.Errorf("watch of a new etcd: %+v", events)
	}
}
