package page

import (
	"slices"
	"sync"
	"time"
)

const (
	// rateTime is the time of which a rate is the average.
	rateTime = 2 * time.Second
	// idleTime is the least time between two samples while nobody watches.
	idleTime = 8 * time.Second
	// maxRates is the number of rates that are kept: five minutes.
	maxRates = 150
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

// sampler takes samples of the traffic: one for each rate while somebody watches, and fewer while
// nobody does. The rate between two samples is that of the whole time between them.
type sampler struct {
	read func() (string, Counters)

	mu     sync.Mutex
	device string
	last   Counters
	at     time.Time // of the last sample; zero before the first
	end    time.Time // of the last rate
	rates  []*[2]uint64
	number uint64 // of rates so far
}

// sample takes a sample if there is time for a rate since the last one, and a pause has passed. The
// rate is unknown if it is another device than before, or if it was created again.
func (s *sampler) sample(now time.Time, pause time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at.IsZero() {
		s.device, s.last = s.read()
		s.at, s.end = now, now
		return
	}
	n := int(now.Sub(s.end) / rateTime)
	if n <= 0 || now.Sub(s.at) < pause {
		return
	}
	device, c := s.read()
	var rate *[2]uint64
	if device != "" && device == s.device && c.Received >= s.last.Received && c.Sent >= s.last.Sent {
		passed := now.Sub(s.at).Seconds()
		rate = &[2]uint64{perSecond(c.Received-s.last.Received, passed), perSecond(c.Sent-s.last.Sent, passed)}
	}
	s.device, s.last, s.at, s.end = device, c, now, s.end.Add(time.Duration(n)*rateTime)
	s.number += uint64(n)
	n = min(n, maxRates)
	s.rates = slices.Delete(s.rates, 0, max(0, len(s.rates)+n-maxRates))
	s.rates = append(s.rates, slices.Repeat([]*[2]uint64{rate}, n)...)
}

func perSecond(bytes uint64, seconds float64) uint64 { return uint64(float64(bytes) / seconds) }

// traffic returns the rates, and the number of rates so far.
func (s *sampler) traffic() (t Traffic, number uint64) {
	s.sample(time.Now(), 0)
	s.mu.Lock()
	defer s.mu.Unlock()
	return Traffic{Device: s.device, Interval: rateTime.Seconds(), Rates: append([]*[2]uint64{}, s.rates...)}, s.number
}
