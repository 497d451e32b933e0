// Package wait waits until something is so. It is how every test waits: for a condition, with a deadline, and never for a
// time in which the condition is believed to become true.
package wait

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"
)

const (
	// interval is the time between two tries.
	interval = 10 * time.Millisecond
	// defaultTimeout is for what takes no time worth speaking of, on a machine that does much else.
	defaultTimeout = 30 * time.Second
)

// Until calls check until it returns nil or the context ends; then the error says why check failed last.
func Until(ctx context.Context, check func() error) error {
	var last error
	for {
		if ctx.Err() == nil || last == nil {
			if last = check(); last == nil {
				return nil
			}
		}
		timer := time.NewTimer(interval)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w (%w)", last, ctx.Err())
		}
	}
}

// For calls check until it returns nil, and returns how long that took. The test ends when it takes longer than d; see
// Slow.
func For(t testing.TB, d time.Duration, what string, check func() error) time.Duration {
	t.Helper()
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), d*time.Duration(Slow()))
	defer cancel()
	if err := Until(ctx, check); err != nil {
		t.Fatalf("%s: not within %v: %v", what, d, err)
	}
	return time.Since(start)
}

// True waits until a condition is true. The test ends when it does not become so.
func True(t testing.TB, what string, ok func() bool) {
	t.Helper()
	For(t, defaultTimeout, what, func() error {
		if !ok() {
			return errors.New("it is not so")
		}
		return nil
	})
}

// slowVariable is for emulated machines only; no test on a real one may need it.
const slowVariable = "FLANNEL_LAB_SLOW"

// Slow returns how many times slower than a real machine this one is, if the environment says so in a whole number, else
// 1. Tests multiply their deadlines by it, and divide what they transfer.
func Slow() int {
	n, err := strconv.Atoi(os.Getenv(slowVariable))
	if err != nil {
		return 1
	}
	return max(n, 1)
}
