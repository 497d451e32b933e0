package daemon

import (
	"testing"
	"testing/synctest"
	"time"
)

// However fast others change rules, looks at them take a share of the time only; after a quiet
// time the next one is soon.
func TestLooksAtRulesTakeAShareOfTheTime(t *testing.T) {
	for _, f := range []struct {
		since, rest, burst, want time.Duration // since the last look
	}{
		{0, 0, ruleBurst, ruleBurst},
		{0, 300 * time.Millisecond, ruleBurst, 300 * time.Millisecond},
		{280 * time.Millisecond, 300 * time.Millisecond, ruleBurst, ruleBurst},
		{0, 300 * time.Millisecond, 0, 300 * time.Millisecond},
		{time.Second, 300 * time.Millisecond, 0, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := &rules{looked: time.Now(), rest: f.rest}
			time.Sleep(f.since)
			begun := time.Now()
			if r.settle(t.Context(), f.burst, nil); time.Since(begun) != f.want {
				t.Errorf("%+v: waited for %v", f, time.Since(begun))
			}
		})
	}
}
