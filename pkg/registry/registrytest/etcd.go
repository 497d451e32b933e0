package registrytest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lab/relay"
	"flanneld/pkg/lab/wait"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcd"
)

// An API is a registry in one of etcd's APIs.
type API[R Closer] struct {
	Name string // v2 or v3
	New  func(etcd.Options) (R, error)
}

// A Closer is a registry that has connections.
type Closer interface {
	registry.Registry
	Close()
}

// Prefix is the prefix of the tests' leases.
const Prefix = "/coreos.com/network"

// Open opens a registry until the test ends.
func (a API[R]) Open(t testing.TB, o etcd.Options) R {
	t.Helper()
	r, err := a.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// At opens the registry of an etcd without TLS and users.
func (a API[R]) At(t testing.TB, e *etcdtest.Etcd) R {
	t.Helper()
	return a.Open(t, etcd.Options{Endpoints: []string{e.URL}, Prefix: Prefix})
}

// Run runs the contract and additional tests for a registry in etcd.
func (a API[R]) Run(t *testing.T) {
	for name, test := range map[string]func(*testing.T, API[Closer]){
		"contract":             testContract,
		"bad options":          testBadOptions,
		"certificates":         testCertificates,
		"certificates in time": testCertificatesInTime,
		"renewed":              testRenewed,
		"no TLS there":         testNoTLSThere,
		"password":             testPassword,
		"long config":          testLongConfig,
		"huge values":          testHugeValues,
		"failover":             testFailover,
		"black hole":           testBlackHole,
		"restart and wipe":     testRestartAndWipe,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, API[Closer]{a.Name, func(o etcd.Options) (Closer, error) { return a.New(o) }})
		})
	}
}

