package systemd

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"flanneld/pkg/condition"
)

// heartbeatTimeout is the silence after which a goroutine counts as stuck. The reconciler and the uplink's
// watcher look at the kernel each minute, after another one if somebody keeps them busy, which
// takes seconds, with 20,000 peers too; the lease's follower says each minute that it works.
const heartbeatTimeout = 3 * time.Minute

// Heartbeat is when a goroutine that the network depends on was last seen at work: by what it does,
// not by a timer of its own, which could outlive it.
type Heartbeat struct{ at atomic.Pointer[time.Time] }

// Record says that it is at work.
func (p *Heartbeat) Record() {
	now := time.Now()
	p.at.Store(&now)
}

func (p *Heartbeat) recent() bool { return time.Since(*p.at.Load()) < heartbeatTimeout }

// Watchdog tells systemd's watchdog until ctx ends that all is well, for as long as all pulses
// are alive. It returns at once if systemd does not want to be told.
func Watchdog(ctx context.Context, conditions *condition.List, pulses ...*Heartbeat) {
	if every := watchdogInterval(); every > 0 {
		runWatchdog(ctx, every, pulses, func() { notifyWatchdog(conditions) })
	}
}

// runWatchdog tells that all is well as long as it is, and often enough: every is a part of WatchdogSec=.
func runWatchdog(ctx context.Context, every time.Duration, pulses []*Heartbeat, tell func()) {
	for _, p := range pulses {
		p.Record()
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if !slices.ContainsFunc(pulses, func(p *Heartbeat) bool { return !p.recent() }) {
				tell()
			}
		}
	}
}

// watchdogInterval is how often systemd is to be told, 0 if it does not want to be.
func watchdogInterval() time.Duration {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0 // whoever set that is not systemd
	}
	return limit / 4
}
