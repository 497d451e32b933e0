// Package etcdv3 is the registry in etcd's v3 API, as in flannel since 0.18: <prefix>/config and
// <prefix>/subnets/10.42.7.0-24, the latter attached to etcd leases of 24 hours.
//
// It knows keys, revisions, etcd leases and etcd's errors. It does not log, and it repeats only
// what cannot have been done twice, because only the caller knows what is urgent. It uses the
// official API and key operations on its own connection: the official client requests a token
// before it can be issued, waits forever for an etcd that is away, and repairs a broken watch
// silently, although the store may have been replaced.
//
// Invariant: every request has a time limit, so that an etcd which accepts connections and never
// answers looks like one that is away; the watch index never moves past an event that was not
// delivered; and an etcd lease is revoked only by the call that was granted it.
package etcdv3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	client "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/grpclog"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcd"
)

const (
	// answerTimeout is the time in which an endpoint must answer.
	answerTimeout = 5 * time.Second
	// A listing, which may be many megabytes on a slow line, is read in pages.
	listTimeout = 2 * time.Minute
	pageTimeout = 10 * time.Second
	pageSize    = 2000
	// tailPage is the page size for the keys of one IPv4 subnet. Normally there is one.
	tailPage = 32
	// maxPrealloc limits the memory that is allocated because of etcd's count.
	maxPrealloc = 1 << 16
)

// Options are the options of a connection to etcd.
type Options = etcd.Options

// Registry is the part of an etcd v3 store that belongs to a network.
type Registry struct {
	link    *link
	kv      client.KV // for transactions
	ranges  pb.KVClient
	leases  pb.LeaseClient
	watches pb.WatchClient
	config  string // key of the network config
	subnets string // prefix of the keys of leases; ends with a slash
	timeout time.Duration
	poll    time.Duration
	page    int64

	life    context.Context // context of streams; ends with Close
	end     context.CancelFunc
	streams sync.WaitGroup
	mu      sync.Mutex
	kept    *stream // stream of the last Watch, for the next one
}

var _ registry.Registry = (*Registry)(nil)

// DiscardLog makes gRPC print nothing to standard error: callers get all errors anyway. gRPC's
// logger is global and may only be set before gRPC is used, so the program must call this.
func DiscardLog() {
	if os.Getenv("GRPC_GO_LOG_SEVERITY_LEVEL") == "" {
		grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	}
}

// New returns a Registry. It does no I/O except for reading the TLS files. Errors name the endpoint
// or the flag that is wrong, and never contain a password.
func New(o Options) (*Registry, error) {
	l, err := newLink(o)
	if err != nil {
		return nil, err
	}
	r := &Registry{
		link:    l,
		kv:      client.NewKVFromKVClient(pb.NewKVClient(l.conn), nil),
		ranges:  pb.NewKVClient(l.conn),
		leases:  pb.NewLeaseClient(l.conn),
		watches: pb.NewWatchClient(l.conn),
		// In v3, a key is any text: prefixes with and without a leading slash are two networks. The
		// user selects one.
		config:  path.Join(o.Prefix, "config"),
		subnets: path.Join(o.Prefix, "subnets") + "/",
		// Each endpoint has its own time limit.
		timeout: answerTimeout * time.Duration(len(l.endpoints.All)+1),
		poll:    pollTime,
		page:    pageSize,
	}
	r.life, r.end = context.WithCancel(context.Background())
	return r, nil
}

// Close closes all connections. Calls in progress fail.
func (r *Registry) Close() {
	r.mu.Lock()
	r.end() // no stream is opened after this
	r.mu.Unlock()
	r.link.close()
	r.streams.Wait()
}

// Reconnect closes all connections; their calls fail. Call it when the host has another address.
func (r *Registry) Reconnect() { r.link.conns.CloseAll() }

// ConfigKey returns the key of the network config.
func (r *Registry) ConfigKey() string { return r.config }

// Config implements registry.Registry.
func (r *Registry) Config(ctx context.Context) ([]byte, error) {
	raw, _, err := r.ReadConfig(ctx)
	return raw, err
}

// ReadConfig implements registry.Registry. It reports an etcd without v3 API. It is called now and
// then, and checks the TLS files each time.
func (r *Registry) ReadConfig(ctx context.Context) ([]byte, uint64, error) {
	r.link.files.Check()
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	req := &pb.RangeRequest{Key: []byte(r.config), Limit: 1}
	resp, err := r.get(ctx, answerTimeout, req)
	size, isLong := tooLong(err)
	if isLong {
		req.KeysOnly = true
		resp, err = r.get(ctx, answerTimeout, req)
	}
	switch {
	case err != nil:
		return nil, 0, fmt.Errorf("read %s: %w", r.config, err)
	case len(resp.Kvs) == 0:
		return nil, 0, fmt.Errorf("%w at %s", registry.ErrNoConfig, r.config)
	}
	kv := resp.Kvs[0]
	if !isLong {
		size = int64(len(kv.Value))
	}
	if size > registry.MaxValue {
		return nil, uint64(kv.ModRevision), fmt.Errorf("%s: %w", r.config, registry.LongConfig(size))
	}
	return kv.Value, uint64(kv.ModRevision), nil
}

