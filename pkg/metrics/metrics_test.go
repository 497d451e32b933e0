package metrics

import (
	"encoding/binary"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/filter"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lease"
	"flanneld/pkg/reconcile"
	"flanneld/pkg/registry/store"
	"flanneld/pkg/subnet"
	"flanneld/pkg/tunnel"
)

// all returns values in which everything that can be counted has been counted.
func all(backend string, peers int) Values {
	up := true
	v := Values{
		Version: "v1.2.3", Backend: backend, Ready: true, Conditions: 2, StoreUp: &up,
		Pool: lease.NewPool(netip.MustParsePrefix("10.0.0.0/8"), 24),
		Lease: subnet.Stats{
			Own: *leaseOf(0), Event: time.Unix(1_700_000_000, 0), Conflicts: 1, Relists: [4]uint64{1, 2, 3, 4},
		},
		Store: store.Stats{Calls: map[store.Call]uint64{}},
		Loop: reconcile.Stats{
			Passes: map[reconcile.Outcome]uint64{}, Done: map[reconcile.OpClass]uint64{}, Failed: map[reconcile.OpClass]uint64{},
			Repairs: map[dataplane.Kind]uint64{}, Drift: map[dataplane.Kind]int{},
			Skipped:  map[string]int{"subnet overlaps an older lease": 1, "BackendData is missing": 2, "new reason": 3},
			PassTime: reconcile.Timing{Count: 2, Total: time.Second},
		},
		Rules:  filter.Stats{Keeper: "nftables", Syncs: map[filter.Result]uint64{filter.Repaired: 7}},
		Lock:   filter.Stats{Syncs: map[filter.Result]uint64{filter.Repaired: 10}},
		Probes: &Probes{Failures: 9, Unreachable: 1},
	}
	v.Lease.Own.Expires = time.Unix(1_800_000_000, 0)
	for _, op := range []store.Op{store.OpConfig, store.OpList, store.OpGet, store.OpWatch, store.OpCreate, store.OpUpdate, store.OpRelease} {
		for _, r := range []store.Result{store.Done, store.Conflict, store.Denied, store.Failed} {
			v.Store.Calls[store.Call{Op: op, Result: r}] = 1
		}
	}
	for _, t := range []reconcile.Trigger{reconcile.OnChange, reconcile.OnEvent, reconcile.OnResync, reconcile.OnRetry} {
		for _, r := range []reconcile.Result{reconcile.Unchanged, reconcile.Changed, reconcile.Incomplete, reconcile.Unread} {
			v.Loop.Passes[reconcile.Outcome{Trigger: t, Result: r}] = 1
		}
	}
	for _, k := range dataplane.Kinds() {
		if (k == dataplane.KindFDB || k == dataplane.KindNeigh) && backend != "vxlan" {
			continue
		}
		v.Loop.Repairs[k], v.Loop.Drift[k] = 1, 1
		for _, verb := range []dataplane.Verb{dataplane.Put, dataplane.Set, dataplane.Del} {
			v.Loop.Done[reconcile.OpClass{Verb: verb, Kind: k}], v.Loop.Failed[reconcile.OpClass{Verb: verb, Kind: k}] = 1, 1
		}
	}
	if backend == "vxlan" || backend == "udp" {
		v.Device = &kernel.Counters{Receive: kernel.Traffic{Bytes: 1, Packets: 2, Dropped: 3}, Transmit: kernel.Traffic{Bytes: 4, Packets: 5, Dropped: 6}}
	}
	if backend == "udp" {
		s := tunnel.New(tunnel.NewTable(tunnel.Overlay{Network: netip.MustParsePrefix("10.0.0.0/8"), Own: leaseOf(0).Subnets.V4(), MTU: 1472})).Stats()
		for i := range s.Drops {
			s.Drops[i].Packets = 1
		}
		v.Tunnel = &s
	}
	leases := make([]*lease.Lease, peers)
	for i := range leases {
		leases[i] = leaseOf(i + 1)
	}
	view := lease.NewView(v.Lease.Own, leases, true)
	v.View = &view
	v.Probes.Peers = func(yield func(Probe) bool) {
		for i, l := range leases {
			if !yield(Probe{Peer: l.Subnets.V4(), RTT: time.Duration(i+1) * time.Millisecond, Failures: uint64(i)}) {
				return
			}
		}
	}
	return v
}

func leaseOf(i int) *lease.Lease {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], 10<<24+uint32(i+1)<<8)
	return &lease.Lease{Subnets: lease.SubnetsOf(netip.PrefixFrom(netip.AddrFrom4(a), 24))}
}

