package page

import (
	"context"
	"slices"
	"sync"
	"time"
)

const (
	// samplePause is the time between two samples of the traffic.
	samplePause = 2 * time.Second
	// maxSamples is the number of samples that are kept: five minutes.
	maxSamples = 150
)

// Counters are the numbers of bytes that a device has received and sent.
type Counters struct{ Received, Sent uint64 }

// Traffic is the traffic of the overlay's device during the last minutes.
type Traffic struct {
	Device   string  `json:"device"`           // empty if there is none
	Interval float64 `json:"interval_seconds"` // between two rates
	// Rates are bytes per second, received and sent, the latest last; null where they are unknown.
	Rates []*[2]uint64 `json:"rates"`
}

// sampler takes samples of the traffic, which are few, so that they are taken while nobody watches
// as well: who opens the page sees the minutes before.
type sampler struct {
	read func() (string, Counters)

	// The following belong to run's goroutine.
	last Counters
	at   time.Time // of last

	mu     sync.Mutex
	device string
	rates  []*[2]uint64
	number uint64 // of samples so far
}

// run takes samples until ctx ends.
func (s *sampler) run(ctx context.Context) {
	ticker := time.NewTicker(samplePause)
	defer ticker.Stop()
	for {
		s.sample(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// sample takes a sample. The rate is unknown if it is another device than before, or if it was
// created again.
func (s *sampler) sample(now time.Time) {
	device, c := s.read()
	s.mu.Lock()
	defer s.mu.Unlock()
	var rate *[2]uint64
	if passed := now.Sub(s.at).Seconds(); device != "" && device == s.device && passed > 0 && c.Received >= s.last.Received && c.Sent >= s.last.Sent {
		rate = &[2]uint64{perSecond(c.Received-s.last.Received, passed), perSecond(c.Sent-s.last.Sent, passed)}
	}
	s.device, s.last, s.at = device, c, now
	if len(s.rates) == maxSamples {
		s.rates = slices.Delete(s.rates, 0, 1)
	}
	s.rates = append(s.rates, rate)
	s.number++
}

func perSecond(bytes uint64, seconds float64) uint64 { return uint64(float64(bytes) / seconds) }

// traffic returns the rates, and the number of samples so far.
func (s *sampler) traffic() (t Traffic, samples uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Traffic{Device: s.device, Interval: samplePause.Seconds(), Rates: append([]*[2]uint64{}, s.rates...)}, s.number
}
