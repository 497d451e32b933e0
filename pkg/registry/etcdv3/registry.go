// Package etcdv3 is the registry kept in etcd's v3 API, as flannel since 0.18
// keeps it: <prefix>/config and <prefix>/subnets/10.42.7.0-24, the latter
// attached to etcd leases of 24 hours.
//
// It knows keys, revisions, etcd leases and etcd's errors; it logs nothing and
// repeats only what cannot have been done twice, because only the caller knows
// what is urgent. It speaks to etcd by the official API and key operations, but
// on a connection of its own: the official client asks for a password before
// it can be had, waits without end for an etcd that is away, and mends a broken
// watch in silence, where a store may have become another one.
//
// Invariant: every request is bounded in time, so that an etcd which accepts
// connections and never answers looks like one that is away; the watch index
// never moves past an event that was not delivered; and only an etcd lease that
// was granted by the very call is ever revoked.
package etcdv3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	client "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/grpclog"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcd"
)

const (
	// answerTimeout is how long one endpoint may take for its answer.
	answerTimeout = 5 * time.Second
	// A listing, which may be megabytes on a slow line, is read by pages.
	listTimeout = 30 * time.Second
	pageTimeout = 10 * time.Second
	pageSize    = 2000
	// mostExpected bounds the room that is made on etcd's word alone.
	mostExpected = 1 << 16
)

// Options say where etcd is and how to speak to it.
type Options = etcd.Options

// Registry is a network's part of an etcd v3 store.
type Registry struct {
	link    *link
	kv      client.KV
	leases  pb.LeaseClient
	watches pb.WatchClient
	config  string // key of the network config
	subnets string // what the keys of leases begin with; ends in a slash
	timeout time.Duration
	poll    time.Duration
	page    int64

	life    context.Context // of streams; ends with Close
	end     context.CancelFunc
	streams sync.WaitGroup
	mu      sync.Mutex
	kept    *stream // of the last Watch, for the next one
}

var _ registry.Registry = (*Registry)(nil)

// gRPC prints to stderr what every call tells its caller anyway. Its logger
// is the process's, and may only be set before gRPC is used.
func init() {
	if os.Getenv("GRPC_GO_LOG_SEVERITY_LEVEL") == "" {
		grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	}
}

// New makes a Registry. It does no I/O but for reading the TLS files; errors
// name the endpoint or the flag that is wrong, and never contain a password.
func New(o Options) (*Registry, error) { return newRegistry(o, maxMessage) }

func newRegistry(o Options, maxMessage int) (*Registry, error) {
	l, err := newLink(o, maxMessage)
	if err != nil {
		return nil, err
	}
	r := &Registry{
		link:    l,
		kv:      client.NewKVFromKVClient(pb.NewKVClient(l.conn), nil),
		leases:  pb.NewLeaseClient(l.conn),
		watches: pb.NewWatchClient(l.conn),
		// To v3 a key is any text: with and without a slash at the beginning
		// are two networks, and the user says which one he means.
		config:  path.Join(o.Prefix, "config"),
		subnets: path.Join(o.Prefix, "subnets") + "/",
		// Every endpoint gets its chance.
		timeout: answerTimeout * time.Duration(len(l.endpoints.All)+1),
		poll:    pollTime,
		page:    pageSize,
	}
	r.life, r.end = context.WithCancel(context.Background())
	return r, nil
}

// Close ends all connections, and with them the calls in flight.
func (r *Registry) Close() {
	r.mu.Lock()
	r.end() // no stream begins after this
	r.mu.Unlock()
	r.link.close()
	r.streams.Wait()
}

// Reconnect drops all connections, whose calls fail. To be called when the host
// has another address.
func (r *Registry) Reconnect() { r.link.lines.Cut() }

// ConfigKey returns the key of the network config.
func (r *Registry) ConfigKey() string { return r.config }

// Config implements registry.Registry. Of an etcd that has no v3 API it says so.
func (r *Registry) Config(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	resp, err := r.get(ctx, answerTimeout, r.config)
	switch {
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", r.config, err)
	case len(resp.Kvs) == 0:
		return nil, fmt.Errorf("%w at %s", registry.ErrNoConfig, r.config)
	}
	return resp.Kvs[0].Value, nil
}

// get reads keys as the whole cluster knows them, not only the member asked.
func (r *Registry) get(ctx context.Context, limit time.Duration, key string, opts ...client.OpOption) (resp *client.GetResponse, err error) {
	err = r.link.read(ctx, limit, func(ctx context.Context) (err error) {
		resp, err = r.kv.Get(ctx, key, opts...)
		if err == nil && resp.Header == nil {
			return errNoHeader
		}
		return err
	})
	return resp, err
}

// List implements registry.Registry. It only tells whether a lease expires, not
// when: that is one more request for each, and only the owner needs to know.
// Expires of those that do is the time of the listing.
func (r *Registry) List(ctx context.Context) (registry.Listing, error) {
	ctx, cancel := context.WithTimeout(ctx, max(listTimeout, r.timeout))
	defer cancel()
	l, err := r.list(ctx)
	for tries := 1; tries < 3 && refused(err, rpctypes.ErrCompacted); tries++ {
		l, err = r.list(ctx) // history was cut off between two pages
	}
	if err != nil {
		return registry.Listing{}, fmt.Errorf("list %s: %w", r.subnets, err)
	}
	return l, nil
}