// scrape returns what a scrape reads.
func scrape(t testing.TB, v Values, perPeer bool) map[string]*dto.MetricFamily {
	t.Helper()
	w := httptest.NewRecorder()
	New(func() Values { return v }, perPeer).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Fatalf("answer %d %v: %s", w.Code, w.Header(), w.Body)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// count returns the number of series as Prometheus counts them.
func count(families map[string]*dto.MetricFamily) (n int) {
	for _, f := range families {
		for range f.GetMetric() {
			if n++; f.GetType() == dto.MetricType_SUMMARY {
				n++ // _sum and _count
			}
		}
	}
	return n
}

// value returns the value of a series, written as in a query; for a summary, the count.
func value(families map[string]*dto.MetricFamily, series string) float64 {
	for name, f := range families {
		for _, m := range f.GetMetric() {
			text := name
			if len(m.GetLabel()) > 0 {
				var labels []string
				for _, l := range m.GetLabel() {
					labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
				}
				text += "{" + strings.Join(labels, ",") + "}"
			}
			if text == series {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetSummary().GetSampleCount())
			}
		}
	}
	return math.NaN()
}

var backends = []string{"vxlan", "udp", "host-gw", "alloc"}

// TestSeriesAreBounded: whatever has happened, and however many peers there are.
func TestSeriesAreBounded(t *testing.T) {
	for _, backend := range backends {
		for _, peers := range []int{0, 1, 20_000} {
			n := count(scrape(t, all(backend, peers), false))
			t.Logf("%s, %d peers: %d series", backend, peers, n)
			if n > MaxSeries {
				t.Errorf("%s, %d peers: %d series, want at most %d", backend, peers, n, MaxSeries)
			}
		}
	}
	if with, without := count(scrape(t, all("vxlan", 3), true)), count(scrape(t, all("vxlan", 3), false)); with != without+2*3-2 {
		t.Errorf("%d series with those of 3 peers, %d without", with, without)
	}
}

// TestSeriesExistFromTheStart: events add no series, so that the first one is a change, except for
// reasons that are not known in advance.
func TestSeriesExistFromTheStart(t *testing.T) {
	for _, backend := range backends {
		late := all(backend, 1)
		delete(late.Loop.Skipped, "new reason")
		early := late
		early.Lease = subnet.Stats{Own: late.Lease.Own}
		early.Store, early.Loop, early.Rules = store.Stats{}, reconcile.Stats{Drift: map[dataplane.Kind]int{}}, filter.Stats{}
		before, after := scrape(t, early, false), scrape(t, late, false)
		for name, f := range after {
			if len(before[name].GetMetric()) != len(f.GetMetric()) {
				t.Errorf("%s: %d series of %s at the start, and %d later", backend, len(before[name].GetMetric()), name, len(f.GetMetric()))
			}
		}
	}
}

func TestValues(t *testing.T) {
	for _, c := range []struct {
		backend string
		want    map[string]float64
	}{
		{"vxlan", map[string]float64{
			`flannel_build_info{version="v1.2.3"}`:                                     1,
			`flannel_ready`:                                                            1,
			`flannel_conditions`:                                                       2,
			`flannel_peers`:                                                            2,
			`flannel_peers_skipped{reason="conflict"}`:                                 1,
			`flannel_peers_skipped{reason="invalid"}`:                                  2,
			`flannel_peers_skipped{reason="other"}`:                                    3,
			`flannel_peers_unreachable`:                                                1,
			`flannel_peer_probe_rtt_seconds`:                                           0.0015,
			`flannel_peer_probe_failures_total`:                                        9,
			`flannel_subnets`:                                                          65535,
			`flannel_subnets_used`:                                                     3,
			`flannel_lease_expires_timestamp_seconds`:                                  1_800_000_000,
			`flannel_lease_writes_total{result="ok"}`:                                  3,
			`flannel_lease_writes_total{result="conflict"}`:                            3,
			`flannel_lease_writes_total{result="failed"}`:                              6,
			`flannel_lease_conflicts_total`:                                            1,
			`flannel_store_up`:                                                         1,
			`flannel_store_errors_total{op="read"}`:                                    8,
			`flannel_store_errors_total{op="write"}`:                                   6,
			`flannel_store_last_event_timestamp_seconds`:                               1_700_000_000,
			`flannel_store_resyncs_total{cause="history_lost"}`:                        1,
			`flannel_store_resyncs_total{cause="rolled_back"}`:                         2,
			`flannel_store_resyncs_total{cause="missed_event"}`:                        7,
			`flannel_reconcile_duration_seconds`:                                       2,
			`flannel_reconciles_total{result="ok",trigger="change"}`:                   2,
			`flannel_reconciles_total{result="failed",trigger="check"}`:                6,
			`flannel_kernel_operations_total{kind="link",result="ok",verb="put"}`:      6,
			`flannel_kernel_operations_total{kind="neighbour",result="ok",verb="del"}`: 2,
			`flannel_kernel_operations_total{kind="route",result="failed",verb="put"}`: 6,
			`flannel_repairs_total{kind="link"}`:                                       3,
			`flannel_drift_objects{kind="neighbour"}`:                                  2,
			`flannel_filter_repairs_total`:                                             17,
			`flannel_filter_info{by="nftables"}`:                                       1,
			`flannel_device_receive_bytes_total`:                                       1,
			`flannel_device_receive_packets_total`:                                     2,
			`flannel_device_receive_drop_total`:                                        3,
			`flannel_device_transmit_bytes_total`:                                      4,
			`flannel_device_transmit_packets_total`:                                    5,
			`flannel_device_transmit_drop_total`:                                       6,
		}},
		{"udp", map[string]float64{
			`flannel_tunnel_drops_total{direction="in",reason="address"}`:  4,
			`flannel_tunnel_drops_total{direction="in",reason="packet"}`:   5,
			`flannel_tunnel_drops_total{direction="in",reason="failed"}`:   1,
			`flannel_tunnel_drops_total{direction="out",reason="address"}`: 1,
			`flannel_tunnel_drops_total{direction="out",reason="packet"}`:  4,
			`flannel_tunnel_drops_total{direction="out",reason="failed"}`:  1,
		}},
	} {
		got := scrape(t, all(c.backend, 2), false)
		for series, want := range c.want {
			if v := value(got, series); math.Abs(v-want) > 1e-9 || v != v {
				t.Errorf("%s: %s is %v, want %v", c.backend, series, v, want)
			}
		}
	}
}

