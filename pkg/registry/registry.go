// Package registry says what a store of leases can do. Its children do it:
// etcdv2, and memory for tests; one contract suite (registrytest) holds for
// all of them.
//
// Invariant: every write to a lease is a compare-and-swap, so that no host can
// overwrite what it has not seen; and one entry that cannot be decoded is
// reported beside the good ones, never instead of them.
package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/netconf"
)

// Sentinels. Everything else that a Registry returns means "no answer": the
// store is away, or broken, and the call may be tried again. A write that got
// no answer may have been done all the same.
var (
	// ErrNoConfig means that the store answers, and has no network config under the prefix.
	ErrNoConfig = errors.New("no network config")
	// ErrConflict means that the compare of a compare-and-swap failed: the key exists
	// (Create), or is gone or was changed (Update, Release), perhaps by an
	// earlier write of our own whose answer was lost.
	ErrConflict = errors.New("lease was changed by somebody else")
	// ErrHistoryLost means that the store no longer has the events after the index asked
	// for: the leases must be listed again.
	ErrHistoryLost = errors.New("watch history lost")
	// ErrDenied means that the store answers and refuses this user the request. Nothing was done.
	// That lasts until a person changes it: whoever opened the store tells them, and who
	// calls it says nothing and tries again now and then.
	ErrDenied = errors.New("permission denied")
	// ErrLogin is an ErrDenied too: not even the user is accepted.
	ErrLogin = fmt.Errorf("user or password refused: %w", ErrDenied)
	// ErrNoAPI means that a server answers that does not have this store's API at all: etcd 2
	// has no v3, etcd 3.6 has no v2.
	ErrNoAPI = errors.New("no such API")
	// ErrLongConfig means that the network config is longer than a config can be. The error
	// that wraps it says how long.
	ErrLongConfig = errors.New("network config is too long")
	// ErrRevisionRollback is an ErrHistoryLost too: the store is at an index below the
	// one asked for, so it was wiped or restored from a backup.
	ErrRevisionRollback = fmt.Errorf("the store was wiped or restored: %w", ErrHistoryLost)
)

// Registry is a store of one network's config and leases. Calls may run
// concurrently and end with ctx.
type Registry interface {
	// Config returns the raw network config, or ErrNoConfig or ErrLongConfig.
	Config(ctx context.Context) ([]byte, error)
	// List returns every lease at one moment. Of when a lease expires, it and
	// Watch need only tell whether it does; Get and the writes say when.
	List(ctx context.Context) (Listing, error)
	// Get returns what one lease's key holds now, in the form of the event
	// that made it so: a lease, Deleted, or Bad. In place of Deleted it may return
	// another lease with the same IPv4 subnet, which keeps Create from making this one.
	Get(ctx context.Context, subnets lease.Subnets) (Event, error)
	// Watch blocks until something happened after index and returns it, in
	// order, with the index to go on from. Renewals that change nothing are
	// events too. After a long silence it returns no events and no error.
	Watch(ctx context.Context, index uint64) ([]Event, uint64, error)
	// Create makes the lease if its key does not exist and, where the store can tell, no
	// other lease has the same IPv4 subnet. ttl is rounded up to whole seconds; 0 makes
	// a reservation.
	Create(ctx context.Context, subnets lease.Subnets, a lease.Attrs, ttl time.Duration) (lease.Lease, error)
	// Update rewrites the lease if its revision is still that of prev, and
	// gives it a new ttl (0: a reservation).
	Update(ctx context.Context, prev lease.Lease, a lease.Attrs, ttl time.Duration) (lease.Lease, error)
	// Release ends the lease if its revision is still that of prev: it is written once
	// more, as Leaving, and its key is gone when Release returns or within 3 s. If an
	// error comes in between, the key expires within a minute.
	Release(ctx context.Context, prev lease.Lease) error
}

// Limits of what one entry, and all that are no leases, cost whoever reads them. A store
// may hold anything: a value of many megabytes, or a million keys that are nobody's.
const (
	// MaxValue is the longest value, in bytes, that is held.
	MaxValue = max(lease.MaxValue, netconf.MaxConfig)
	// MaxBad is how many entries that are no leases a Listing names.
	MaxBad = 1000
)

// LongConfig returns the error of a network config of size bytes, which are more than
// MaxValue.
func LongConfig(size int64) error {
	return fmt.Errorf("%w: must be at most %d bytes long, not %d", ErrLongConfig, netconf.MaxConfig, size)
}

// Listing is all leases at one index.
type Listing struct {
	Leases []lease.Lease
	// Bad has all entries that are no leases and have the key of one, whose subnets are taken
	// by them, and MaxBad of the others.
	Bad   []Bad
	More  int    // entries that are no leases and not in Bad
	Index uint64 // Watch from here

	nameless int // in Bad: without subnets
}

// Add adds what a key holds: a lease written, or a bad entry.
func (l *Listing) Add(ev Event) {
	switch {
	case ev.Bad == nil:
		l.Leases = append(l.Leases, ev.Lease)
	case ev.Bad.Subnets.IsValid():
		l.Bad = append(l.Bad, *ev.Bad)
	case l.nameless < MaxBad:
		l.nameless++
		l.Bad = append(l.Bad, *ev.Bad)
	default:
		l.More++
	}
}

// Event is a change of one key:
//
//   - Lease alone: it was written;
//   - Deleted, with Lease.Subnets: the lease is gone, Lease.Revision tells since when;
//   - Bad: the entry cannot be decoded;
//   - Deleted, with Bad.Key: an entry that never was a lease is gone.
type Event struct {
	Lease   lease.Lease
	Deleted bool
	Bad     *Bad
}

// Bad is an entry that is not a lease.
type Bad struct {
	Key      string        // last element of the key, shortened by ShortKey
	Subnets  lease.Subnets // of the key, where only the value is bad; else none
	Revision uint64        // of the last write, so that its owner can put it right
	Err      error         // names the field and the value
}

// mostKey is the longest key that is not shortened: longer than that of any lease.
const mostKey = 128

// ShortKey returns the last element of a key as a Bad has it: a long one is cut, and says
// how long it was.
func ShortKey(key string) string {
	if len(key) <= mostKey {
		return key
	}
	return fmt.Sprintf("%s (%d bytes)", lease.Clip(key), len(key))
}
