package pace

import (
	"context"
	"sync"
	"time"
)

// Sleep waits for d, or until ctx ends, whose error it returns.
func Sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// Wake sends a signal to a channel of capacity 1, unless one is pending.
func Wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// SendLatest replaces the value in a channel of capacity 1 that has no other sender. It never
// blocks.
func SendLatest[T any](latest chan T, value T) {
	select {
	case <-latest:
	default:
	}
	latest <- value
}

// Alarm is a timer that can be set to an earlier time but not to a later one. Its methods may be
// called from several goroutines; one reads C. Make one with NewAlarm.
type Alarm struct {
	C <-chan time.Time

	mu    sync.Mutex
	timer *time.Timer
	at    time.Time // zero if not set
}

// NewAlarm returns an alarm that is not set.
func NewAlarm() *Alarm {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return &Alarm{C: t.C, timer: t}
}

// SetWithin sets the alarm to ring after d at the latest.
func (a *Alarm) SetWithin(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if at := time.Now().Add(d); a.at.IsZero() || at.Before(a.at) {
		a.at = at
		a.timer.Reset(d)
	}
}

// Received must be called after a read of C.
func (a *Alarm) Received() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at = time.Time{}
}
