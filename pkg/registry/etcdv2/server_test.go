package etcdv2_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcdv2"
)

const prefix = "/coreos.com/network"

// Whatever answers in etcd's place, the daemon gets an error that helps.
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
			r := open(t, etcdv2.Options{Endpoints: []string{server.URL}, Prefix: prefix, Username: "root", Password: "secret"})
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			_, errs := calls(ctx, r)
			for op, err := range errs {
				if no := name == "no v2 API"; errors.Is(err, registry.ErrNoAPI) != no {
					t.Errorf("%s: error %v, is it ErrNoAPI: %v", op, err, !no)
				}
				if err == nil || errors.Is(err, registry.ErrConflict) || errors.Is(err, registry.ErrNoConfig) || errors.Is(err, registry.ErrHistoryLost) || ctx.Err() != nil {
					t.Errorf("%s: error %v", op, err)
				} else if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "secret") {
					t.Errorf("%s: error %q, want %q in it", op, err, c.want)
				}
			}
		})
	}
}

// endless answers with junk that does not end.
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

// calls makes each call once.
func calls(ctx context.Context, r *etcdv2.Registry) (registry.Listing, map[string]error) {
	errs := map[string]error{}
	l, err := r.List(ctx)
	errs["list"] = err
	_, errs["config"] = r.Config(ctx)
	_, errs["get"] = r.Get(ctx, subnet7)
	_, errs["create"] = r.Create(ctx, subnet7, attrs7, time.Hour)
	_, errs["update"] = r.Update(ctx, lease7, attrs7, time.Hour)
	errs["release"] = r.Release(ctx, lease7)
	_, _, errs["watch"] = r.Watch(ctx, 7)
	return l, errs
}

// An etcd that accepts connections and says nothing looks like one that is away.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	hole, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close()
	r := open(t, etcdv2.Options{Endpoints: []string{hole.Addr().String()}, Prefix: prefix})
	start := time.Now()
	if _, err := r.Config(context.Background()); err == nil || !strings.Contains(err.Error(), hole.Addr().String()) {
		t.Errorf("error %v", err)
	}
	if d := time.Since(start); d > 8*time.Second {
		t.Errorf("noticed after %v", d)
	}
	// A watch may be silent for long; but then somebody is asked whether all is well.
	r.SetPoll(100 * time.Millisecond)
	_, _, first := r.Watch(context.Background(), 7)
	if _, _, second := r.Watch(context.Background(), 7); first == nil && second == nil {
		t.Error("watch of a black hole is content")
	}
	// With a good endpoint beside it all goes well, and the watch moves there.
	etcd := etcdtest.StartEtcd(t)
	openBackdoor(t, etcd.URL, prefix).set("config", "{}", 0)
	for range 2 { // the client shuffles
		r = open(t, etcdv2.Options{Endpoints: []string{hole.Addr().String(), etcd.URL}, Prefix: prefix})
		if _, err := r.Config(context.Background()); err != nil {
			t.Error(err)
		}
		l, err := r.List(context.Background())
		if err != nil {
			t.Error(err)
		}
		openBackdoor(t, etcd.URL, prefix).put("10.42.7.0-24", "x", 0)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		if events, _, err := r.Watch(ctx, l.Index); err != nil || len(events) != 1 {
			t.Errorf("watch: %+v, %v", events, err)
		}
		cancel()
	}
}

func TestFailover(t *testing.T) {
	etcd := etcdtest.StartEtcd(t)
	openBackdoor(t, etcd.URL, prefix).set("config", "{}", 0)
	r := open(t, etcdv2.Options{Endpoints: []string{"http://127.0.0.1:1", etcd.URL, "http://[::1]:1"}, Prefix: "coreos.com//network/"})
	if c, err := r.Config(context.Background()); err != nil || string(c) != "{}" {
		t.Errorf("config %q, %v", c, err)
	}
	// Creating is tried at one endpoint only, since it might have been done; the next try goes on.
	var err error
	for range 3 {
		if _, err = r.Create(context.Background(), subnet7, attrs7, time.Hour); err == nil {
			break
		}
	}
	if err != nil {
		t.Error(err)
	}
}

func TestUnixSocket(t *testing.T) {
	etcd := etcdtest.StartEtcd(t)
	socket := filepath.Join(t.TempDir(), "etcd.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	forward(t, l, strings.TrimPrefix(etcd.URL, "http://"))
	openBackdoor(t, etcd.URL, prefix).set("config", "{}", 0)
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	r := open(t, etcdv2.Options{Endpoints: []string{"unix://" + socket}, Prefix: prefix})
	if c, err := r.Config(context.Background()); err != nil || string(c) != "{}" {
		t.Errorf("config %q, %v", c, err)
	}
}

// Nothing is left behind by calls that ended, one way or the other.
func TestNoLeaks(t *testing.T) {
	etcd := etcdtest.StartEtcd(t)
	r := open(t, etcdv2.Options{Endpoints: []string{etcd.URL}, Prefix: prefix})
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
		calls(ctx, r)
	}
	r.SetPoll(20 * time.Millisecond)
	for range 20 {
		calls(context.Background(), r)
	}
	r.Close()
	// etcd lives in this process too; its goroutines don't count.
	ours := func() (n int) {
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		return strings.Count(string(buf), "persistConn).readLoop(") + strings.Count(string(buf), "client/v2.(")
	}
	deadline := time.Now().Add(10 * time.Second)
	for ours() > 0 {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines are left", ours())
		}
		runtime.Gosched()
	}
}