// List implements registry.Registry. It reports whether a lease expires, but not when: that needs a
// request for each lease, and only the owner needs to know. Expires of an expiring lease is the
// time of the listing.
func (r *Registry) List(ctx context.Context) (registry.Listing, error) {
	ctx, cancel := context.WithTimeout(ctx, max(listTimeout, r.timeout))
	defer cancel()
	l, err := r.list(ctx)
	for tries := 1; tries < 3 && refused(err, rpctypes.ErrCompacted); tries++ {
		l, err = r.list(ctx) // history was compacted between two pages
	}
	if err != nil {
		return registry.Listing{}, fmt.Errorf("list %s: %w", r.subnets, err)
	}
	return l, nil
}

func (r *Registry) list(ctx context.Context) (registry.Listing, error) {
	now := time.Now()
	var l registry.Listing
	index, err := r.walk(ctx, r.subnets, client.GetPrefixRangeEnd(r.subnets), r.page, func(kv entry, count int64) bool {
		if l.Leases == nil {
			l.Leases = make([]lease.Lease, 0, max(0, min(count, maxPrealloc)))
		}
		l.Add(r.content(kv, now).Event())
		return true
	})
	l.Index = index
	return l, err
}

// Get implements registry.Registry.
func (r *Registry) Get(ctx context.Context, subnets lease.Subnets) (registry.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	now := time.Now()
	found, revision, err := r.holder(ctx, subnets)
	if err != nil {
		return registry.Event{}, fmt.Errorf("read lease %s: %w", subnets, err)
	}
	if found.KeyValue == nil {
		return registry.Event{Lease: lease.Lease{Subnets: subnets, Revision: revision}, Deleted: true}, nil
	}
	// The time left is etcd's, the clock is this host's, so their clocks need not agree.
	expires := now
	if id := found.Lease; id != 0 {
		left, err := r.timeToLive(ctx, id, false)
		if err != nil {
			return registry.Event{}, fmt.Errorf("read lease %s: its time to live: %w", subnets, err)
		}
		expires = now.Add(time.Duration(max(0, left.TTL)) * time.Second)
	}
	return r.content(found, expires).Event(), nil
}

// holder returns what the key of subnets holds or, if there is no such key, another lease with
// the same IPv4 subnet, and the revision of the store. There may be neither.
func (r *Registry) holder(ctx context.Context, subnets lease.Subnets) (found entry, revision uint64, err error) {
	key, plain := r.key(subnets), r.key(lease.SubnetsOf(subnets.V4()))
	revision, err = r.walk(ctx, plain, tailsEnd(plain), tailPage, func(kv entry, _ int64) bool {
		if string(kv.Key) == key {
			found = kv
			return false
		}
		if ev := r.content(kv, time.Time{}).Event(); found.KeyValue == nil && ev.Invalid == nil && ev.Lease.Subnets.V4() == subnets.V4() {
			found = kv
		}
		return true
	})
	return found, revision, err
}

func (r *Registry) key(subnets lease.Subnets) string { return r.subnets + lease.Key(subnets) }

// The keys of leases with the same IPv4 subnet and different IPv6 subnets are the key without an
// IPv6 subnet, and those that continue with "&": from tails to tailsEnd.
func tails(key string) string    { return key + "&" }
func tailsEnd(key string) string { return key + "'" }

// content converts a key. expires is for one with an etcd lease; one without is a reservation.
func (r *Registry) content(kv entry, expires time.Time) registry.Entry {
	e := registry.Entry{
		Key: string(bytes.TrimPrefix(kv.Key, []byte(r.subnets))), Value: kv.Value,
		Revision: uint64(kv.ModRevision), Created: uint64(kv.CreateRevision),
	}
	if kv.long > 0 {
		e.Err = lease.LongValue(kv.long)
	}
	if kv.Lease != 0 {
		e.Expires = expires
	}
	return e
}

// errNoHeader means that something else than etcd has answered.
var errNoHeader = errors.New("answer is not one of etcd's: it has no header")

// errDisorder means that keys were not in order.
var errDisorder = errors.New("answer is not one of etcd's: its keys are not in order")
