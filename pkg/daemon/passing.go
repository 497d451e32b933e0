package daemon

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/condition"
	"flanneld/pkg/reconcile"
)

const (
	// At the start, what fails and may pass is tried again after firstRetry, and ever later
	// up to lastRetry.
	firstRetry, lastRetry = 20 * time.Millisecond, time.Second
)

// scarce reports whether something failed for want of what others may give back: descriptors,
// memory, a place in a queue.
func scarce(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS, unix.ENOSPC, unix.EAGAIN, unix.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// passing reports whether what the kernel refused it may do later: all but what this process
// is not permitted, or the kernel does not have.
func passing(err error) bool {
	for _, e := range []error{unix.EPERM, unix.EACCES, unix.ENOSYS, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT} {
		if errors.Is(err, e) {
			return false
		}
	}
	return true
}

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
