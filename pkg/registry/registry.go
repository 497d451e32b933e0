// Package registry is the interface of a store of leases. etcdv2, etcdv3, and memory for tests
// implement it. One contract suite (registrytest) tests all of them.
//
// Invariant: every write to a lease is a compare-and-swap, so that no host can overwrite what it
// has not seen; and one entry that cannot be decoded is reported beside the valid ones, never
// instead of them.
package registry

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/netconf"
)

// Sentinel errors. Any other error of a Registry means that there is no answer: the store is away
// or broken, and the call may be repeated. A write without an answer may have been done.
var (
	// ErrNoConfig means that the store answers, and has no network config under the prefix.
	ErrNoConfig = errors.New("no network config")
	// ErrConflict means that the compare of a compare-and-swap failed: the key exists
	// (Create), or is gone or was changed (Update, Release), perhaps by an
	// earlier write of our own whose answer was lost.
	ErrConflict = errors.New("lease was changed by somebody else")
	// ErrGone is also an ErrConflict: the key does not exist.
	ErrGone = fmt.Errorf("%w: its key is gone", ErrConflict)
	// ErrHistoryLost means that the store no longer has the events after the index asked
	// for: the leases must be listed again.
	ErrHistoryLost = errors.New("watch history lost")
	// ErrDenied means that the store answers and refuses this user the request. Nothing was done.
	// This lasts until an operator changes it. Whoever opened the store reports it; callers do not
	// report it and retry now and then.
	ErrDenied = errors.New("permission denied")
	// ErrLogin is also an ErrDenied: the user or the password is not accepted.
	ErrLogin = fmt.Errorf("user or password refused: %w", ErrDenied)
	// ErrNoAPI means that a server answers that does not have this store's API at all: etcd 2
	// has no v3, etcd 3.6 has no v2.
	ErrNoAPI = errors.New("no such API")
	// ErrLongConfig means that the network config is longer than a config can be. The error
	// that wraps it says how long.
	ErrLongConfig = errors.New("network config is too long")
	// ErrConfigChanged means that the compare of WriteConfig failed: there is another network config
	// than the one that was read, or none any more.
	ErrConfigChanged = errors.New("another network config was written")
	// ErrRevisionRollback is also an ErrHistoryLost: the store is at a lower index than the one
	// asked for, so it was wiped or restored from a backup.
	ErrRevisionRollback = fmt.Errorf("the store was wiped or restored: %w", ErrHistoryLost)
)

// Registry is a store of one network's config and leases. Calls may run concurrently and end with
// ctx.
type Registry interface {
	// Config returns the raw network config, or ErrNoConfig or ErrLongConfig.
	Config(ctx context.Context) ([]byte, error)
	// ReadConfig returns what Config returns, and the revision of the last write, which is 0 if there
	// is no config, and valid with ErrLongConfig.
	ReadConfig(ctx context.Context) (raw []byte, revision uint64, err error)
	// WriteConfig writes the network config, without a time to live, if its revision is still the
	// given one, or, if that is 0, if there is none.
	WriteConfig(ctx context.Context, raw []byte, revision uint64) error
	// List returns all leases at one moment. List and Watch need only report whether a lease
	// expires; Get and the writes report when.
	List(ctx context.Context) (Listing, error)
	// Get returns the present content of one lease's key as an event: a lease, Deleted, or Invalid.
	Get(ctx context.Context, subnets lease.Subnets) (Event, error)
	// Watch waits until something has happened after index and returns the events in order, with
	// the index to continue from. Renewals without a change are events too. After a long time
	// without events, it returns no events and no error.
	Watch(ctx context.Context, index uint64) ([]Event, uint64, error)
	// Create creates the lease if its key does not exist. ttl is rounded up to whole seconds; 0
	// creates a reservation.
	Create(ctx context.Context, subnets lease.Subnets, a lease.Attrs, ttl time.Duration) (lease.Lease, error)
	// Update writes the lease if its revision is still that of prev, with a new ttl (0: a
	// reservation).
	Update(ctx context.Context, prev lease.Lease, a lease.Attrs, ttl time.Duration) (lease.Lease, error)
	// Release ends the lease if its revision is still that of prev: it is written once more, as
	// Leaving, and its key is gone when Release returns or within 3 s. If an error occurs in
	// between, the key expires within a minute.
	Release(ctx context.Context, prev lease.Lease) error
}

// Failed returns the error of an operation on a lease, or nil if err is nil.
func Failed(operation string, subnets lease.Subnets, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s lease %s: %w", operation, subnets, err)
}

