package etcdv3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	client "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// pollTime is how long a watch waits in silence before etcd is asked whether
// all is well. Some jitter is added, lest a whole cluster asks in step. A dead
// connection is noticed much earlier, by gRPC's signs of life.
const pollTime = 30 * time.Second

// mostEvents bounds what is held of events that belong together. A transaction of etcd's does
// 128 things, unless it is told otherwise.
const mostEvents = 1 << 13

const (
	// mostWaiting bounds the responses that wait to be taken, and mostGathered the events of
	// those that are taken at a time, but for the last one.
	mostWaiting  = 16
	mostGathered = 1000
)

var errSilence = errors.New("watch was quiet")

// stream is one watch of etcd's. It outlives the call of Watch that began it:
// the next one, if it goes on from the same index, takes it up again.
type stream struct {
	index   uint64 // what came until here was handed out
	batches chan batch
	err     error // why batches was closed
	cancel  context.CancelFunc
}

// batch is what happened up to an index.
type batch struct {
	events []registry.Event
	index  uint64
}

// Watch implements registry.Registry. What one etcd transaction did comes together.
// Of a lease written it only tells whether it expires, as List does.
func (r *Registry) Watch(ctx context.Context, index uint64) ([]registry.Event, uint64, error) {
	events, next, err := r.watch(ctx, index)
	switch {
	case ctx.Err() != nil && err != nil:
		return nil, index, ctx.Err()
	case err != nil:
		return nil, index, fmt.Errorf("watch %s: %w", r.subnets, err)
	}
	return events, next, nil
}

func (r *Registry) watch(ctx context.Context, index uint64) ([]registry.Event, uint64, error) {
	s, err := r.stream(ctx, index)
	if err != nil {
		return nil, index, err
	}
	events, err := r.next(ctx, s)
	if errors.Is(err, errSilence) {
		err = r.probe(ctx, s.index)
	}
	if err != nil && ctx.Err() == nil {
		s.cancel()
		return nil, index, r.link.explain(err)
	}
	next := s.index // read first: who takes the stream up changes it
	r.keep(s)
	return events, next, err
}

// stream returns a stream that goes on after index: the kept one, or a new one.
func (r *Registry) stream(ctx context.Context, index uint64) (*stream, error) {
	r.mu.Lock()
	s := r.kept
	r.kept = nil
	r.mu.Unlock()
	if s != nil && s.index == index {
		return s, nil
	}
	if s != nil {
		s.cancel()
	}
	var now uint64
	err := r.link.read(ctx, answerTimeout, func(ctx context.Context) (err error) {
		s, now, err = r.open(ctx, index)
		return err
	})
	if err == nil && now < index {
		// The member may be behind the others, or the store another one.
		if err = r.probe(ctx, index); err != nil {
			s.cancel()
		}
	}
	return s, err
}

// keep leaves a stream to the next Watch.
func (r *Registry) keep(s *stream) {
	r.mu.Lock()
	other := r.kept
	r.kept = s
	r.mu.Unlock()
	if other != nil { // of a concurrent Watch
		other.cancel()
	}
}

// open begins a stream, within the time that ctx leaves, and tells the
// revision of the member that serves it.
func (r *Registry) open(ctx context.Context, index uint64) (*stream, uint64, error) {
	// The stream itself has no limit, but what else ctx has.
	md, _ := metadata.FromOutgoingContext(ctx)
	life, cancel := context.WithCancel(metadata.NewOutgoingContext(r.life, md))
	inTime := context.AfterFunc(ctx, cancel)
	wire, first, err := r.begin(life, index)
	if !inTime() {
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		return nil, 0, err
	}
	s := &stream{index: index, batches: make(chan batch, mostWaiting), cancel: cancel}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.life.Err() != nil { // closed meanwhile
		cancel()
		return nil, 0, r.life.Err()
	}
	r.streams.Go(func() {
		defer cancel()
		s.err = r.receive(life, wire, s.batches)
		close(s.batches)
	})
	return s, uint64(first.GetHeader().GetRevision()), nil
}

// begin asks for the watch and waits until etcd has made it.
func (r *Registry) begin(ctx context.Context, index uint64) (pb.Watch_WatchClient, *pb.WatchResponse, error) {
	wire, err := r.watches.Watch(ctx)
	if err != nil {
		return nil, nil, err
	}
	err = wire.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key:           []byte(r.subnets),
		RangeEnd:      []byte(client.GetPrefixRangeEnd(r.subnets)),
		StartRevision: int64(index) + 1,
		// While the leases are quiet, how far etcd is: so that a watch which
		// is made anew does not ask for history that is gone.
		ProgressNotify: true,
		Fragment:       true, // or many huge values would make one huge message
	}}})
	if err != nil && !errors.Is(err, io.EOF) { // whose cause Recv tells
		return nil, nil, err
	}
	first, err := wire.Recv()
	if err == nil {
		err = cancelled(first)
	}
	if err == nil && (!first.Created || first.Header == nil) {
		err = errNoHeader
	}
	return wire, first, err
}

