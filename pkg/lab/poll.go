package lab

import (
	"context"
	"fmt"
	"time"
)

// pollInterval is how long Poll waits between two tries.
const pollInterval = 10 * time.Millisecond

// Poll calls check until it returns nil or the context ends; then the error tells why check failed last.
func Poll(ctx context.Context, check func() error) error {
	var last error
	for {
		if ctx.Err() == nil || last == nil {
			if last = check(); last == nil {
				return nil
			}
		}
		timer := time.NewTimer(pollInterval)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w (%w)", last, ctx.Err())
		}
	}
}
