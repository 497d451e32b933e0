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
		// Long checks take half of the time.
		begun, tries = time.Now(), 0
		long := func() error { tries++; <-time.After(100 * time.Millisecond); return late }
		short, cancelShort := context.WithTimeout(t.Context(), 1950*time.Millisecond)
		defer cancelShort()
		if err := wait.Until(short, long); !errors.Is(err, late) || tries != 10 {
			t.Errorf("%d long checks in %v, %v", tries, time.Since(begun), err)
		}
		// The condition is checked at least once.
		if err := wait.Until(ctx, func() error { return nil }); err != nil {
			t.Errorf("after the end: %v", err)
		}
	})
}
