package daemon

import (
	"context"
	"net/netip"
	"sync/atomic"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// patience is the silence after which a goroutine counts as stuck. The reconciler
// looks at the kernel each minute, after another one if somebody keeps it busy; the
// lease's follower asks etcd, or tries to, after 45 s of silence, and waits up to 30 s
// for a list. A call of either takes seconds, with 20,000 peers too.
const patience = 3 * time.Minute

// watchdog knows when the goroutines that the network depends on were at work last:
// by the calls that they make, not by timers of their own, which could outlive them.
type watchdog struct {
	loop     pulse // reads and writes the kernel
	follower pulse // asks etcd, whether that answers or not
}

// pulse is when something was last seen at work.
type pulse struct{ at atomic.Pointer[time.Time] }

func (p *pulse) beat() {
	now := time.Now()
	p.at.Store(&now)
}

func (p *pulse) alive() bool { return time.Since(*p.at.Load()) < patience }

// feed tells systemd that all is well as long as it is, and often enough: every is a
// part of WatchdogSec=.
func (w *watchdog) feed(ctx context.Context, every time.Duration, tell func()) {
	w.loop.beat()
	w.follower.beat()
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if w.loop.alive() && w.follower.alive() {
				tell()
			}
		}
	}
}

// watchdogEvery is how often systemd is to be told, 0 if it does not want to be.
func watchdogEvery() time.Duration {
	limit, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		return 0 // whoever set that is not systemd
	}
	return limit / 4
}

// watched is a registry whose calls are signs of life.
type watched struct {
	registry.Registry
	life *pulse
}

func (w watched) List(ctx context.Context) (registry.Listing, error) {
	w.life.beat()
	defer w.life.beat()
	return w.Registry.List(ctx)
}

func (w watched) Get(ctx context.Context, subnet netip.Prefix) (registry.Event, error) {
	w.life.beat()
	defer w.life.beat()
	return w.Registry.Get(ctx, subnet)
}

// Watch is begun by the follower and ends by itself.
func (w watched) Watch(ctx context.Context, index uint64) ([]registry.Event, uint64, error) {
	w.life.beat()
	return w.Registry.Watch(ctx, index)
}

func (w watched) Create(ctx context.Context, subnet netip.Prefix, a lease.Attrs, ttl time.Duration) (lease.Lease, error) {
	w.life.beat()
	defer w.life.beat()
	return w.Registry.Create(ctx, subnet, a, ttl)
}

func (w watched) Update(ctx context.Context, prev lease.Lease, a lease.Attrs, ttl time.Duration) (lease.Lease, error) {
	w.life.beat()
	defer w.life.beat()
	return w.Registry.Update(ctx, prev, a, ttl)
}
