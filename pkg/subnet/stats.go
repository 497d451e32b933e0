package subnet

import (
	"time"

	"flanneld/pkg/lease"
)

// Stats is a snapshot of the state of Follow and of its counters.
type Stats struct {
	Own       lease.Lease // as last written or read, with its present expiry; zero if there was none yet
	Lost      bool        // another host has the subnet of Own and there is no new one yet
	Leases    int         // in the registry, including ours
	Invalid   int         // entries that cannot be decoded
	AwaySince time.Time   // start of the present outage; zero if there is none
	Answered  time.Time   // when the registry last answered, with or without events
	Event     time.Time   // when a watch last returned events; zero if none did

	Outages   uint64         // number of outages that began
	Relists   [causes]uint64 // number of listings except the first, by Cause
	Conflicts uint64         // number of times that another program wrote the own key
	Moves     uint64         // number of subnets lost to other hosts
}

// Cause is the reason for listing all leases again.
type Cause uint8

// Causes of a listing.
const (
	HistoryLost Cause = iota // events were no longer available
	RolledBack               // the registry was wiped or restored
	Behind                   // leases changed faster than events were received
	OwnLease                 // the own lease changed without an event
	causes
)

// String returns the cause as a metric's label.
func (c Cause) String() string {
	if c >= causes {
		return "unknown"
	}
	return [causes]string{"history_lost", "rolled_back", "behind", "own_lease"}[c]
}

// relistFor requests a listing before the next watch.
func (f *follower) relistFor(c Cause) {
	if !f.relist {
		f.relist, f.relistCause = true, c
	}
}

// report calls Options.Report if Stats have changed.
func (f *follower) report() {
	s := &f.stats
	s.Own, s.Lost, s.Leases, s.Invalid = f.own, f.lost, len(f.leases)-len(f.graceEnds), len(f.invalidKeys)+f.moreInvalid
	s.AwaySince, s.Outages = f.away.since, f.away.count
	if f.Report != nil && *s != f.reported {
		f.reported = *s
		f.Report(*s)
	}
}
