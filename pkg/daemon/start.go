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

const (
	// At the start, what fails and may pass is tried again after firstRetry, and ever later
	// up to lastRetry.
	firstRetry, lastRetry = 20 * time.Millisecond, time.Second
)

// persist tries f until it succeeds, fails in a way that does not pass, or ctx ends; it returns
// f's last error.
func (d *daemon) persist(ctx context.Context, cannot string, passes func(error) bool, f func() error) error {
	defer d.conditions.End(unable(cannot))
	for delay := firstRetry; ; delay = min(2*delay, lastRetry) {
		err := d.try(cannot, passes, f)
		if !errors.Is(err, subnet.ErrTryAgain) {
			return err
		}
		if err := pace.Sleep(ctx, delay); err != nil {
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