// Limits of the memory for one entry, and for all entries that are no leases. A store may contain
// anything: a value of many megabytes, or a million keys that are no leases.
const (
	// MaxValue is the length of the longest value, in bytes, that is kept.
	MaxValue = max(lease.MaxValue, netconf.MaxConfig)
	// MaxInvalid is how many entries that are no leases a Listing has.
	MaxInvalid = 1000
)

// LongConfig returns the error for a network config of size bytes, which is more than MaxValue.
func LongConfig(size int64) error {
	return fmt.Errorf("%w: must be at most %d bytes long, not %d", ErrLongConfig, netconf.MaxConfig, size)
}

// Listing is all leases at one index.
type Listing struct {
	Leases []lease.Lease
	// Invalid has all invalid entries with the key of a lease, whose subnets they occupy, and up
	// to MaxInvalid of the others.
	Invalid     []InvalidEntry
	MoreInvalid int    // number of further invalid entries
	Index       uint64 // index to watch from

	nameless int // number of entries in Invalid without subnets
}

// Add adds the content of a key: a lease or an invalid entry.
func (l *Listing) Add(ev Event) {
	switch {
	case ev.Invalid == nil:
		l.Leases = append(l.Leases, ev.Lease)
	case ev.Invalid.Subnets.IsValid():
		l.Invalid = append(l.Invalid, *ev.Invalid)
	case l.nameless < MaxInvalid:
		l.nameless++
		l.Invalid = append(l.Invalid, *ev.Invalid)
	default:
		l.MoreInvalid++
	}
}

// Event is a change of one key:
//
//   - Lease alone: it was written;
//   - Deleted, with Lease.Subnets: the lease was deleted at Lease.Revision;
//   - Invalid: the entry cannot be decoded;
//   - Deleted, with Invalid.Key: an entry that was never a lease was deleted.
type Event struct {
	Lease   lease.Lease
	Deleted bool
	Invalid *InvalidEntry
}

// Entry is a key below subnets/ with its content, in a form that is the same for all stores.
type Entry struct {
	Key               string    // after subnets/
	Value             []byte    // nil if there is an Err
	Err               error     // why there is no value: it is too long, or the key is a directory
	Revision, Created uint64    // of the last write and the first
	Expires           time.Time // zero: never
}

// parseKey parses the subnets in a key. A key with more elements is no lease: v3 has no
// directories, so it does not affect the key that it extends.
func (e Entry) parseKey() (lease.Subnets, error) {
	if strings.Contains(e.Key, "/") {
		return lease.Subnets{}, lease.Fault{Kind: "key has more than one element", Detail: strconv.Quote(lease.Clip(e.Key))}
	}
	return lease.ParseKey(e.Key)
}

// Event returns the content as an event: a lease or an invalid entry.
func (e Entry) Event() Event {
	subnets, err := e.parseKey()
	var attrs lease.Attrs
	if err == nil {
		if err = e.Err; err == nil {
			attrs, err = lease.DecodeAttrs(e.Value)
		}
	}
	if err != nil {
		return Event{Invalid: &InvalidEntry{Key: shortKey(e.Key), Subnets: subnets, Revision: e.Revision, Err: err}}
	}
	return Event{Lease: lease.Lease{Subnets: subnets, Attrs: attrs, Expires: e.Expires, Revision: e.Revision, Created: e.Created}}
}

// Deletion returns the event that the key was deleted at e.Revision.
func (e Entry) Deletion() Event {
	subnets, err := e.parseKey()
	if err != nil {
		return Event{Deleted: true, Invalid: &InvalidEntry{Key: shortKey(e.Key), Revision: e.Revision, Err: err}}
	}
	return Event{Deleted: true, Lease: lease.Lease{Subnets: subnets, Revision: e.Revision}}
}

// InvalidEntry is an entry that is not a lease.
type InvalidEntry struct {
	Key      string        // last element of the key, shortened if it is long
	Subnets  lease.Subnets // of the key, if only the value is invalid; else none
	Revision uint64        // of the last write, so that its owner can correct it
	Err      error         // has the field and the value
}

// maxKey is the length of the longest key that is not shortened. It is longer than that of any
// lease.
const maxKey = 128

// shortKey returns a key for an InvalidEntry. A long one is truncated, with its length added.
func shortKey(key string) string {
	if len(key) <= maxKey {
		return key
	}
	return fmt.Sprintf("%s (%d bytes)", lease.Clip(key), len(key))
}
