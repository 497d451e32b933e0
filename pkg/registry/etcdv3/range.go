package etcdv3

import (
	"bytes"
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"flanneld/pkg/registry"
)

const (
	// maxMessage bounds an answer: a page of leases is below 1 MB.
	maxMessage = 4 << 20
	// maxEntry bounds what a key and its value take in an answer; it is the limit of one key,
	// and of several in proportion.
	maxEntry = registry.MaxValue + 4<<10
	// maxKey bounds an answer that is one key without its value. There is no other way to
	// what comes behind it, and none is longer than a request of etcd's may be.
	maxKey = 64 << 20
)

// entry is a key as etcd holds it.
type entry struct {
	*mvccpb.KeyValue
	long int64 // about how many bytes the value has, if it was too long to be read; else 0
}

// get reads keys as the whole cluster knows them, not only the member asked. An answer for a
// few keys is not to be longer than so many leases can be: see tooLong.
func (r *Registry) get(ctx context.Context, limit time.Duration, req *pb.RangeRequest) (resp *pb.RangeResponse, err error) {
	most := maxMessage
	switch {
	case req.KeysOnly:
		most = maxKey
	case req.Limit > 0 && req.Limit < maxMessage/maxEntry:
		most = int(req.Limit) * maxEntry
	}
	err = r.link.read(ctx, limit, func(ctx context.Context) (err error) {
		resp, err = r.ranges.Range(ctx, req, grpc.MaxCallRecvMsgSize(most))
		if err == nil && resp.Header == nil {
			return errNoHeader
		}
		return err
	})
	return resp, err
}

// tooLong reports whether an error is that an answer was longer than it may be, and how long.
// gRPC says so of one of which it reads no more than that.
func tooLong(err error) (size int64, is bool) {
	code, text := facts(err)
	what, numbers, cut := strings.Cut(text, "(")
	if code != codes.ResourceExhausted || !cut || !strings.HasPrefix(what, "grpc: ") || !strings.Contains(what, "larger than max") {
		return 0, false // etcd has its own reasons for this code
	}
	digits, _, _ := strings.Cut(numbers, " ")
	size, err = strconv.ParseInt(digits, 10, 64)
	return size, err == nil
}

// walk calls each with the keys from one to another, as they are at one revision, until it
// returns false; count is how many there are in all. They are read page by page: the next page
// is on its way while one is looked at, and no more of what etcd answers is held than those.
//
// Somebody may keep huge values there. Then pages become smaller, down to one key, of which
// only the name is read if its value is too long; and larger again behind it.
func (r *Registry) walk(ctx context.Context, from, to string, most int64, each func(kv entry, count int64) bool) (revision uint64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req := &pb.RangeRequest{Key: []byte(from), RangeEnd: []byte(to), Limit: most}
	var long int64 // of the next key: its value is so long
	for next := r.ask(ctx, req); ; {
		p := <-next
		if size, is := tooLong(p.err); is && !req.KeysOnly {
			again := *req
			if req.Revision == 0 { // what is read again must be what was too long
				now, err := r.get(ctx, pageTimeout, &pb.RangeRequest{Key: req.Key, CountOnly: true})
				if err != nil {
					return 0, err
				}
				again.Revision = now.Header.Revision
			}
			if again.Limit = max(1, req.Limit/8); req.Limit == 1 && req.Revision > 0 {
				again.KeysOnly, long = true, size
			}
			req = &again
			next = r.ask(ctx, req)
			continue
		}
		if p.err != nil {
			return 0, p.err
		}
		if !ascend(req.Key, p.Kvs) { // there might be no end of them
			return 0, errDisorder
		}
		revision = uint64(p.Header.Revision)
		if req.Revision > 0 {
			revision = uint64(req.Revision)
		}
		more := p.More && len(p.Kvs) > 0
		was := long
		if more {
			again := &pb.RangeRequest{RangeEnd: req.RangeEnd, Revision: int64(revision), Limit: 1}
			again.Key = append(slices.Clone(p.Kvs[len(p.Kvs)-1].Key), 0)
			if long = 0; !req.KeysOnly {
				again.Limit = min(2*req.Limit, most)
			}
			req = again
			next = r.ask(ctx, req)
		}
		for _, kv := range p.Kvs {
			if !each(entry{kv, was}, p.Count) {
				return revision, nil
			}
		}
		if !more {
			return revision, nil
		}
	}
}

// ascend reports whether keys are in order, and none is before the one that was asked for.
func ascend(from []byte, kvs []*mvccpb.KeyValue) bool {
	for _, kv := range kvs {
		if bytes.Compare(kv.Key, from) < 0 {
			return false
		}
		from = append(slices.Clone(kv.Key), 0)
	}
	return true
}

type page struct {
	*pb.RangeResponse
	err error
}

// ask has a page come.
func (r *Registry) ask(ctx context.Context, req *pb.RangeRequest) <-chan page {
	came := make(chan page, 1)
	go func() {
		resp, err := r.get(ctx, pageTimeout, req)
		came <- page{resp, err}
	}()
	return came
}
