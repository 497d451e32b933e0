package etcdv2

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path"
	"strings"
	"time"

	client "go.etcd.io/etcd/client/v2"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// pollTime is the time limit of a long-poll, after which it is repeated, so that a dead connection
// is noticed. Jitter prevents that all hosts poll at the same time after a restart of etcd.
const pollTime = 30 * time.Second

// span is a range of indexes in which nothing has happened to the leases.
type span struct{ from, to uint64 }

// Watch implements registry.Registry. Each etcd event is one request.
func (r *Registry) Watch(ctx context.Context, index uint64) ([]registry.Event, uint64, error) {
	if r.suspect.Load() {
		if err := r.probe(ctx, index); err != nil {
			return nil, index, err
		}
		r.suspect.Store(false)
	}
	resp, err := r.next(ctx, index)
	if refusal(err).Code == client.ErrorCodeEventIndexCleared {
		// etcd keeps the last 1000 events of all its users. The leases may have been quiet for much
		// longer.
		if to := r.quietUntil(index); to > index {
			index = to
			resp, err = r.next(ctx, index)
		}
	}
	switch {
	case ctx.Err() != nil:
		return nil, index, ctx.Err()
	case errors.Is(err, errSilence):
		r.suspect.Store(true)
		return nil, index, nil
	case refusal(err).Code == client.ErrorCodeEventIndexCleared:
		return nil, index, fmt.Errorf("watch %s after index %d: %w", r.subnets, index, registry.ErrHistoryLost)
	case err != nil:
		r.suspect.Store(true)
		return nil, index, fmt.Errorf("watch %s: %w", r.subnets, r.explain(ctx, err))
	}
	return r.events(resp)
}

// next waits for the first event after index. errSilence means that there was none in the given
// time.
func (r *Registry) next(ctx context.Context, index uint64) (resp *client.Response, err error) {
	limit := r.poll + rand.N(r.poll/2)
	poll, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	defer func() {
		// The client dereferences the node of an answer without a check. An answer of another
		// server must not end the daemon.
		if recover() != nil {
			resp, err = nil, errNoNode
		}
	}()
	start := time.Now()
	resp, err = r.keys.Watcher(r.subnets, &client.WatcherOptions{AfterIndex: index, Recursive: true}).Next(poll)
	if err == nil {
		return resp, nil
	}
	r.endWait(index, poll.Err() != nil)
	if poll.Err() != nil {
		return nil, errSilence
	}
	if contains(err, errAnother) {
		return nil, errSilence // callers check the store after a silence
	}
	// A proxy may end a long-poll, but not at once.
	if contains(err, errNoEvent) && time.Since(start) > time.Second {
		return nil, errSilence
	}
	return nil, err
}

// probe finds out whether etcd is there and has the store that index is from. The read needs a
// quorum, so a member that is cut off from the others fails; and it makes the client use an
// endpoint that answers. An etcd that was wiped or restored counts from a lower index, and waiting
// there for the old index would never end.
func (r *Registry) probe(ctx context.Context, index uint64) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	resp, err := r.get(ctx, r.config)
	refused := refusal(err)
	now := refused.Index
	switch {
	case err == nil:
		now = resp.Index
	case refused.Code != client.ErrorCodeKeyNotFound:
		return fmt.Errorf("watch %s: %w", r.subnets, r.explain(ctx, err))
	}
	if now < index {
		return fmt.Errorf("watch %s: etcd's index went back from %d to %d: %w", r.subnets, index, now, registry.ErrRevisionRollback)
	}
	return nil
}

// noteWait is called when a watch after index from starts to wait at store index to. What happened
// in between is still on its way. Between two watches, nobody listens: if the connection is another
// one, or the store has not reached from, the store may have been wiped meanwhile.
func (r *Registry) noteWait(from, to uint64, on net.Conn) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if to < from || r.line != nil && r.line != on {
		return errAnother
	}
	r.waiting, r.line = span{from, to}, on
	return nil
}

// endWait is called when a watch ends without an event, or got nothing for its whole time: quiet. The
// next one may be on any connection. The caller knows that it may have missed an event.
func (r *Registry) endWait(index uint64, quiet bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.line = nil
	if quiet && r.waiting.from == index {
		r.quiet = r.waiting
	}
}

// quietUntil returns the index up to which nothing happened after index, or 0 if that is unknown.
func (r *Registry) quietUntil(index uint64) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.quiet.from != index {
		return 0
	}
	return r.quiet.to
}

// events converts one answer of the watch to events.
func (r *Registry) events(resp *client.Response) ([]registry.Event, uint64, error) {
	n := resp.Node
	index := n.ModifiedIndex
	gone := resp.Action == "delete" || resp.Action == "expire" || resp.Action == "compareAndDelete"
	rest, under := strings.CutPrefix(n.Key, r.subnets+"/")
	switch {
	case !under && gone:
		// The directory of leases or one above it: one event for all leases.
		return nil, index, fmt.Errorf("%s was deleted: %w", n.Key, registry.ErrHistoryLost)
	case !under:
		return nil, index, nil // the directory was created
	}
	if entry, _, nested := strings.Cut(rest, "/"); nested {
		if gone {
			return nil, index, nil // the directory around it is an invalid entry already
		}
		n = &client.Node{Key: path.Join(r.subnets, entry), Dir: true, ModifiedIndex: index}
	}
	e := content(n, time.Now())
	if gone {
		return []registry.Event{e.Deletion()}, index, nil
	}
	return []registry.Event{e.Event()}, index, nil
}

// content converts a node.
func content(n *client.Node, now time.Time) registry.Entry {
	e := registry.Entry{Key: path.Base(n.Key), Revision: n.ModifiedIndex, Created: n.CreatedIndex}
	if size, is := long(n.Value); is {
		e.Err = lease.LongValue(size)
	} else if n.Dir {
		e.Err = lease.Fault{Kind: "key is a directory"}
	} else {
		e.Value = []byte(n.Value)
	}
	// The time left is etcd's, the clock is this host's, so their clocks need not agree.
	if n.TTL > 0 || n.Expiration != nil {
		e.Expires = now.Add(n.TTLDuration())
	}
	return e
}