func testContract(t *testing.T, a API[Closer]) {
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

// Invalid options are tested in package etcd; New must return their errors.
func testBadOptions(t *testing.T, a API[Closer]) {
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
func testFailover(t *testing.T, a API[Closer]) {
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

// testBlackHole checks that an etcd that accepts everything but does not answer counts as
// unreachable, and that others are used if there are any.
func testBlackHole(t *testing.T, a API[Closer]) {
	hole, server := etcdtest.StartEtcd(t), etcdtest.StartEtcd(t)
	NewOperator(t, server, a.Name).SetConfig("{}")
	r := a.At(t, hole)
	List(t, r) // connects
	hole.Stall()
	for range 2 { // with the connection, and with a new one
		start := time.Now()
		if _, err := r.Config(Timeout(t)); err == nil || !strings.Contains(err.Error(), strings.TrimPrefix(hole.URL, "http://")) {
			t.Errorf("error %v", err)
		}
		if d := time.Since(start); d > 8*time.Second {
			t.Errorf("noticed after %v", d)
		}
		r = a.At(t, hole)
	}
	for range 2 { // etcd's client in v2 shuffles the endpoints
		r = a.Open(t, etcd.Options{Endpoints: []string{hole.URL, server.URL, "http://127.0.0.1:1"}, Prefix: Prefix})
		for range 3 {
			if _, err := r.Config(Timeout(t)); err != nil {
				t.Error(err)
			}
		}
		l := List(t, r)
		NewOperator(t, server, a.Name).Put("10.42.7.0-24", "x", 0)
		Events(t, r, l.Index, 1)
	}
}

// testLongConfig checks that the error for a config that is too long has its approximate length.
func testLongConfig(t *testing.T, a API[Closer]) {
	server := etcdtest.StartEtcd(t, etcdtest.LargeRequests)
	r, o := a.At(t, server), NewOperator(t, server, a.Name)
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

// testHugeValues checks that values of 9 MB, in a listing and in a watch, do not affect the leases
// next to them or a lease that is overwritten by one.
func testHugeValues(t *testing.T, a API[Closer]) {
	if testing.Short() {
		t.Skip("it writes much: not with -short")
	}
	server := etcdtest.StartEtcd(t, etcdtest.LargeRequests)
	r, o := a.At(t, server), NewOperator(t, server, a.Name)
	made := Create(t, r)
	index := List(t, r).Index
	huge := strings.Repeat("x", 9<<20)
	const good = `{"PublicIP":"198.51.100.9"}`
	for i := range 8 {
		o.Put(fmt.Sprintf("10.43.%d.0-24", i), huge, 0)
	}
	o.Put("10.43.0.0-24", good, 0) // whose event in v2 contains the previous value
	o.Put("10.43.0.0-24", huge, 0)
	o.Put("10.43.8.0-24", huge[:40000], 0)
	const peers = 200
	for i := range peers {
		o.Put(fmt.Sprintf("10.44.%d.0-24", i), good, 0)
	}
	o.Put("10.42.7.0-24", huge, 0)
	var l registry.Listing
	listed := func() bool { // etcd is slow with this much data
		var err error
		l, err = r.List(Timeout(t))
		return err == nil
	}
	wait.True(t, "all is listed", listed)
	if len(l.Leases) != peers || len(l.Invalid) != 10 {
		t.Errorf("%d leases, %d bad", len(l.Leases), len(l.Invalid))
	}
	check := func(e registry.InvalidEntry) {
		t.Helper()
		size := len(huge)
		if e.Key == "10.43.8.0-24" {
			size = 40000
		}
		var f lease.Fault
		n := 0
		if errors.As(e.Err, &f) {
			n, _ = strconv.Atoi(f.Detail)
		}
		if !e.Subnets.IsValid() || f.Kind != "value is longer than 16384 bytes" || n < size || n >= size+1000 {
			t.Errorf("%s: %v, want about %d bytes", e.Key, e.Err, size)
		}
	}
	for _, bad := range l.Invalid {
		check(bad)
	}
	// Events that are too large to receive one by one cause a listing, and the watch continues after
	// them.
	if _, _, err := r.Watch(Timeout(t), index); err == nil {
		events, _ := Events(t, r, index, 12+peers)
		for i, ev := range events {
			if lease := i == 8 || i > 10 && i <= 10+peers; lease != (ev.Invalid == nil) {
				t.Errorf("event %d: %+v", i, ev)
			} else if !lease {
				check(*ev.Invalid)
			}
		}
	} else if !errors.Is(err, registry.ErrHistoryLost) || errors.Is(err, registry.ErrRevisionRollback) {
		t.Errorf("watch from before huge values: %v", err)
	}
	o.Put("10.44.0.0-24", good, 0)
	Events(t, r, l.Index, 1)

	ev, err := r.Get(Timeout(t), subnets(7))
	if err != nil || ev.Invalid == nil {
		t.Fatalf("%+v, %v", ev, err)
	}
	check(*ev.Invalid)
	for _, err := range []error{
		errorOf(r.Update(Timeout(t), made, attrs(7), time.Hour)),
		errorOf(r.Create(Timeout(t), subnets(7), attrs(7), time.Hour)),
	} {
		if !errors.Is(err, registry.ErrConflict) {
			t.Errorf("write over what is there: %v", err)
		}
	}
	back, err := r.Update(Timeout(t), lease.Lease{Subnets: subnets(7), Revision: ev.Invalid.Revision}, attrs(7), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	wait.True(t, "it is listed", listed)
	if !slices.ContainsFunc(l.Leases, back.SameAs) {
		t.Errorf("%+v is not listed", back)
	}
}

// RunUnixSocket is a separate test, because it changes the environment.
func (a API[R]) RunUnixSocket(t *testing.T) {
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
func testRestartAndWipe(t *testing.T, a API[Closer]) {
	server := etcdtest.StartEtcd(t)
	r := a.At(t, server)
	l7 := Create(t, r)
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
	l7 = Update(t, r, l7)
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
	l7 = Create(t, r)
	if events, _ := Events(t, r, l.Index, 1); events[0].Lease.Revision != l7.Revision {
		t.Errorf("watch of a new etcd: %+v", events)
	}
}
