package wait_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/pkg/lab/wait"
)

func TestUntil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, tries := time.Now(), 0
		late := errors.New("late")
		check := func() error {
			if tries++; time.Since(begun) < time.Second {
				return late
			}
			return nil
		}
		if err := wait.Until(t.Context(), check); err != nil || tries < 10 || time.Since(begun) > 2*time.Second {
			t.Errorf("%d tries in %v, %v", tries, time.Since(begun), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := wait.Until(ctx, func() error { return late }); !errors.Is(err, late) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		// The condition is checked at least once.
		if err := wait.Until(ctx, func() error { return nil }); err != nil {
			t.Errorf("after the end: %v", err)
		}
	})
}