// list reads all leases, page by page, as they are at one revision. The next page is
// on its way while one is decoded, and no more of what etcd answers is held: what is
// decoded keeps nothing of it.
func (r *Registry) list(ctx context.Context) (registry.Listing, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	now := time.Now()
	size := r.page
	var l registry.Listing
	next := r.ask(ctx, r.subnets, size, 0)
	for key := r.subnets; ; {
		p := <-next
		if code, _ := facts(p.err); code == codes.ResourceExhausted && size > 1 {
			size = max(1, size/8) // somebody keeps huge values there
			next = r.ask(ctx, key, size, l.Index)
			continue
		}
		if p.err != nil {
			return registry.Listing{}, p.err
		}
		if l.Index == 0 {
			l.Index = uint64(p.Header.Revision)
			l.Leases = make([]lease.Lease, 0, max(0, min(p.Count, mostExpected)))
		}
		more := p.More && len(p.Kvs) > 0
		if more {
			key = string(p.Kvs[len(p.Kvs)-1].Key) + "\x00"
			next = r.ask(ctx, key, size, l.Index)
		}
		for _, kv := range p.Kvs {
			if ev := r.decode(kv, now); ev.Bad != nil {
				l.Bad = append(l.Bad, *ev.Bad)
			} else {
				l.Leases = append(l.Leases, ev.Lease)
			}
		}
		if !more {
			return l, nil
		}
	}
}

type page struct {
	*client.GetResponse
	err error
}

// ask has a page come, from a key on, as it was at a revision; 0: as it is.
func (r *Registry) ask(ctx context.Context, key string, size int64, revision uint64) <-chan page {
	came := make(chan page, 1)
	go func() {
		resp, err := r.get(ctx, pageTimeout, key, client.WithRange(client.GetPrefixRangeEnd(r.subnets)), client.WithLimit(size), client.WithRev(int64(revision)))
		came <- page{resp, err}
	}()
	return came
}

// Get implements registry.Registry. It finds the lease under a dual-stack key too.
func (r *Registry) Get(ctx context.Context, subnet netip.Prefix) (registry.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	now := time.Now()
	found, revision, err := r.entries(ctx, subnet)
	if err != nil {
		return registry.Event{}, fmt.Errorf("read lease %s: %w", subnet, err)
	}
	if len(found) == 0 {
		return registry.Event{Lease: lease.Lease{Subnet: subnet, Revision: revision}, Deleted: true}, nil
	}
	// The time left is etcd's word, the clock is ours: so clocks need not agree.
	expires := now
	if id := found[0].Lease; id != 0 {
		left, err := r.timeToLive(ctx, id)
		if err != nil {
			return registry.Event{}, fmt.Errorf("read lease %s: its time to live: %w", subnet, err)
		}
		expires = now.Add(time.Duration(max(0, left.TTL)) * time.Second)
	}
	return r.decode(found[0], expires), nil
}

// entries gives the keys of a subnet: the plain one, which comes first, and
// those of dual-stack hosts.
func (r *Registry) entries(ctx context.Context, subnet netip.Prefix) (found []*mvccpb.KeyValue, revision uint64, err error) {
	key := r.key(subnet)
	resp, err := r.get(ctx, answerTimeout, key, client.WithRange(tailsEnd(key)))
	if err != nil {
		return nil, 0, err
	}
	for _, kv := range resp.Kvs {
		if got, err := parseKey(r.name(kv.Key)); err == nil && got == subnet {
			found = append(found, kv)
		}
	}
	return found, uint64(resp.Header.Revision), nil
}

func (r *Registry) key(subnet netip.Prefix) string { return r.subnets + lease.Key(subnet) }

// A dual-stack host's key goes on with "&" and its IPv6 subnet: tails and
// tailsEnd are the range of all such keys.
func tails(key string) string    { return key + "&" }
func tailsEnd(key string) string { return key + "'" }

// parseKey reads the subnet from what a key has behind r.subnets. A key that goes
// deeper is none of a lease: v3 has no directories, so it says nothing of the key
// that it extends.
func parseKey(rest string) (netip.Prefix, error) {
	if strings.Contains(rest, "/") {
		return netip.Prefix{}, lease.Fault{Kind: "the key has more than one element", Detail: strconv.Quote(lease.Clip(rest))}
	}
	return lease.ParseKey(rest)
}

// name gives what a key of etcd's has behind r.subnets, in bytes of its own.
func (r *Registry) name(key []byte) string {
	return string(bytes.TrimPrefix(key, []byte(r.subnets)))
}

// decode reads a key as a lease written, or as a bad entry. expires is for a
// key with an etcd lease; one without is a reservation.
func (r *Registry) decode(kv *mvccpb.KeyValue, expires time.Time) registry.Event {
	name, revision := r.name(kv.Key), uint64(kv.ModRevision)
	subnet, err := parseKey(name)
	if err != nil {
		return registry.Event{Bad: &registry.Bad{Key: name, Revision: revision, Err: err}}
	}
	attrs, err := lease.DecodeAttrs(kv.Value)
	if err != nil {
		return registry.Event{Bad: &registry.Bad{Key: name, Subnet: subnet, Revision: revision, Err: err}}
	}
	l := lease.Lease{Subnet: subnet, Attrs: attrs, Revision: revision, Created: uint64(kv.CreateRevision)}
	if kv.Lease != 0 {
		l.Expires = expires
	}
	return registry.Event{Lease: l}
}

// errNoHeader: something answers in etcd's place.
var errNoHeader = errors.New("answer is not one of etcd's: it has no header")

// errGone is the conflict of a key that does not exist.
var errGone = fmt.Errorf("%w: its key is gone", registry.ErrConflict)
