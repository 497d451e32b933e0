package store

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"testing"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/memory"
)

// client is a Client that answers from memory or returns an error.
type client struct {
	*memory.Registry
	err error
}

func (*client) ConfigKey() string { return "/coreos.com/network/config" }
func (*client) Reconnect()        {}
func (*client) Close()            {}

func (c *client) Get(ctx context.Context, subnets lease.Subnets) (registry.Event, error) {
	if c.err != nil {
		return registry.Event{}, c.err
	}
	return c.Registry.Get(ctx, subnets)
}

// TestStatsCountCalls: calls are counted by method and result. A call whose caller has gone is not
// counted.
func TestStatsCountCalls(t *testing.T) {
	c := &client{Registry: memory.New()}
	log := slog.New(slog.DiscardHandler)
	r := Registry{Client: c, API: APIv3, conditions: condition.NewList(log), stats: &stats{calls: map[Call]uint64{}}}
	want := map[Call]uint64{}
	counted := func(op Op, result Result) {
		t.Helper()
		want[Call{op, result}]++
		if got := r.Stats().Calls; !maps.Equal(got, want) {
			t.Errorf("calls are %v, want %v", got, want)
		}
	}
	ctx, subnet := t.Context(), lease.SubnetsOf(netip.MustParsePrefix("10.42.1.0/24"))
	attrs := lease.Attrs{PublicIP: netip.MustParseAddr("192.0.2.1"), BackendType: "vxlan"}
	r.Config(ctx)
	counted(OpConfig, Done) // not found
	r.List(ctx)
	counted(OpList, Done)
	first, _ := r.Create(ctx, subnet, attrs, time.Hour)
	counted(OpCreate, Done)
	r.Create(ctx, subnet, attrs, time.Hour)
	counted(OpCreate, Conflict)
	r.Watch(ctx, 0)
	counted(OpWatch, Done)
	again, _ := r.Update(ctx, first, attrs, time.Hour)
	counted(OpUpdate, Done)
	r.Update(ctx, first, attrs, time.Hour)
	counted(OpUpdate, Conflict)
	r.Release(ctx, again)
	counted(OpRelease, Done)
	for err, result := range map[error]Result{registry.ErrDenied: Denied, registry.ErrLogin: Denied, errors.New("no answer"): Failed} {
		c.err = err
		r.Get(ctx, subnet)
		counted(OpGet, result)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	r.Get(gone, subnet)
	c.err = nil
	r.Get(ctx, subnet)
	counted(OpGet, Done)
}
