package prober

import "time"

// rttBounds returns the upper bounds of the classes of round-trip times, in ascending order.
func rttBounds() [8]time.Duration {
	const us, ms = time.Microsecond, time.Millisecond
	return [...]time.Duration{200 * us, 500 * us, ms, 2 * ms, 5 * ms, 20 * ms, 100 * ms, 500 * ms}
}

// Stats are the totals of a Prober since its start, and the present number of peers in each state.
type Stats struct {
	Sent     uint64 // probes that left this host
	Answered uint64
	Lost     uint64      // probes that were not answered in time
	Peers    [states]int // number of peers by State
	RTT      Histogram
}

// Histogram has the distribution of round-trip times.
type Histogram struct {
	Sum     time.Duration
	Buckets [9]uint64 // number of times in each class; the last one is that above all bounds
}

// Bounds returns the upper bounds of all buckets but the last one.
func (Histogram) Bounds() [8]time.Duration { return rttBounds() }

func (s *Stats) addRTT(rtt time.Duration) {
	s.RTT.Sum += rtt
	class := 0
	for _, bound := range rttBounds() {
		if rtt > bound {
			class++
		}
	}
	s.RTT.Buckets[class]++
}