// TestUnknownValuesAreAbsent: what is not known has no series, instead of a 0.
func TestUnknownValuesAreAbsent(t *testing.T) {
	got := scrape(t, Values{}, false)
	for _, name := range []string{"peers", "peers_unreachable", "peer_probe_rtt_seconds", "subnets", "subnets_used",
		"lease_expires_timestamp_seconds", "store_up", "drift_objects", "device_receive_bytes_total", "tunnel_drops_total"} {
		if got["flannel_"+name] != nil {
			t.Errorf("%s has a value", name)
		}
	}
	if value(got, "flannel_ready") != 0 || value(got, `flannel_filter_info{by="none"}`) != 1 {
		t.Error("a daemon that has just started is not exported")
	}
	never := all("vxlan", 0)
	never.Lease.Own.Expires = time.Time{}
	if v := value(scrape(t, never, false), "flannel_lease_expires_timestamp_seconds"); !math.IsInf(v, 1) {
		t.Errorf("a reservation expires at %v", v)
	}
}

// TestPeers: with series for each peer, peers that do not answer have no round-trip time.
func TestPeers(t *testing.T) {
	v := all("vxlan", 0)
	v.Probes.Peers = slices.Values([]Probe{
		{Peer: netip.MustParsePrefix("10.42.1.0/24"), RTT: time.Millisecond, Failures: 1},
		{Peer: netip.MustParsePrefix("10.42.2.0/24"), RTT: time.Second, Failures: 7, Unreachable: true},
	})
	got := scrape(t, v, true)
	for series, want := range map[string]float64{
		`flannel_peer_probe_rtt_seconds{peer="10.42.1.0/24"}`:    0.001,
		`flannel_peer_probe_failures_total{peer="10.42.1.0/24"}`: 1,
		`flannel_peer_probe_failures_total{peer="10.42.2.0/24"}`: 7,
	} {
		if v := value(got, series); v != want {
			t.Errorf("%s is %v, want %v", series, v, want)
		}
	}
	if n := len(got["flannel_peer_probe_rtt_seconds"].GetMetric()); n != 1 {
		t.Errorf("%d peers have a round-trip time, want 1", n)
	}
	if v := value(scrape(t, v, false), "flannel_peer_probe_rtt_seconds"); v != 0.001 {
		t.Errorf("the mean is %v, want that of the peer that answers", v)
	}
	v.Probes.Peers = func(func(Probe) bool) {}
	if got := scrape(t, v, false); got["flannel_peer_probe_rtt_seconds"] != nil {
		t.Error("there is a round-trip time without an answer")
	}
}

// TestNamesFollowConventions uses the linter of Prometheus.
func TestNamesFollowConventions(t *testing.T) {
	for _, perPeer := range []bool{false, true} {
		registry := prometheus.NewPedanticRegistry()
		registry.MustRegister(newCollector(func() Values { return all("udp", 3) }, perPeer))
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		problems, err := promlint.NewWithMetricFamilies(families).Lint()
		if err != nil || len(problems) > 0 {
			t.Errorf("%v, %v", problems, err)
		}
	}
}

