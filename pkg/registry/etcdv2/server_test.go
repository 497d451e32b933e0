package etcdv2_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lab/wait"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcdv2"
	"flanneld/pkg/registry/registrytest"
)

const prefix = registrytest.Prefix

// Any other server in place of etcd results in a helpful error.
func TestNotEtcd(t *testing.T) {
	for name, c := range map[string]struct {
		serve http.HandlerFunc
		want  string
	}{
		"no v2 API": {http.NotFound, "--enable-v2"},
		"web site":  {func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>")) }, "text/html"},
		"empty":     {func(w http.ResponseWriter, _ *http.Request) {}, "--enable-v2"},
		"other JSON": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Write([]byte(`{"ok":true}`))
		}, "it has no node"},
		"broken JSON": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Write([]byte(`{"node`))
		}, "broken JSON"},
		"no leader": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, "no leader"},
		"redirects": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", r.URL.Path)
			w.WriteHeader(http.StatusTemporaryRedirect)
		}, ""},
		"hangs up": {func(w http.ResponseWriter, _ *http.Request) {
			conn, _, _ := w.(http.Hijacker).Hijack()
			conn.Close()
		}, "EOF"},
		"endless":         {endless(http.StatusOK), "broken JSON"},
		"endless refusal": {endless(http.StatusNotFound), "too long"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(c.serve)
			defer server.Close()
			r := api.Open(t, etcdv2.Options{Endpoints: []string{server.URL}, Prefix: prefix, Username: "root", Password: "secret"})
			for op, err := range registrytest.Fails(t, r, c.want) {
				if no := name == "no v2 API"; errors.Is(err, registry.ErrNoAPI) != no {
					t.Errorf("%s: error %v, is it ErrNoAPI: %v", op, err, !no)
				}
			}
		})
	}
}

// endless sends an infinite invalid answer.
func endless(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		for junk := make([]byte, 1<<20); ; {
			if _, err := w.Write(junk); err != nil {
				return
			}
		}
	}
}

// A watch may be silent for a long time, but then a separate request checks the server.
func TestWatchOfABlackHole(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	r := api.At(t, etcd)
	etcd.Stall()
	r.SetPoll(100 * time.Millisecond)
	_, _, first := r.Watch(context.Background(), 7)
	if _, _, second := r.Watch(context.Background(), 7); first == nil && second == nil {
		t.Error("watch of a black hole is content")
	}
}

// A cancelled call does not look for the setting to suggest, which takes a second.
func TestGivenUpAtOnce(t *testing.T) {
	t.Parallel()
	hole, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	given := make(chan time.Time, 1)
	go func() {
		conn, err := hole.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = conn.Read(make([]byte, 1)) // the request is pending
		given <- time.Now()
		cancel()
		<-t.Context().Done()
	}()
	r := api.Open(t, etcdv2.Options{Endpoints: []string{hole.Addr().String()}, Prefix: prefix})
	if _, err := r.Config(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if d := time.Since(<-given); d > 500*time.Millisecond {
		t.Errorf("it took %v to give up", d)
	}
}

// Calls leave no goroutines behind, whether they succeed or fail.
func TestNoLeaks(t *testing.T) {
	etcd := etcdtest.StartEtcd(t)
	r := api.At(t, etcd)
	for range 20 {
		now, err := r.List(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		if _, _, err := r.Watch(ctx, now.Index); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("watch: %v", err)
		}
		cancel()
		registrytest.Calls(ctx, r)
	}
	r.SetPoll(20 * time.Millisecond)
	for range 20 {
		registrytest.Calls(context.Background(), r)
	}
	r.Close()
	// etcd runs in this process too, so its goroutines are not counted.
	ours := func() (n int) {
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		return strings.Count(string(buf), "persistConn).readLoop(") + strings.Count(string(buf), "client/v2.(")
	}
	wait.True(t, "goroutines end", func() bool { return ours() == 0 })
}
