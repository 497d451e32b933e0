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

// persist tries f until it succeeds, fails in a way that does not pass, or ctx ends; it returns
// f's last error.
func (d *daemon) persist(ctx context.Context, cannot string, passes func(error) bool, f func() error) error {
	defer d.conditions.End(unable(cannot))
	// What fails and may pass is tried again soon, and ever later.
	for backoff := (pace.Backoff{First: 20 * time.Millisecond, Most: time.Second}); ; {
		err := d.try(cannot, passes, f)
		if !errors.Is(err, subnet.ErrTryAgain) {
			return err
		}
		if err := pace.Sleep(ctx, backoff.Failed()); err != nil {
			return err
		}
	}
}

// try calls f. That it failed in a way that may pass is a condition, named by what cannot be done,
// until it is called again; then the error is a subnet.ErrTryAgain, too.
func (d *daemon) try(cannot string, passes func(error) bool, f func() error) error {
	err := f()
	switch {
	case err == nil || !passes(err):
		d.conditions.End(unable(cannot))
		return err
	case !errors.As(err, &condition.Reported{}):
		d.conditions.Set(condition.Condition{
			ID: unable(cannot), Severe: true, Text: "cannot " + cannot + ", trying again", Fields: []any{"err", err},
		})
	}
	return fmt.Errorf("%w: %w", subnet.ErrTryAgain, err)
}

// unable is the ID of a condition.
func unable(to string) string { return "start/" + to }
