package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/pace"
	"flanneld/pkg/subnet"
)

// retry tries f until it succeeds, fails in a way that does not pass, or ctx ends; it returns
// f's last error.
func (d *daemon) retry(ctx context.Context, cannot string, passes func(error) bool, f func() error) error {
	defer d.conditions.End(startCondition(cannot))
	// What fails and may pass is tried again soon, and ever later.
	for backoff := (pace.Backoff{Initial: 20 * time.Millisecond, Max: time.Second}); ; {
		err := d.tryOnce(cannot, passes, f)
		if !errors.Is(err, subnet.ErrTryAgain) {
			return err
		}
		if err := pace.Sleep(ctx, backoff.Failed()); err != nil {
			return err
		}
	}
}

// tryOnce calls f. That it failed in a way that may pass is a condition, named by what cannot be done,
// until it is called again; then the error is a subnet.ErrTryAgain, too.
func (d *daemon) tryOnce(cannot string, passes func(error) bool, f func() error) error {
	err := f()
	switch {
	case err == nil || !passes(err):
		d.conditions.End(startCondition(cannot))
		return err
	case !errors.As(err, &condition.Reported{}):
		d.conditions.Set(condition.Condition{
			ID: startCondition(cannot), Severe: true, Text: "cannot " + cannot + ", trying again", Fields: []any{"err", err},
		})
	}
	return fmt.Errorf("%w: %w", subnet.ErrTryAgain, err)
}

// startCondition is the ID of a condition.
func startCondition(to string) string { return "start/" + to }
