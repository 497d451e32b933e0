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
	// maxMessage is the maximum size of a response that is not of a range. An event may have 1.5 MB,
	// unless etcd is configured otherwise.
	maxMessage = 4 << 20
	// maxPage is the maximum size of an answer. A page of leases of usual size is smaller. Huge values
	// do not fit, because gRPC and protobuf hold several copies of an answer.
	maxPage = 1 << 20
	// maxEntry is the maximum size of a key and its value in an answer for one key, and in
	// proportion for several.
	maxEntry = registry.MaxValue + 4<<10
	// maxKey is the maximum size of an answer for one key without its value. Such an answer is the
	// only way to the keys after it. No key is longer than a request of etcd may be.
	maxKey = 64 << 20
)

// entry is a key in etcd.
type entry struct {
	*mvccpb.KeyValue
	long int64 // approximate size of a value that was too long to be read; else 0
}

// get reads keys with a quorum, not only from the member that is asked. The size of an answer for a
// few keys is limited to that of so many leases; see tooLong.
func (r *Registry) get(ctx context.Context, limit time.Duration, req *pb.RangeRequest) (resp *pb.RangeResponse, err error) {
	most := maxPage
	switch {
	case req.KeysOnly:
		most = maxKey
	case req.Limit > 0 && req.Limit < maxPage/maxEntry:
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

// tooLong reports whether an error means that an answer was longer than its limit, and its length.
// gRPC does not read such an answer.
func tooLong(err error) (size int64, is bool) {
	code, text := facts(err)
	what, numbers, cut := strings.Cut(text, "(")
	if code != codes.ResourceExhausted || !cut || !strings.HasPrefix(what, "grpc: ") || !strings.Contains(what, "larger than max") {
		return 0, false // etcd uses this code for other errors
	}
	digits, _, _ := strings.Cut(numbers, " ")
	size, err = strconv.ParseInt(digits, 10, 64)
	return size, err == nil
}

// walk calls each with the keys of a range, as they are at one revision, until each returns false.
// count is the number of keys in the range. Keys are read in pages. The next page is requested
// while one is processed, and no more is held in memory than these two.
//
// If there are huge values, pages become smaller, down to one key. If its value is too long, only
// the key is read. After that, pages become larger again.
func (r *Registry) walk(ctx context.Context, from, to string, most int64, each func(kv entry, count int64) bool) (revision uint64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req := &pb.RangeRequest{Key: []byte(from), RangeEnd: []byte(to), Limit: most}
	var long int64 // size of the next key's value, which is too long
	for next := r.ask(ctx, req); ; {
		p := <-next
		if size, is := tooLong(p.err); is && !req.KeysOnly {
			again := *req
			if req.Revision == 0 { // the second reading must be of the same value
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
		if !ascend(req.Key, p.Kvs) { // else there might be no end
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

// ascend reports whether keys are in order, and none precedes the requested one.
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

// ask requests a page.
func (r *Registry) ask(ctx context.Context, req *pb.RangeRequest) <-chan page {
	came := make(chan page, 1)
	go func() {
		resp, err := r.get(ctx, pageTimeout, req)
		came <- page{resp, err}
	}()
	return came
}
