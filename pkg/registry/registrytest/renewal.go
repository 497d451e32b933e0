package registrytest

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lab/wait"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcd"
)

// testRenewed checks a registry with TLS while etcd's certificate is renewed by the same CA, and
// then everything by another one. Invalid files in between must change nothing.
func testRenewed(t *testing.T, a API[Closer]) {
	ca, other := etcdtest.NewAuthority(t), etcdtest.NewAuthority(t)
	cert, key := ca.Issue("server")
	clientCert, clientKey := ca.Issue("client")
	server := etcdtest.StartSecured(t, cert, key, ca.File)
	var mu sync.Mutex
	var told error
	r := renewed{T: t, server: server, Registry: a.Open(t, etcd.Options{
		Endpoints: []string{server.URL}, Prefix: Prefix,
		CAFile: ca.File, CertFile: clientCert, KeyFile: clientKey,
		OnFiles: func(err error) { mu.Lock(); defer mu.Unlock(); told = err },
	})}
	wrong := func() bool { mu.Lock(); defer mu.Unlock(); return told != nil }
	r.begin()
	r.goesOn("the same files")
	ca.Issue("server")
	r.goesOn("a new certificate of the same CA")
	if wrong() {
		t.Errorf("told %v", told)
	}
	for _, file := range []string{ca.File, clientCert, clientKey} {
		good, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("-----BEGIN"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Config(Timeout(r)); !errors.Is(err, registry.ErrNoConfig) || !wrong() {
			t.Errorf("broken %s: told %v; config %v", file, told, err)
		}
		if file != ca.File { // etcd has the same CA file
			r.goesOn("broken " + file)
		}
		if err := os.WriteFile(file, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	newCert, newKey := other.Issue("server")
	newClientCert, newClientKey := other.Issue("client")
	for file, from := range map[string]string{ca.File: other.File, cert: newCert, key: newKey, clientCert: newClientCert, clientKey: newClientKey} {
		etcdtest.Replace(t, file, from)
	}
	r.goesOn("everything of a new CA")
	if wrong() {
		t.Errorf("told %v", told)
	}
}

// renewed is a registry with one lease, and its etcd.
type renewed struct {
	*testing.T
	registry.Registry
	server   *etcdtest.Etcd
	revision uint64
	index    uint64
}

func (r *renewed) begin() {
	r.Helper()
	made := Create(r, r)
	listing, err := r.List(Timeout(r))
	if err != nil {
		r.Fatal(err)
	}
	r.revision, r.index = made.Revision, listing.Index
}

// goesOn restarts etcd, which then reads its files, and checks that the lease can be renewed and
// watched.
func (r *renewed) goesOn(when string) {
	r.Helper()
	r.server.Stop()
	r.server.Start(r)
	wait.True(r, when+": the lease is renewed", func() bool {
		ev, err := r.Get(Timeout(r), subnets(7))
		if err != nil {
			return false
		}
		l, err := r.Update(Timeout(r), ev.Lease, attrs(7), time.Hour)
		if err == nil {
			r.revision = l.Revision
		}
		return err == nil
	})
	wait.True(r, when+": the renewal is seen", func() bool {
		events, next, err := r.Watch(Timeout(r), r.index)
		if err == nil {
			r.index = next
		}
		return err == nil && len(events) > 0 && events[len(events)-1].Lease.Revision == r.revision
	})
}
