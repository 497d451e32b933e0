// Package systemd tells the service manager how this process is: that the network is ready, and
// that it makes progress (sd_notify(3)); and has it keep descriptors for the next process. Where
// nobody started the process who listens, nothing happens.
//
// It does not know what ready means, nor who has to make progress: both say so themselves.
// Invariant: what systemd was not told is a condition until it is.
package systemd

import (
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"flanneld/pkg/condition"
)

// retryInterval is the time between attempts to tell systemd that the network is ready.
const retryInterval = time.Second

// Ready tells systemd, which waits for it, that the network is ready. It does not block.
func Ready(conditions *condition.List) {
	const id = "systemd/ready"
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		conditions.Set(condition.Condition{
			ID: id, Severe: true, Text: "failed to notify systemd that the network is ready, will retry", Fields: []any{"err", err},
		})
		time.AfterFunc(retryInterval, func() { Ready(conditions) })
		return
	}
	conditions.End(id)
}

// notifyWatchdog tells systemd's watchdog that this process makes progress.
func notifyWatchdog(conditions *condition.List) {
	const id = "systemd/watchdog"
	if _, err := daemon.SdNotify(false, daemon.SdNotifyWatchdog); err != nil {
		conditions.Set(condition.Condition{
			ID: id, Severe: true, Text: "failed to notify systemd's watchdog, will retry", Fields: []any{"err", err},
		})
		return
	}
	conditions.End(id)
}
