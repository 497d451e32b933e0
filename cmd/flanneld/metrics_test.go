package main

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/vishvananda/netlink"

	"flanneld/pkg/api"
	"flanneld/pkg/lab"
	"flanneld/pkg/metrics"
)

// scraped are the series of a scrape, by name and labels; of a summary, _count and _sum.
type scraped map[string]float64

// scrape asks the daemon of a host for its metrics, on its socket.
func (c *cluster) scrape(h *lab.Host) (scraped, error) {
	text, err := api.Dial(h.SubnetFile).Get(c.ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	return parseMetrics(string(text))
}

func parseMetrics(text string) (scraped, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	all := scraped{}
	for name, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			in := ""
			if len(labels) > 0 {
				in = "{" + strings.Join(labels, ",") + "}"
			}
			if f.GetType() == dto.MetricType_SUMMARY {
				all[name+"_count"+in], all[name+"_sum"+in] = float64(m.GetSummary().GetSampleCount()), m.GetSummary().GetSampleSum()
				continue
			}
			all[name+in] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return all, err
}

// become waits until the metrics of a host have these values.
func (c *cluster) become(h *lab.Host, d time.Duration, want scraped) {
	c.t.Helper()
	c.within(slow(d), fmt.Sprint(want), func() error {
		got, err := c.scrape(h)
		for name, v := range want {
			if now, ok := got[name]; err == nil && (!ok || now != v) {
				err = fmt.Errorf("%s is %v (%v), want %v", name, now, ok, v)
			}
		}
		return err
	})
}

// grow waits until counters of a host are greater than in a former scrape.
func (c *cluster) grow(h *lab.Host, d time.Duration, since scraped, names ...string) {
	c.t.Helper()
	c.within(slow(d), strings.Join(names, ", "), func() error {
		got, err := c.scrape(h)
		for _, name := range names {
			if err == nil && !(got[name] > since[name]) {
				err = fmt.Errorf("%s was %v and is %v", name, since[name], got[name])
			}
		}
		return err
	})
}

// TestMetrics has real daemons scraped, over the socket and over TCP, while things happen.
func TestMetrics(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, upperConfig, "-status-listen=127.0.0.1:9285", "-probe-interval=200ms")
	h := c.Hosts[0]
	c.become(h, 10*time.Second, scraped{
		"flannel_ready": 1, "flannel_peers": 2, "flannel_subnets": 128, "flannel_subnets_used": 3, "flannel_store_up": 1,
		"flannel_peers_unreachable": 0, `flannel_drift_objects{kind="route"}`: 0, "flannel_lease_conflicts_total": 0,
	})
	c.grow(h, 10*time.Second, scraped{}, "flannel_peer_probe_rtt_seconds", "flannel_device_receive_packets_total",
		"flannel_device_transmit_bytes_total", `flannel_kernel_operations_total{kind="route",result="ok",verb="put"}`,
		"flannel_reconcile_duration_seconds_sum", `flannel_lease_writes_total{result="ok"}`)
	first, err := c.scrape(h)
	c.must(err)
	if left := first["flannel_lease_expires_timestamp_seconds"] - float64(time.Now().Unix()); left < 23*3600 || left > 24*3600+60 {
		t.Errorf("the lease ends in %v s", left)
	}

	// The same over TCP, as Prometheus would: clean, and few.
	text := c.scrapeTCP(h)
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	over, err := parseMetrics(text)
	c.must(err)
	if !slices.Equal(slices.Sorted(maps.Keys(over)), slices.Sorted(maps.Keys(first))) {
		t.Errorf("over TCP there is\n%s\nwant the series\n%s", text, slices.Sorted(maps.Keys(first)))
	}
	if t.Logf("%d series", len(over)); len(over) > metrics.MaxSeries {
		t.Errorf("%d series, want at most %d:\n%s", len(over), metrics.MaxSeries, text)
	}

	// A peer joins, another one has an invalid lease.
	c.put("subnets/10.42.7.0-24", `{"PublicIP":"203.0.113.77","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}`)
	c.grow(h, 10*time.Second, first, "flannel_propagation_seconds_count", "flannel_store_last_event_timestamp_seconds")
	c.put("subnets/10.42.8.0-24", `{"PublicIP":"203.0.113.78","BackendType":"vxlan"}`)
	c.become(h, 10*time.Second, scraped{"flannel_peers": 4, `flannel_peers_skipped{reason="invalid"}`: 1, "flannel_subnets_used": 3})

	// Other programs change the kernel.
	c.onLink(h, "flannel.1", func(l netlink.Link) error {
		routes, err := netlink.RouteList(l, netlink.FAMILY_V4)
		for _, r := range routes {
			if err == nil && r.Dst.String() == "10.42.7.0/24" {
				err = netlink.RouteDel(&r)
			}
		}
		return err
	})
	c.grow(h, 10*time.Second, first, `flannel_repairs_total{kind="route"}`, "flannel_repair_duration_seconds_count", `flannel_reconciles_total{result="ok",trigger="check"}`)
	c.onLink(h, "flannel.1", func(l netlink.Link) error { return flushNeighbours(l, netlink.FAMILY_V4) })
	c.grow(h, 10*time.Second, first, `flannel_repairs_total{kind="neighbour"}`)
	c.onLink(h, "flannel.1", netlink.LinkSetDown)
	c.grow(h, 10*time.Second, first, `flannel_repairs_total{kind="link"}`)
	c.become(h, 10*time.Second, scraped{`flannel_drift_objects{kind="link"}`: 0, `flannel_drift_objects{kind="route"}`: 0})

	// etcd is away, and comes back.
	c.must(c.Etcd.Stop(c.ctx))
	c.become(h, time.Minute, scraped{"flannel_store_up": 0, "flannel_ready": 1, "flannel_peers": 4})
	c.grow(h, time.Minute, first, `flannel_store_errors_total{op="read"}`)
	c.must(c.Etcd.Start(c.ctx))
	c.become(h, time.Minute, scraped{"flannel_store_up": 1})
	last, err := c.scrape(h)
	c.must(err)
	for name, v := range first {
		if strings.HasSuffix(name, "_count") || strings.Contains(name, "_total") {
			if last[name] < v {
				t.Errorf("%s was %v and is %v", name, v, last[name])
			}
		}
	}
	if len(last) > metrics.MaxSeries {
		t.Errorf("%d series, want at most %d", len(last), metrics.MaxSeries)
	}
}

