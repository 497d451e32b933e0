package etcdv2_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcdv2"
	"flanneld/pkg/registry/registrytest"
)

const good = `{"PublicIP":"198.51.100.9"}`

// TestStrangeKeysAreNamedInOneLine: a deeply nested directory, and a key that is very long or
// contains line breaks, have one short name in a listing and a watch.
func TestStrangeKeysAreNamedInOneLine(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	b := newOperator(t, etcd)
	r := api.At(t, etcd)
	index := registrytest.List(t, r).Index
	b.Put("10.42.9.0-24", good, 0)
	b.Put("10.42.8.0-24"+strings.Repeat("/d", 1000), "x", 0)
	b.Put(strings.Repeat("k", 10000), "x", 0)
	b.Put("a\nlevel=ERROR msg=forged", "x", 0)
	l := registrytest.List(t, r)
	if len(l.Leases) != 1 || len(l.Invalid) != 3 {
		t.Fatalf("%+v", l)
	}
	events, _ := registrytest.Events(t, r, index, 4)
	for i, bad := range l.Invalid {
		if len(bad.Key) > 200 || len(bad.Err.Error()) > 300 || strings.Contains(bad.Err.Error(), "\n") {
			t.Errorf("key %q: %v", bad.Key, bad.Err)
		}
		found := false
		for _, ev := range events[1:] {
			found = found || ev.Invalid != nil && ev.Invalid.Key == bad.Key
		}
		if !found {
			t.Errorf("listed bad entry %d %q has no event", i, bad.Key)
		}
	}
}

// wanted is an answer that is generated while it is sent.
type wanted struct {
	n    int
	node func(i int) io.Reader
}

func (a wanted) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Etcd-Index", "7")
	io.WriteString(w, `{"action":"get","node":{"key":"`+prefix+`/subnets","dir":true,"nodes":[`)
	for i := range a.n {
		if i > 0 {
			io.WriteString(w, ",")
		}
		if _, err := io.Copy(w, a.node(i)); err != nil {
			return
		}
	}
	io.WriteString(w, `],"modifiedIndex":7,"createdIndex":7}}`+"\n")
}

// TestListingOfJunkTakesLittleMemory: invalid entries are not stored, whether there are a few huge
// ones or hundreds of thousands.
func TestListingOfJunkTakesLittleMemory(t *testing.T) {
	huge := []byte(`{"key":"` + prefix + `/subnets/10.43.1.0-24","value":"` + strings.Repeat("\\\"", 9<<20) + `","modifiedIndex":7,"createdIndex":7}`)
	deep := []byte(`{"key":"` + prefix + `/subnets/deep","dir":true,"nodes":` + strings.Repeat(`[{"nodes":`, 1<<20) + "0" + strings.Repeat(`}]`, 1<<20) + `,"modifiedIndex":7,"createdIndex":7}`)
	peer := []byte(`{"key":"` + prefix + `/subnets/10.42.9.0-24","value":"{\"PublicIP\":\"198.51.100.9\"}","modifiedIndex":7,"createdIndex":7}`)
	for name, c := range map[string]struct {
		n    int
		node func(i int) io.Reader
	}{
		"huge values": {6, func(int) io.Reader { return bytes.NewReader(huge) }},
		"nested":      {6, func(int) io.Reader { return bytes.NewReader(deep) }},
		"many keys": {300_000, func(i int) io.Reader {
			return strings.NewReader(fmt.Sprintf(`{"key":"%s/subnets/junk%d","value":"x","modifiedIndex":7,"createdIndex":7}`, prefix, i))
		}},
	} {
		if c.n > 1000 && testing.Short() {
			continue
		}
		server := httptest.NewServer(wanted{c.n, func(i int) io.Reader {
			if i == c.n/2 {
				return bytes.NewReader(peer)
			}
			return c.node(i)
		}})
		r := api.Open(t, etcdv2.Options{Endpoints: []string{server.URL}, Prefix: prefix})
		highest, stop := peak()
		l, err := r.List(registrytest.Timeout(t))
		stop()
		server.Close()
		if err != nil || len(l.Leases) != 1 || l.Index != 7 || len(l.Invalid)+l.MoreInvalid != c.n-1 || l.MoreInvalid > 0 && len(l.Invalid) != registry.MaxInvalid {
			t.Errorf("%s: %d leases, %d bad and %d more, %v", name, len(l.Leases), len(l.Invalid), l.MoreInvalid, err)
		}
		if *highest > 24<<20 {
			t.Errorf("%s: %d MB of memory", name, *highest>>20)
		}
		t.Logf("%s: %d MB of memory", name, *highest>>20)
	}
}

// peak measures the growth of the heap until stop is called.
func peak() (highest *int64, stop func()) {
	percent := debug.SetGCPercent(10) // do not count garbage
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	highest = new(int64)
	var ended atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !ended.Load() {
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			*highest = max(*highest, int64(now.HeapAlloc)-int64(before.HeapAlloc))
			time.Sleep(5 * time.Millisecond)
		}
	}()
	return highest, func() { ended.Store(true); <-done; debug.SetGCPercent(percent) }
}
