package etcdv3_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"flanneld/pkg/lab/etcdkeys"
	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lab/wait"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcdv3"
	"flanneld/pkg/registry/registrytest"
)

// Any other server in place of etcd, in particular etcd 2, soon results in a helpful error.
func TestNotEtcd(t *testing.T) {
	// It does not run in parallel, because it measures times.
	h2c := new(http.Protocols)
	h2c.SetUnencryptedHTTP2(true)
	for name, c := range map[string]struct {
		serve     http.HandlerFunc
		protocols *http.Protocols
		want      string
	}{
		"etcd 2":     {http.NotFound, nil, "does not speak etcd's v3 API"},
		"web site":   {func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>")) }, h2c, "does not speak etcd's v3 API"},
		"no service": {http.NotFound, h2c, "does not speak etcd's v3 API"},
		"empty": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Grpc-Status", "0")
		}, h2c, ""},
		"empty messages": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Trailer", "Grpc-Status")
			w.Write(make([]byte, 5))
			w.Header().Set("Grpc-Status", "0")
		}, h2c, ""},
		"no leader": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Grpc-Status", "14")
			w.Header().Set("Grpc-Message", "etcdserver: no leader")
		}, h2c, "no leader"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewUnstartedServer(c.serve)
			server.Config.Protocols = c.protocols
			server.Start()
			defer server.Close()
			r := api.Open(t, etcdv3.Options{Endpoints: []string{server.URL}, Prefix: prefix})
			start := time.Now()
			for op, err := range registrytest.Fails(t, r, c.want, server.URL) {
				if no := name == "etcd 2" || name == "no service"; errors.Is(err, registry.ErrNoAPI) != no {
					t.Errorf("%s: error %v, is it ErrNoAPI: %v", op, err, !no)
				}
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

// TestPrefixWithoutASlash: in v3 it is a different prefix.
func TestPrefixWithoutASlash(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	newOperator(t, etcd).SetConfig("{}")
	r := api.Open(t, etcdv3.Options{Endpoints: []string{etcd.URL}, Prefix: "coreos.com/network/"})
	if _, err := r.Config(registrytest.Timeout(t)); !errors.Is(err, registry.ErrNoConfig) || !strings.Contains(err.Error(), " coreos.com/network/config") {
		t.Error(err)
	}
}

// An endpoint that accepts requests but does not answer is tried only occasionally if there is
// another.
func TestSickEndpoint(t *testing.T) {
	t.Parallel()
	for name, hangs := range map[string]bool{"refuses": false, "hangs": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := etcdtest.StartEtcd(t)
			newOperator(t, etcd).SetConfig("{}")
			var asked atomic.Int32
			sick := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				if hangs {
					<-r.Context().Done()
					return
				}
				w.Header().Set("Content-Type", "application/grpc")
				w.Header().Set("Grpc-Status", "14")
			}))
			sick.Config.Protocols = new(http.Protocols)
			sick.Config.Protocols.SetUnencryptedHTTP2(true)
			sick.Start()
			t.Cleanup(sick.Close)
			r := api.Open(t, etcdv3.Options{Endpoints: []string{sick.URL, etcd.URL}, Prefix: prefix})
			wait.True(t, "both are connected to", func() bool {
				before := asked.Load()
				_, err := r.Config(registrytest.Timeout(t)) // by the other one, if it succeeds
				return err == nil && before > 0
			})
			begun := time.Now()
			before := asked.Load()
			for range 200 {
				if _, err := r.Config(registrytest.Timeout(t)); err != nil {
					t.Error(err)
				}
			}
			if n := asked.Load() - before; n > 1+int32(time.Since(begun)/etcdv3.AvoidTime) {
				t.Errorf("asked %d times in %v", n, time.Since(begun))
			}
		})
	}
}

// An unreachable etcd is detected at once, with the reason.
func TestAway(t *testing.T) {
	// It does not run in parallel, because it measures times.
	etcd := etcdtest.NewEtcd(t)
	r := api.Open(t, etcdv3.Options{Endpoints: []string{etcd.URL, "http://127.0.0.1:1"}, Prefix: prefix})
	start := time.Now()
	registrytest.Fails(t, r, etcd.URL, "http://127.0.0.1:1", "connection refused")
	if d := time.Since(start); d > time.Second {
		t.Errorf("took %v", d)
	}
	etcd.Start(t)
	start = time.Now()
	wait.True(t, "etcd answers", func() bool {
		_, err := r.Config(registrytest.Timeout(t))
		return errors.Is(err, registry.ErrNoConfig)
	})
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
}

// A closed registry leaves no goroutines behind, and Close ends waiting calls.
func TestNoLeaks(t *testing.T) {
	etcd := etcdtest.StartEtcd(t)
	r := api.At(t, etcd)
	for i := range 20 {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		if _, _, err := r.Watch(ctx, registrytest.List(t, r).Index); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("watch: %v", err)
		}
		cancel()
		registrytest.Calls(ctx, r)
		if i%5 == 0 {
			registrytest.Calls(registrytest.Timeout(t), r)
		}
	}
	r.SetPoll(10 * time.Second)
	got := watching(t, r, registrytest.List(t, r).Index)
	// etcd runs in this process too, so its goroutines are not counted.
	ours := func() (n int) {
		buf := make([]byte, 1<<22)
		for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(g, "registry/etcdv3.") && !strings.Contains(g, "TestNoLeaks(") || strings.Contains(g, "newHTTP2Client") {
				n++
			}
		}
		return n
	}
	// The connections of etcd's own gateway to itself remain, whatever their number.
	own := func() int { return strings.Count(stacks(), "registry/etcdv3.(*Registry).receive") }
	wait.True(t, "a watch waits", func() bool { return own() == 1 })
	before := ours()
	r.Close()
	if res := <-got; res.err == nil {
		t.Errorf("a watch outlived its registry: %+v", res)
	}
	wait.True(t, "goroutines end", func() bool { return own() == 0 && ours() < before })
	registrytest.Fails(t, r)
}

func stacks() string {
	buf := make([]byte, 1<<22)
	return string(buf[:runtime.Stack(buf, true)])
}

// TestUserOfTheCertificate: without a user name, etcd knows the client by its certificate.
func TestUserOfTheCertificate(t *testing.T) {
	t.Parallel()
	ca := etcdtest.NewAuthority(t)
	cert, key := ca.Issue("server")
	clientCert, clientKey := ca.Issue("root")
	etcd := etcdtest.StartSecured(t, cert, key, ca.File)
	config, err := etcdkeys.ClientTLS(ca.File, clientCert, clientKey)
	if err != nil {
		t.Fatal(err)
	}
	keys := etcdkeys.V3{Access: etcdkeys.Access{Endpoints: []string{etcd.URL}, TLS: config}}
	if err := keys.RequireUser(t.Context(), "s3cret!"); err != nil {
		t.Fatal(err)
	}
	r := api.Open(t, etcdv3.Options{Endpoints: []string{etcd.URL}, Prefix: prefix, CAFile: ca.File, CertFile: clientCert, KeyFile: clientKey})
	registrytest.Create(t, r)
}
