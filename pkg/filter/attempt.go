package filter

import (
	"context"
	"errors"
	"time"

	"flanneld/pkg/firewall"
)

// outcome is the result of syncing several rulesets with one keeper.
type outcome struct {
	changes     []string
	ownerLocked bool  // chains could not be written because their table has an owner
	err         error // any other failure
}

// syncAll syncs several rulesets with one keeper.
func syncAll(ctx context.Context, k firewall.Keeper, sets []firewall.Ruleset) (o outcome) {
	for _, set := range sets {
		changes, err := k.Sync(ctx, set)
		o.changes = append(o.changes, changes...)
		if errors.Is(err, firewall.ErrOwnerLocked) {
			o.ownerLocked = true
		} else {
			o.err = errors.Join(o.err, err)
		}
	}
	return o
}

// attempt is one sync with the preferred keeper. It has its own goroutine because a command may
// hang.
type attempt struct {
	cancel context.CancelFunc
	done   chan struct{}

	// Results, valid after done is closed.
	outcome
	took time.Duration
}

// startAttempt starts an attempt.
func startAttempt(ctx context.Context, k firewall.Keeper, sets []firewall.Ruleset) *attempt {
	a := &attempt{done: make(chan struct{})}
	ctx, a.cancel = context.WithCancel(ctx)
	go func() {
		defer close(a.done)
		defer a.cancel()
		begun := time.Now()
		a.outcome = syncAll(ctx, k, sets)
		a.took = time.Since(begun)
	}()
	return a
}

// wait waits until the attempt is done, ctx ends or the time is over, and reports whether the
// attempt is done. An attempt that is done counts even if ctx has ended.
func (a *attempt) wait(ctx context.Context, within time.Duration) bool {
	select {
	case <-a.done:
	case <-ctx.Done():
	case <-time.After(within):
	}
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}
