package etcdv3

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// SetPoll shortens the wait of a quiet watch, which is longer than a test should take.
func (r *Registry) SetPoll(d time.Duration) { r.poll = d }

// SetPage sets the number of keys per page of a listing.
func (r *Registry) SetPage(n int64) { r.page = n }

// AvoidTime is how long a failed endpoint is not used.
const AvoidTime = avoidTime

// SetRead makes the registry call f before each read.
func (r *Registry) SetRead(f func(*pb.RangeRequest)) {
	r.ranges = reads{r.ranges, f, func(*pb.RangeResponse) {}}
}

// SetAnswer makes the registry call f with each answer.
func (r *Registry) SetAnswer(f func(*pb.RangeResponse)) {
	r.ranges = reads{r.ranges, func(*pb.RangeRequest) {}, f}
}

type reads struct {
	pb.KVClient
	before func(*pb.RangeRequest)
	after  func(*pb.RangeResponse) // if there is no error
}

func (r reads) Range(ctx context.Context, req *pb.RangeRequest, opts ...grpc.CallOption) (*pb.RangeResponse, error) {
	r.before(req)
	resp, err := r.KVClient.Range(ctx, req, opts...)
	if err == nil {
		r.after(resp)
	}
	return resp, err
}

// DropToken makes the next request get a new token.
func (r *Registry) DropToken() {
	<-r.link.token
	r.link.token <- token{}
}
