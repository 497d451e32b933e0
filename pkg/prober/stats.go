package prober

// Stats are the totals of a Prober since its start, and the present number of peers in each state.
type Stats struct {
	Sent     uint64 // probes that left this host
	Answered uint64
	Lost     uint64      // probes that were not answered in time
	Peers    [states]int // number of peers by State
}
