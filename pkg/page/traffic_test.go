package page

import (
	"fmt"
	"testing"
	"time"
)

// TestRatesOfTraffic: bytes per second in the time that has passed; unknown for the first sample, for
// another device, and for one that was created again.
func TestRatesOfTraffic(t *testing.T) {
	start := time.Unix(0, 0)
	var device string
	var c Counters
	s := sampler{read: func() (string, Counters) { return device, c }}
	for i, step := range []struct {
		after          time.Duration
		device         string
		received, sent uint64
		want           string
	}{
		{0, "", 0, 0, "unknown"},
		{2, "flannel.1", 100, 50, "unknown"},
		{4, "flannel.1", 300, 150, "100 50"},
		{8, "flannel.1", 4300, 150, "1000 0"},
		{10, "flannel.1", 10, 20, "unknown"},
		{12, "flannel.1", 30, 20, "10 0"},
		{12, "flannel.1", 30, 20, "unknown"},
		{14, "flannel.2", 50, 40, "unknown"},
		{16, "", 0, 0, "unknown"},
		{18, "", 0, 0, "unknown"},
	} {
		device, c = step.device, Counters{step.received, step.sent}
		s.sample(start.Add(step.after * time.Second))
		traffic, samples := s.traffic()
		got := "unknown"
		if r := traffic.Rates[i]; r != nil {
			got = fmt.Sprint(r[0], r[1])
		}
		if got != step.want && got != "["+step.want+"]" || traffic.Device != step.device || samples != uint64(i+1) || traffic.Interval != 2 {
			t.Errorf("step %d: %s, want %s, %+v", i, got, step.want, traffic)
		}
	}
}

// TestSamplesAreLimited: the latest are kept, and what was returned does not change.
func TestSamplesAreLimited(t *testing.T) {
	n := uint64(0)
	s := sampler{read: func() (string, Counters) { n++; return "flannel.1", Counters{Received: n * n * 1000} }}
	for i := range 2 * maxSamples {
		s.sample(time.Unix(int64(i), 0))
	}
	before, _ := s.traffic()
	last := *before.Rates[maxSamples-1]
	s.sample(time.Unix(2*maxSamples, 0))
	after, samples := s.traffic()
	if len(before.Rates) != maxSamples || len(after.Rates) != maxSamples || samples != 2*maxSamples+1 || cap(s.rates) > 4*maxSamples {
		t.Errorf("%d and %d rates of %d samples, space for %d", len(before.Rates), len(after.Rates), samples, cap(s.rates))
	}
	if *before.Rates[maxSamples-1] != last || *after.Rates[maxSamples-2] != last || *after.Rates[maxSamples-1] == last {
		t.Errorf("the last before was %v, is %v, and now %v", last, *before.Rates[maxSamples-1], *after.Rates[maxSamples-1])
	}
}
