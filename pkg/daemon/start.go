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

// retry calls f until it succeeds, fails with a permanent error, or ctx ends. It returns f's
// last error.
func (d *daemon) retry(ctx context.Context, operation string, temporary func(error) bool, f func() error) error {
	defer d.conditions.End(startCondition(operation))
	for backoff := (pace.Backoff{Initial: 20 * time.Millisecond, Max: time.Second}); ; {
		err := d.tryOnce(operation, temporary, f)
		if !errors.Is(err, subnet.ErrTryAgain) {
			return err
		}
		if err := pace.Sleep(ctx, backoff.Failed()); err != nil {
			return err
		}
	}
}

// tryOnce calls f. A temporary error is a condition until the next call, and is returned as a
// subnet.ErrTryAgain.
func (d *daemon) tryOnce(operation string, temporary func(error) bool, f func() error) error {
	err := f()
	switch {
	case err == nil || !temporary(err):
		d.conditions.End(startCondition(operation))
		return err
	case !errors.As(err, &condition.Reported{}):
		d.conditions.Set(condition.Condition{
			ID: startCondition(operation), Severe: true, Text: "operation failed, will retry", Fields: []any{"operation", operation, "err", err},
		})
	}
	return fmt.Errorf("%w: %w", subnet.ErrTryAgain, err)
}

// startCondition returns the ID of the condition that an operation fails.
func startCondition(operation string) string { return "start/" + operation }
