// Package systemd notifies the service manager that the network is ready and that the process makes
// progress (sd_notify(3)), and stores descriptors in it for the next process. Without a service
// manager that listens, it does nothing.
//
// Its callers define what ready means and which goroutines must make progress. Invariant: a failed
// notification is a condition until it succeeds.
package systemd

import (
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"flanneld/pkg/condition"
)

// retryInterval is the time between attempts to notify systemd that the network is ready.
const retryInterval = time.Second

// Ready notifies systemd, which waits for it, that the network is ready. It does not block.
func Ready(conditions *condition.List) {
	failure := condition.Condition{ID: "systemd/ready", Text: "failed to notify systemd that the network is ready, will retry"}
	if !notify(conditions, daemon.SdNotifyReady, failure) {
		time.AfterFunc(retryInterval, func() { Ready(conditions) })
	}
}

// notifyWatchdog notifies systemd's watchdog that this process makes progress.
func notifyWatchdog(conditions *condition.List) {
	notify(conditions, daemon.SdNotifyWatchdog, condition.Condition{ID: "systemd/watchdog", Text: "failed to notify systemd's watchdog, will retry"})
}

// notify sends a notification, and reports whether that has not failed.
func notify(conditions *condition.List, state string, failure condition.Condition) bool {
	_, err := daemon.SdNotify(false, state)
	failure.Severity = condition.Severe
	conditions.SetError(failure, err)
	return err == nil
}