// TestReasonsHaveLabels: each reason in package backend why a peer is skipped is one of those known
// here.
func TestReasonsHaveLabels(t *testing.T) {
	reasons := 0
	names, err := filepath.Glob("../backend/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			at, ok := map[string]int{"fault": 0, "skipped": 1}[fmt.Sprint(call.Fun)]
			if !ok || fmt.Sprint(call.Args[at]) == "kind" {
				return true
			}
			text := ""
			ast.Inspect(call.Args[at], func(n ast.Node) bool {
				if l, ok := n.(*ast.BasicLit); ok {
					part, _ := strconv.Unquote(l.Value)
					text += part
				}
				return true
			})
			if reasons++; skipReason(text) == other {
				t.Errorf("%q has no label", text)
			}
			return true
		})
	}
	if reasons < 15 {
		t.Errorf("only %d reasons found", reasons)
	}
}

func TestKindsHaveLabels(t *testing.T) {
	for _, k := range dataplane.Kinds() {
		if !slices.Contains(kinds("vxlan"), kindOf(k)) {
			t.Errorf("kind %s has no label", k)
		}
	}
}

// TestCountersAreMonotonic: during concurrent scrapes of a daemon that counts.
func TestCountersAreMonotonic(t *testing.T) {
	var n atomic.Uint64
	v := all("udp", 10)
	e := New(func() Values {
		now := v
		now.Lease.Conflicts = n.Add(1)
		now.Rules.Syncs = map[filter.Result]uint64{filter.Repaired: n.Load()}
		return now
	}, true)
	var scrapes sync.WaitGroup
	for range 4 {
		scrapes.Go(func() {
			last := 0.0
			for range 50 {
				w := httptest.NewRecorder()
				e.ServeHTTP(w, nil)
				parser := expfmt.NewTextParser(model.UTF8Validation)
				families, err := parser.TextToMetricFamilies(w.Body)
				if err != nil {
					t.Error(err)
					return
				}
				for _, name := range []string{"flannel_lease_conflicts_total", "flannel_filter_repairs_total"} {
					if now := value(families, name); now < last {
						t.Errorf("%s was %v and is %v", name, last, now)
					}
				}
				last = value(families, "flannel_lease_conflicts_total")
			}
		})
	}
	scrapes.Wait()
}

// TestRegistryIsMadeByTheFirstScrape: a daemon that is not scraped has none.
func TestRegistryIsMadeByTheFirstScrape(t *testing.T) {
	called := 0
	e := New(func() Values { called++; return Values{} }, false)
	if e.registry != nil || called != 0 {
		t.Error("there is a registry before a scrape")
	}
	first, err := e.scrape()
	if err != nil || called != 1 {
		t.Errorf("%d calls, %v", called, err)
	}
	registry := e.registry
	if second, _ := e.scrape(); string(second) != string(first) || e.registry != registry || called != 2 {
		t.Error("a second scrape differs")
	}
}

// TestScrapesLeaveNothing: after many scrapes, the heap is as before.
func TestScrapesLeaveNothing(t *testing.T) {
	v := all("vxlan", 250) // a pointer for each is too much
	e := New(func() Values { return v }, true)
	heap := func() uint64 {
		for range 50 {
			if _, err := e.scrape(); err != nil {
				t.Fatal(err)
			}
		}
		runtime.GC()
		runtime.GC() // what pools hold is released by the second one
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	heap()
	before := heap()
	if after := heap(); after > before+64<<10 {
		t.Errorf("50 scrapes left %d bytes", after-before)
	}
}

// TestScrapeIsFast: with 20,000 peers, while nothing else uses the processors.
func TestScrapeIsFast(t *testing.T) {
	v := all("vxlan", 20_000)
	e := New(func() Values { return v }, false)
	const limit = 200 * time.Millisecond
	best := time.Hour
	for end := time.Now().Add(time.Minute); best > limit && time.Now().Before(end); {
		start := time.Now()
		if _, err := e.scrape(); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(start))
	}
	if t.Logf("a scrape takes %s", best); best > limit {
		t.Errorf("a scrape takes %s, want at most %s", best, limit)
	}
}

func BenchmarkScrape(b *testing.B) {
	v := all("vxlan", 20_000)
	for name, perPeer := range maps.All(map[string]bool{"total": false, "per peer": true}) {
		b.Run(name, func(b *testing.B) {
			e := New(func() Values { return v }, perPeer)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := e.scrape(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