// cancelled gives the error of a response that ends the watch.
func cancelled(resp *pb.WatchResponse) error {
	switch {
	case resp.CompactRevision != 0:
		return fmt.Errorf("events before %d are forgotten: %w", resp.CompactRevision, registry.ErrHistoryLost)
	case !resp.Canceled:
		return nil
	}
	if _, text, ok := strings.Cut(resp.CancelReason, "desc = "); ok {
		return status.Error(codes.FailedPrecondition, text) // "rpc error: code = … desc = etcdserver: …"
	}
	return status.Error(codes.FailedPrecondition, "etcd ended the watch: "+resp.CancelReason)
}

// receive reads what a stream brings until that ends. Fragments of one
// response are put together, since the index must not stop between them.
func (r *Registry) receive(life context.Context, wire pb.Watch_WatchClient, batches chan<- batch) error {
	var b batch
	for {
		resp, err := wire.Recv()
		if err == nil {
			err = cancelled(resp)
		}
		size, isLong := tooLong(err)
		switch {
		case isLong:
			// One event may be longer than that, and would be each time. A listing does without.
			return fmt.Errorf("an event is too long to be read: %d bytes: %w", size, registry.ErrHistoryLost)
		case err != nil:
			return err
		case resp.Fragment && len(resp.Events) == 0: // there might be no end of them
			return errNoHeader
		case len(b.events) > mostEvents:
			return fmt.Errorf("more than %d events come as one: %w", mostEvents, registry.ErrHistoryLost)
		}
		for _, ev := range resp.Events {
			if ev.Kv == nil {
				return errNoHeader
			}
			b.events = append(b.events, r.event(ev))
			b.index = uint64(ev.Kv.ModRevision)
		}
		if resp.Fragment {
			continue
		}
		if len(b.events) == 0 {
			// Nothing happened until there. A response with events may be
			// of a later revision than those, if more of them are to come.
			b.index = uint64(resp.GetHeader().GetRevision())
		}
		select {
		case batches <- b:
			b = batch{}
		case <-life.Done():
			return life.Err()
		}
	}
}

// next waits for what comes next and moves the stream's index past it.
// errSilence means that nothing came for a while.
func (r *Registry) next(ctx context.Context, s *stream) ([]registry.Event, error) {
	silence := time.NewTimer(r.poll + rand.N(r.poll/2))
	defer silence.Stop()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-silence.C:
		return nil, errSilence
	case b, ok := <-s.batches:
		if !ok {
			return nil, s.err
		}
		s.index = max(s.index, b.index)
		return s.gather(b.events), nil
	}
}

// gather adds to events those that have come, too: whoever takes them slowly takes many at a
// time.
func (s *stream) gather(events []registry.Event) []registry.Event {
	for len(events) < mostGathered {
		select {
		case b, ok := <-s.batches:
			if !ok {
				return events // why, the next call says
			}
			s.index = max(s.index, b.index)
			events = append(events, b.events...)
		default:
			return events
		}
	}
	return events
}

// probe finds out whether etcd is there and still the one that index is from.
// The read needs a quorum. An etcd that was wiped or restored counts again
// from below: waiting there for the old index would be waiting in vain.
func (r *Registry) probe(ctx context.Context, index uint64) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	resp, err := r.get(ctx, answerTimeout, &pb.RangeRequest{Key: []byte(r.config), CountOnly: true})
	if err != nil {
		return err
	}
	if now := uint64(resp.Header.Revision); now < index {
		return fmt.Errorf("etcd's revision went back from %d to %d: %w", index, now, registry.ErrRevisionRollback)
	}
	return nil
}

// event reads one event of etcd's.
func (r *Registry) event(ev *mvccpb.Event) registry.Event {
	if ev.Type != mvccpb.DELETE {
		return r.decode(entry{KeyValue: ev.Kv}, time.Now())
	}
	name, revision := r.name(ev.Kv.Key), uint64(ev.Kv.ModRevision)
	subnets, err := parseKey(name)
	if err != nil {
		return registry.Event{Deleted: true, Bad: &registry.Bad{Key: registry.ShortKey(name), Revision: revision, Err: err}}
	}
	return registry.Event{Deleted: true, Lease: lease.Lease{Subnets: subnets, Revision: revision}}
}
