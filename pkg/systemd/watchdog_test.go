package systemd

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestWatchdog: systemd is notified as long as both goroutines make progress.
func TestWatchdog(t *testing.T) {
	for _, c := range []struct {
		name string
		// how long each is at work
		loop, follower time.Duration
		last           time.Duration // time of the last notification
	}{
		{"both work", time.Hour, time.Hour, time.Hour},
		{"the reconciler hangs", 10 * time.Minute, time.Hour, 13 * time.Minute},
		{"the follower hangs", time.Hour, 10 * time.Minute, 13 * time.Minute},
		{"nothing ever worked", 0, 0, 3 * time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				begun := time.Now()
				var loop, follower Heartbeat
				var last time.Duration
				go work(ctx, c.loop, loop.Record)
				go work(ctx, c.follower, follower.Record)
				go runWatchdog(ctx, time.Second, []*Heartbeat{&loop, &follower}, func() {
					now := time.Since(begun)
					if now-last > time.Second {
						t.Errorf("not told from %v to %v", last, now)
					}
					last = now
				})
				<-ctx.Done()
				synctest.Wait()
				if off := c.last - last; off < 0 || off > 2*time.Second+2*time.Minute || c.last == time.Hour && off > time.Second {
					t.Errorf("last told after %v, want about %v", last, c.last)
				}
			})
		})
	}
}

// work does something every two minutes, the longest that a healthy goroutine rests.
func work(ctx context.Context, during time.Duration, something func()) {
	for end := time.Now().Add(during); ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(2 * time.Minute):
		}
		if time.Now().After(end) {
			return
		}
		something()
	}
}

func TestWatchdogEvery(t *testing.T) {
	t.Setenv("WATCHDOG_PID", "")
	for value, want := range map[string]time.Duration{"": 0, "2000000": 500 * time.Millisecond, "soon": 0} {
		t.Setenv("WATCHDOG_USEC", value)
		if got := watchdogInterval(); got != want {
			t.Errorf("WATCHDOG_USEC=%s: %v, want %v", value, got, want)
		}
	}
}
