package subnet

import (
	"time"

	"flanneld/pkg/lease"
)

// Stats is how Follow fares: a copy, of what is so now and of what was counted since it began.
type Stats struct {
	Own       lease.Lease // as last written or read, with its present expiry; zero while there was none yet
	Lost      bool        // another host has the subnet of Own, and there is no other one yet
	Leases    int         // in the registry, ours included
	Invalid   int         // entries that cannot be decoded
	AwaySince time.Time   // since when the registry has not answered; zero while it does
	Answered  time.Time   // when it last answered what follows it, be it that nothing has happened
	Event     time.Time   // when a watch brought events last; zero: none did

	Outages   uint64         // that began
	Relists   [causes]uint64 // listings of all leases but the first, by Cause
	Conflicts uint64         // times that the own key was found to be written by somebody else
	Moves     uint64         // subnets lost to other hosts
}

// Cause is why all leases were listed again.
type Cause uint8

// Causes of a listing.
const (
	HistoryLost Cause = iota // the registry had forgotten some events
	RolledBack               // it was wiped or restored
	Behind                   // leases change faster than they are watched
	OwnLease                 // the own lease was not as left, without an event that said so
	causes
)

// String returns the cause as a metric's label.
func (c Cause) String() string {
	if c >= causes {
		return "unknown"
	}
	return [causes]string{"history_lost", "rolled_back", "behind", "own_lease"}[c]
}

// relistFor has all leases listed again before they are watched.
func (f *follower) relistFor(c Cause) {
	if !f.relist {
		f.relist, f.relistCause = true, c
	}
}

// report tells what has changed.
func (f *follower) report() {
	s := &f.stats
	s.Own, s.Lost, s.Leases, s.Invalid = f.own, f.lost, len(f.leases)-len(f.graceEnds), len(f.invalidKeys)+f.moreInvalid
	s.AwaySince, s.Outages = f.away.since, f.away.count
	if f.Report != nil && *s != f.reported {
		f.reported = *s
		f.Report(*s)
	}
}
