package systemd

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"flanneld/pkg/condition"
)

// heartbeatTimeout is the time without a heartbeat after which a goroutine counts as stuck. The
// reconciler and the uplink watcher read the kernel each minute, with up to another minute of
// pauses while events keep coming, and need seconds for it, also with 20,000 peers; the lease
// follower has a heartbeat each minute.
const heartbeatTimeout = 3 * time.Minute

// Heartbeat is the last time at which an essential goroutine made progress. The goroutine itself
// records it, because a separate timer could outlive it.
type Heartbeat struct{ at atomic.Pointer[time.Time] }

// Record records progress.
func (h *Heartbeat) Record() {
	now := time.Now()
	h.at.Store(&now)
}

// Watchdog notifies systemd's watchdog until ctx ends, as long as all heartbeats are recent. It
// returns at once if the watchdog is not enabled.
func Watchdog(ctx context.Context, conditions *condition.List, heartbeats ...*Heartbeat) {
	if every := watchdogInterval(); every > 0 {
		runWatchdog(ctx, every, heartbeats, func() { notifyWatchdog(conditions) })
	}
}

// runWatchdog calls notify in intervals of every, as long as all heartbeats are recent.
func runWatchdog(ctx context.Context, every time.Duration, heartbeats []*Heartbeat, notify func()) {
	for _, h := range heartbeats {
		h.Record()
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			stuck := func(h *Heartbeat) bool { return time.Since(*h.at.Load()) >= heartbeatTimeout }
			if !slices.ContainsFunc(heartbeats, stuck) {
				notify()
			}
		}
	}
}

// watchdogInterval returns the time between notifications, 0 if the watchdog is not enabled.
func watchdogInterval() time.Duration {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0 // the variable was not set by systemd
	}
	return limit / 4
}
