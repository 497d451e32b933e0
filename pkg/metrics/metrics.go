// Package metrics exports the totals and the state of the other rooms in Prometheus' text format.
//
// It counts nothing itself: each scrape reads the present values (Values) and writes them, so that
// two scrapes do not affect each other, and a daemon that nobody scrapes spends nothing on it.
// Invariant: whatever happens, and however many peers there are, a scrape has at most MaxSeries
// series, except for those of single peers, which must be requested. So labels have few values,
// which do not come from outside.
package metrics

import (
	"bytes"
	"fmt"
	"net/http"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

// MaxSeries is the maximum number of series without those of single peers.
const MaxSeries = 60

// namespace is the prefix of all names.
const namespace = "flannel"

// Exporter answers scrapes.
type Exporter struct {
	values  func() Values
	perPeer bool

	mu       sync.Mutex // one scrape at a time
	registry *prometheus.Registry
}

// New returns an exporter. values returns the present values; it is called once for each scrape.
// With perPeer, there are series for each peer.
func New(values func() Values, perPeer bool) *Exporter {
	return &Exporter{values: values, perPeer: perPeer}
}

// ServeHTTP implements http.Handler. The registry is created by the first scrape.
func (e *Exporter) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	text, err := e.scrape()
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = fmt.Fprintln(w, err)
		return
	}
	w.Header().Set("Content-Type", string(format()))
	_, _ = w.Write(text) // fails only if the client has gone
}

func format() expfmt.Format { return expfmt.NewFormat(expfmt.TypeTextPlain) }

// scrape returns the present values as text. It is composed before it is sent, so that a slow
// client does not delay others.
func (e *Exporter) scrape() ([]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.registry == nil {
		registry := prometheus.NewRegistry()
		if err := registry.Register(newCollector(e.values, e.perPeer)); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
		e.registry = registry
	}
	families, err := e.registry.Gather()
	if err != nil {
		return nil, fmt.Errorf("gather metrics: %w", err)
	}
	var text bytes.Buffer
	encoder := expfmt.NewEncoder(&text, format())
	for _, family := range families {
		if err := encoder.Encode(family); err != nil {
			return nil, fmt.Errorf("encode metrics: %w", err)
		}
	}
	return text.Bytes(), nil
}

// collector implements prometheus.Collector.
type collector struct {
	values  func() Values
	metrics []metric
	descs   []*prometheus.Desc // of metrics
}

func newCollector(values func() Values, perPeer bool) *collector {
	c := &collector{values: values, metrics: metrics(perPeer)}
	for _, m := range c.metrics {
		c.descs = append(c.descs, prometheus.NewDesc(prometheus.BuildFQName(namespace, "", m.name), m.help, m.labels, nil))
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	v := c.values()
	for i, m := range c.metrics {
		m.emit(&v, series{m, c.descs[i], out})
	}
}

// series receives the series of one metric.
type series struct {
	metric
	desc *prometheus.Desc
	out  chan<- prometheus.Metric
}

// add adds a series of a gauge or a counter.
func (s series) add(value float64, labels ...string) {
	kind := prometheus.GaugeValue
	if s.kind == counter {
		kind = prometheus.CounterValue
	}
	s.send(prometheus.NewConstMetric(s.desc, kind, value, labels...))
}

// addTotal adds the series of a summary without quantiles: a number of events and the sum of their
// durations.
func (s series) addTotal(count uint64, seconds float64, labels ...string) {
	s.send(prometheus.NewConstSummary(s.desc, count, seconds, nil, labels...))
}

func (s series) send(m prometheus.Metric, err error) {
	if err != nil {
		m = prometheus.NewInvalidMetric(s.desc, err)
	}
	s.out <- m
}
