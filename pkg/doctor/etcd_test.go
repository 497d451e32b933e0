package doctor

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/registry/etcd"
	"flanneld/pkg/registry/store"
)

// TestAskEtcd: everything about an etcd and what is stored in both APIs is read, and where another
// network config is.
func TestAskEtcd(t *testing.T) {
	e := etcdtest.StartEtcd(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	put := func(api, key, value string) {
		t.Helper()
		if err := e.Store(t, api).Put(ctx, key, value, 0); err != nil {
			t.Fatal(err)
		}
	}
	put("v3", "/net/config", vxlanConfig)
	put("v3", "/net/subnets/10.42.8.0-24", `{"PublicIP":"192.0.2.8"}`)
	put("v3", "/net/subnets/10.42.9.0-24", "not JSON")
	put("v2", "/atomic.io/network/config", vxlanConfig)
	in := NewInputs(ctx, Options{Etcd: etcd.Options{Endpoints: []string{e.URL, "http://127.0.0.1:1"}, Prefix: "/net"}, API: store.APIAuto, SubnetFile: t.TempDir() + "/none"})
	all, err := in.Endpoints.Get(ctx)
	if err != nil {
		t.Fatal(err)
	}
	a, other := all[0], all[1]
	if a.Err != nil || a.Version == "" || a.Cluster == "" || !a.LeaderKnown || !a.Leader || time.Since(a.Date).Abs() > time.Minute {
		t.Errorf("%+v", a)
	}
	if s := a.Stores[0]; s.Key != "/net/config" || string(s.Config) != vxlanConfig || len(s.Leases) != 1 || len(s.Invalid) != 1 {
		t.Errorf("%+v", s)
	}
	if s := a.Stores[1]; s.has() || !s.answers() {
		t.Errorf("%+v", s)
	}
	if other.problem() != down || !strings.Contains(other.Err.Error(), "refused") {
		t.Errorf("%+v", other)
	}
	if found, err := in.Elsewhere.Get(ctx); err != nil || len(found) != 1 || found[0] != (Place{"/atomic.io/network", store.APIv2}) {
		t.Errorf("elsewhere: %v, %v", found, err)
	}
}

// TestHostileEtcd: whatever a server does, the answer is there in time, and is that it cannot be
// used.
func TestHostileEtcd(t *testing.T) {
	handler := func(f func(http.ResponseWriter, *http.Request)) *httptest.Server {
		return httptest.NewServer(http.HandlerFunc(f))
	}
	done := make(chan struct{})
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	urls := map[string]string{"silent": "http://" + silent.Addr().String()}
	for name, f := range map[string]func(http.ResponseWriter, *http.Request){
		"web page":  func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") },
		"not found": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) },
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		},
		"other JSON": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"etcdserver":7,"header":[],"leader":{"a":[]}}`)
		},
		"endless": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		},
		"hangs": func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case <-done:
			}
		},
	} {
		s := handler(f)
		t.Cleanup(s.Close)
		urls[name] = s.URL
	}
	t.Cleanup(func() { close(done) }) // before the servers wait for their handlers
	for name, url := range urls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			began := time.Now()
			all, err := askEtcd(ctx, Options{Etcd: etcd.Options{Endpoints: []string{url}, Prefix: defaultPrefix}, API: store.APIAuto})
			if err != nil || len(all) != 1 || all[0].Err == nil {
				t.Errorf("%+v, %v", all, err)
			}
			if took := time.Since(began); took > 6*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}
