// Package etcdv2 is the registry in etcd's v2 keys API, as in flannel up to 0.17: <prefix>/config
// and <prefix>/subnets/10.42.7.0-24.
//
// It knows keys, indexes, TTLs and etcd's error codes. It does not retry and does not log, because
// only the caller knows what is urgent.
//
// Invariant: every request has a time limit, so that an etcd which accepts connections and never
// answers looks like one that is away; and the watch index never moves past an event that was not
// delivered.
package etcdv2

import (
	"context"
	"fmt"
	"net"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	client "go.etcd.io/etcd/client/v2"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

const (
	dialTimeout = time.Second
	// answerTimeout is the time in which an endpoint must start its answer.
	answerTimeout = 5 * time.Second
)

// Registry is the part of an etcd v2 store that belongs to a network.
type Registry struct {
	client    client.Client
	keys      client.KeysAPI
	where     string // the endpoints
	transport *transport
	config    string // key of the network config
	subnets   string // key of the directory of leases
	timeout   time.Duration
	poll      time.Duration
	startTime atomic.Int64 // time in which a listing must start, as a Duration

	// suspect is set when the watch got no answer. Before the next one, probe must find out whether
	// etcd is there and has the same store.
	suspect atomic.Bool
	mu      sync.Mutex
	waiting span     // of the last watch
	line    net.Conn // its connection; nil: any connection
	quiet   span     // of the last watch without an event
}

var _ registry.Registry = (*Registry)(nil)

// New returns a Registry. It does no I/O except for reading the TLS files. Errors name the endpoint
// or the flag that is wrong, and never contain a password.
func New(o Options) (*Registry, error) {
	given, err := o.ParseEndpoints()
	if err != nil {
		return nil, err
	}
	files, err := o.Files()
	if err != nil {
		return nil, err
	}
	endpoints := newEndpoints(given.All)
	t := newTransport(endpoints, o, files)
	c, err := client.New(client.Config{
		Endpoints: endpoints.urls,
		Transport: t, // has a time limit for each request
		Username:  given.Username,
		Password:  given.Password,
	})
	if err != nil {
		return nil, fmt.Errorf("make etcd client: %w", err)
	}
	prefix := path.Join("/", o.Prefix)
	r := &Registry{
		client:    c,
		keys:      client.NewKeysAPI(c),
		where:     strings.Join(endpoints.urls, ", "),
		transport: t,
		config:    path.Join(prefix, "config"),
		subnets:   path.Join(prefix, "subnets"),
		// Each endpoint has its own time limit. Else one that is down, at the begin of the list,
		// would use up the time of each request.
		timeout: answerTimeout * time.Duration(len(endpoints.urls)+1),
		poll:    pollTime,
	}
	r.startTime.Store(int64(answerTimeout))
	t.waiting = r.noteWait
	return r, nil
}

// Close closes idle connections. Calls in progress end with their contexts.
func (r *Registry) Close() { r.transport.CloseIdleConnections() }

// Reconnect closes all connections; their calls fail. Call it when the host has another address.
func (r *Registry) Reconnect() { r.transport.conns.CloseAll() }

// ConfigKey returns the key of the network config.
func (r *Registry) ConfigKey() string { return r.config }

// Config implements registry.Registry.
func (r *Registry) Config(ctx context.Context) ([]byte, error) {
	raw, _, err := r.ReadConfig(ctx)
	return raw, err
}

// ReadConfig implements registry.Registry. It is called now and then, and checks the TLS files each
// time.
func (r *Registry) ReadConfig(ctx context.Context) ([]byte, uint64, error) {
	r.transport.files.Check()
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	resp, err := r.get(ctx, r.config)
	switch {
	case refusal(err).Code == client.ErrorCodeKeyNotFound:
		return nil, 0, fmt.Errorf("%w at %s", registry.ErrNoConfig, r.config)
	case err != nil:
		return nil, 0, fmt.Errorf("read %s: %w", r.config, r.explain(ctx, err))
	case resp.Node.Dir:
		return nil, 0, fmt.Errorf("%w: %s is a directory", registry.ErrNoConfig, r.config)
	}
	revision := resp.Node.ModifiedIndex
	if size, is := long(resp.Node.Value); is {
		return nil, revision, fmt.Errorf("%s: %w", r.config, registry.LongConfig(size))
	}
	return []byte(resp.Node.Value), revision, nil
}

// Get implements registry.Registry.
func (r *Registry) Get(ctx context.Context, subnets lease.Subnets) (registry.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	resp, err := r.get(ctx, r.key(subnets))
	if refused := refusal(err); refused.Code == client.ErrorCodeKeyNotFound {
		return registry.Event{Lease: lease.Lease{Subnets: subnets, Revision: refused.Index}, Deleted: true}, nil
	}
	if err != nil {
		return registry.Event{}, fmt.Errorf("read lease %s: %w", subnets, r.explain(ctx, err))
	}
	return content(resp.Node, time.Now()).Event(), nil
}

// get reads one key with a quorum, not only from the member that is asked.
func (r *Registry) get(ctx context.Context, key string) (*client.Response, error) {
	resp, err := r.keys.Get(ctx, key, &client.GetOptions{Quorum: true})
	if err == nil && resp.Node == nil {
		return nil, errNoNode
	}
	return resp, err
}

func (r *Registry) key(subnets lease.Subnets) string {
	return path.Join(r.subnets, lease.Key(subnets))
}
