package daemon

import (
	"context"
	"errors"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/reconcile"
)

const (
	// At the start, what fails and may pass is tried again after firstRetry, and ever later
	// up to lastRetry.
	firstRetry, lastRetry = 20 * time.Millisecond, time.Second
)

// persist calls f until it succeeds, fails in a way that does not pass, or ctx ends; it returns
// f's last error. What it waits for is a condition, named by what cannot be done.
func (d *daemon) persist(ctx context.Context, cannot string, passes func(error) bool, f func() error) error {
	id := "start/" + cannot
	defer d.conditions.End(id)
	for delay := firstRetry; ; delay = min(2*delay, lastRetry) {
		err := f()
		if err == nil || !passes(err) {
			return err
		}
		if !errors.As(err, &reconcile.ReportedError{}) {
			d.conditions.Set(condition.Condition{ID: id, Severe: true, Text: "cannot " + cannot + ", trying again", Fields: []any{"err", err}})
		}
		if !pause(ctx, delay) {
			return ctx.Err()
		}
	}
}

// pause waits, and reports whether ctx has not ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
