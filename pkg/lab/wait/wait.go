// Package wait waits for conditions. All tests use it: they wait for a condition with a deadline,
// never for a fixed time.
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
	// minInterval and maxInterval limit the time between two checks. In between it is as long as a
	// check takes, so that checks leave the processors to what they wait for.
	minInterval, maxInterval = 10 * time.Millisecond, 250 * time.Millisecond
	// defaultTimeout is for conditions that become true at once on an idle machine.
	defaultTimeout = 30 * time.Second
)

// Until calls check until it returns nil or the context ends. The error then contains the last
// error of check.
func Until(ctx context.Context, check func() error) error {
	var last error
	for {
		begun := time.Now()
		if ctx.Err() == nil || last == nil {
			if last = check(); last == nil {
				return nil
			}
		}
		timer := time.NewTimer(max(minInterval, min(time.Since(begun), maxInterval)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w (%w)", last, ctx.Err())
		}
	}
}

// For calls check until it returns nil, and returns how long that took. It ends the test if that
// takes longer than d; see Slow.
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

// True waits until a condition is true. It ends the test if the condition does not become true.
func True(t testing.TB, what string, ok func() bool) {
	t.Helper()
	For(t, defaultTimeout, what, func() error {
		if !ok() {
			return errors.New("the condition is false")
		}
		return nil
	})
}

// slowVariable is set in emulated machines only.
const slowVariable = "FLANNEL_LAB_SLOW"

// Slow returns how many times slower than a real machine this one is: the whole number in the
// environment variable, else 1. Tests multiply their deadlines by it and divide the size of
// transfers by it.
func Slow() int {
	n, err := strconv.Atoi(os.Getenv(slowVariable))
	if err != nil {
		return 1
	}
	return max(n, 1)
}
