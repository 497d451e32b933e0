package page

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// text returns rates as text, in which "-" is one that is unknown.
func (t Traffic) text() string {
	var all []string
	for _, r := range t.Rates {
		if r == nil {
			all = append(all, "-")
		} else {
			all = append(all, fmt.Sprintf("%d/%d", r[0], r[1]))
		}
	}
	return strings.Join(all, " ")
}

// TestRatesOfTraffic: bytes per second in the time since the sample before, for each two seconds of
// it; unknown for another device, and for one that was created again.
func TestRatesOfTraffic(t *testing.T) {
	start := time.Unix(1000, 0)
	var device string
	var c Counters
	reads := 0
	s := sampler{read: func() (string, Counters) { reads++; return device, c }}
	number := uint64(0)
	for _, step := range []struct {
		after          float64 // seconds
		device         string
		received, sent uint64
		rates          string // that are added
	}{
		{0, "", 0, 0, ""},
		{1, "flannel.1", 0, 0, ""},
		{2, "flannel.1", 100, 50, "-"},
		{4, "flannel.1", 300, 150, "100/50"},
		{4, "flannel.1", 300, 150, ""},
		{5.9, "flannel.1", 300, 150, ""},
		{9, "flannel.1", 5300, 150, "1000/0 1000/0"},
		{10, "flannel.1", 5400, 150, "100/0"},
		{12, "flannel.1", 10, 20, "-"},
		{14, "flannel.1", 30, 20, "10/0"},
		{16, "flannel.2", 50, 40, "-"},
		{22, "", 0, 0, "- - -"},
	} {
		device, c = step.device, Counters{step.received, step.sent}
		before := len(s.rates)
		s.sample(start.Add(time.Duration(step.after*float64(time.Second))), 0)
		got := Traffic{Rates: s.rates[before:]}
		number += uint64(len(got.Rates))
		if got.text() != step.rates || s.number != number || step.rates != "" && s.device != step.device {
			t.Errorf("after %v s: %q, want %q; %d of %q", step.after, got.text(), step.rates, s.number, s.device)
		}
	}
	if reads != 9 {
		t.Errorf("the device was read %d times", reads)
	}
}

// TestTrafficBeforeSomebodyWatches: samples that were taken seldom are shown, and more are taken as
// soon as somebody watches.
func TestTrafficBeforeSomebodyWatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, reads := time.Now(), 0
		p := New(Config{Device: func() (string, Counters) {
			reads++
			return "flannel.1", Counters{Received: uint64(time.Since(start).Seconds()) * 100}
		}})
		for range 5 {
			p.Sample()
			<-time.After(5 * time.Second)
		}
		if reads != 3 {
			t.Errorf("read %d times", reads)
		}
		for i := range 3 {
			traffic, number := p.sampler.traffic()
			if n := 12 + i; traffic.text() != strings.TrimSuffix(strings.Repeat("100/0 ", n), " ") || number != uint64(n) || traffic.Interval != 2 || traffic.Device != "flannel.1" {
				t.Errorf("%d: %d, %s, %+v", i, number, traffic.text(), traffic)
			}
			<-time.After(2 * time.Second)
		}
	})
}

// TestRatesAreLimited: the latest are kept, also after a long time without a sample, and what was
// returned does not change.
func TestRatesAreLimited(t *testing.T) {
	n := uint64(0)
	s := sampler{read: func() (string, Counters) { n++; return "flannel.1", Counters{Received: n * n * 1000} }}
	at := time.Now().Add(-time.Hour)
	for range 2 * maxRates {
		at = at.Add(rateTime)
		s.sample(at, 0)
	}
	before := Traffic{Rates: append([]*[2]uint64{}, s.rates...)}.text()
	kept, _ := s.traffic() // after a long time
	if len(kept.Rates) != maxRates || cap(s.rates) > 4*maxRates || kept.text() == before || strings.Count(kept.text(), fmt.Sprintf("%d/0", kept.Rates[0][0])) != maxRates {
		t.Errorf("%d rates, space for %d: %.100s, before %.100s", len(kept.Rates), cap(s.rates), kept.text(), before)
	}
	text := kept.text()
	s.sample(time.Now().Add(rateTime), 0)
	if kept.text() != text || (Traffic{Rates: s.rates}).text() == text {
		t.Errorf("what was returned is now %.100s, before %.100s", kept.text(), text)
	}
}