// scrapeTCP returns the metrics of a host's daemon, as -status-listen serves them.
func (c *cluster) scrapeTCP(h *lab.Host) string {
	c.t.Helper()
	client := &http.Client{Transport: &http.Transport{DialContext: h.NS.DialContext, DisableKeepAlives: true}, Timeout: slow(3 * time.Second)}
	r, err := client.Get("http://127.0.0.1:9285/metrics")
	c.must(err)
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	c.must(err)
	if r.StatusCode != http.StatusOK {
		c.t.Fatalf("%s: %s", r.Status, text)
	}
	return string(text)
}

// TestMetricsOfPeers: a host that is off, as the other ones see it; with udp, which counts drops.
func TestMetricsOfPeers(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, `{"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}`, "-metrics-per-peer", "-probe-interval=200ms")
	h, off := c.Hosts[0], c.subnet(c.Hosts[2])
	rtt := func(peer fmt.Stringer) string { return fmt.Sprintf("flannel_peer_probe_rtt_seconds{peer=%q}", peer) }
	c.grow(h, 20*time.Second, scraped{}, rtt(c.subnet(c.Hosts[1])), rtt(off))
	if _, err := c.try(h, "ping -c 1 -W 1 10.42.255.9"); err == nil { // nobody has it
		t.Error("an address without a host answers")
	}
	c.grow(h, 10*time.Second, scraped{}, `flannel_tunnel_drops_total{direction="out",reason="address"}`)
	c.stop(c.Hosts[2].Flanneld())
	c.must(c.Hosts[2].Unplug())
	c.become(h, time.Minute, scraped{"flannel_peers_unreachable": 1, "flannel_peers": 2})
	got, err := c.scrape(h)
	c.must(err)
	if _, ok := got[rtt(off)]; ok || got[fmt.Sprintf("flannel_peer_probe_failures_total{peer=%q}", off)] == 0 {
		t.Errorf("the host that is off has a round-trip time, or no failures: %v", got)
	}
	problems, err := promlint.New(strings.NewReader(func() string {
		text, err := api.Dial(h.SubnetFile).Get(c.ctx, "/metrics")
		c.must(err)
		return string(text)
	}())).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}
