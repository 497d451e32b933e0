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

	"flanneld/pkg/registry"
)

// pollTime is the time without events after which a watch checks etcd. Jitter prevents that all
// hosts do so at the same time. A dead connection is noticed earlier, by gRPC's pings.
const pollTime = 30 * time.Second

// maxEvents is the maximum number of events that belong together. A transaction of etcd has 128
// operations unless configured otherwise.
const maxEvents = 1 << 13

const (
	// maxBatches is the maximum number of responses that wait to be handled. maxCollected is the
	// maximum number of events of those that are handled at once, without the last one.
	maxBatches   = 16
	maxCollected = 1000
)

var errSilence = errors.New("watch was quiet")

// stream is one watch of etcd. It outlives the call of Watch that opened it: the next call uses it
// if it continues at the same index.
type stream struct {
	index   uint64 // events up to this index were delivered
	batches chan batch
	err     error // why batches was closed
	cancel  context.CancelFunc
}

// batch is the events up to an index.
type batch struct {
	events []registry.Event
	index  uint64
}

// Watch implements registry.Registry. The events of one etcd transaction are returned together. As
// with List, a lease only tells whether it expires.
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
	next := s.index // read before keep: the next Watch changes it
	r.keep(s)
	return events, next, err
}

// stream returns a stream that continues after index: the kept one or a new one.
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
		// The member may be behind the others, or the store may be another one.
		if err = r.probe(ctx, index); err != nil {
			s.cancel()
		}
	}
	return s, err
}

// keep keeps a stream for the next Watch.
func (r *Registry) keep(s *stream) {
	r.mu.Lock()
	other := r.kept
	r.kept = s
	r.mu.Unlock()
	if other != nil { // kept by a concurrent Watch
		other.cancel()
	}
}

// open opens a stream within the time limit of ctx and returns the revision of the member that
// serves it.
func (r *Registry) open(ctx context.Context, index uint64) (*stream, uint64, error) {
	// The stream itself has no time limit, but all other values of ctx.
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
	s := &stream{index: index, batches: make(chan batch, maxBatches), cancel: cancel}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.life.Err() != nil { // closed in the meantime
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

// begin requests the watch and waits until etcd has created it.
func (r *Registry) begin(ctx context.Context, index uint64) (pb.Watch_WatchClient, *pb.WatchResponse, error) {
	wire, err := r.watches.Watch(ctx)
	if err != nil {
		return nil, nil, err
	}
	err = wire.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key:           []byte(r.subnets),
		RangeEnd:      []byte(client.GetPrefixRangeEnd(r.subnets)),
		StartRevision: int64(index) + 1,
		// Progress notifications tell etcd's revision while the leases are quiet, so that a new
		// watch does not need history that is gone.
		ProgressNotify: true,
		Fragment:       true, // else many huge values would make one huge message
	}}})
	if err != nil && !errors.Is(err, io.EOF) { // Recv returns the cause of EOF
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

// cancelled returns the error of a response that ends the watch, or nil.
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

// receive reads responses until the stream ends. It joins the fragments of a response, because the
// index must not stop between them.
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
			// One event may be longer than the limit, and would be so again. A listing works in
			// spite of that.
			return fmt.Errorf("an event is too long to be read: %d bytes: %w", size, registry.ErrHistoryLost)
		case err != nil:
			return err
		case resp.Fragment && len(resp.Events) == 0: // else there might be no end
			return errNoHeader
		case len(b.events) > maxEvents:
			return fmt.Errorf("more than %d events come as one: %w", maxEvents, registry.ErrHistoryLost)
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
			// Nothing happened until this revision. A response with events may have a later
			// revision than its events if more of them follow.
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

// next waits for the next batch and moves the stream's index past it. errSilence means that there
// was none in the given time.
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

// gather adds the events that have arrived already: a slow caller gets many at once.
func (s *stream) gather(events []registry.Event) []registry.Event {
	for len(events) < maxCollected {
		select {
		case b, ok := <-s.batches:
			if !ok {
				return events // the next call returns the error
			}
			s.index = max(s.index, b.index)
			events = append(events, b.events...)
		default:
			return events
		}
	}
	return events
}

// probe finds out whether etcd is there and has the store that index is from. The read needs a
// quorum. An etcd that was wiped or restored counts from a lower index, and waiting there for the
// old index would never end.
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

// event converts one event of etcd.
func (r *Registry) event(ev *mvccpb.Event) registry.Event {
	e := r.content(entry{KeyValue: ev.Kv}, time.Now())
	if ev.Type == mvccpb.DELETE {
		return e.Deletion()
	}
	return e.Event()
}
