package filter

import (
	"context"
	"errors"
	"time"

	"flanneld/pkg/firewall"
)

// outcome is what a keeper made of some rulesets.
type outcome struct {
	changes     []string
	ownerLocked bool  // chains cannot be written; else all is as wanted
	err         error // why not
}

// syncAll has one keeper make several rulesets right.
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

// attempt is one try of a keeper to have the rules right. It has a goroutine of its own: a
// command may hang.
type attempt struct {
	cancel context.CancelFunc
	done   chan struct{}

	// Results, for whoever has seen done closed.
	outcome
	took time.Duration
}

// startAttempt begins an attempt.
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

// wait waits for the end of an attempt, and reports whether it has come. That counts although
// ctx has ended.
func (a *attempt) wait(ctx context.Context, within time.Duration) bool {
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-a.done:
	case <-ctx.Done():
	case <-timer.C:
	}
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}
