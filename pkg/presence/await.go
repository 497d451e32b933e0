package presence

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"sync"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/pace"
)

// retryInterval is the time between attempts to register.
const retryInterval = time.Second

// IDs of conditions: another daemon conflicts with this one; this one is not registered.
const (
	conflictCondition = "other-flanneld"
	registerCondition = "unregistered"
)

// Registration is the present or future result of Await.
type Registration struct {
	cancel   context.CancelFunc
	attempts sync.WaitGroup
	presence io.Closer // valid after attempts has ended; nil if not registered
}

// Await registers this daemon with the others of this host. It waits as long as one of them serves
// an overlapping network or uses the same fixed device name: daemons that share these undo each
// other's changes. The network does not depend on the registration: if it is not possible, Await
// returns and retries until the Registration is closed. Its only error is that of ctx.
func Await(ctx context.Context, network netip.Prefix, device string, conditions *condition.List) (*Registration, error) {
	r := new(Registration)
	for waits := false; ; {
		p, err := tryRegister(network, device, conditions)
		if err == nil {
			r.presence = p
			return r, nil
		}
		if waits = waits || errors.As(err, new(*ConflictError)) || pace.IsResourceError(err); !waits {
			ctx, r.cancel = context.WithCancel(context.WithoutCancel(ctx))
			r.attempts.Go(func() {
				for r.presence == nil && pace.Sleep(ctx, retryInterval) == nil {
					r.presence, _ = tryRegister(network, device, conditions)
				}
			})
			return r, nil
		}
		if err := pace.Sleep(ctx, retryInterval); err != nil {
			return nil, err
		}
	}
}

// Close ends the registration. It may be nil.
func (r *Registration) Close() error {
	if r == nil {
		return nil
	}
	if r.cancel != nil {
		r.cancel()
	}
	if r.attempts.Wait(); r.presence == nil {
		return nil
	}
	return r.presence.Close()
}

// tryRegister tries once.
func tryRegister(network netip.Prefix, device string, conditions *condition.List) (io.Closer, error) {
	p, err := Register(network, device)
	failure := err
	if holder := (*ConflictError)(nil); errors.As(err, &holder) {
		conditions.Set(conflict(network, holder))
		failure = nil
	} else if err == nil {
		conditions.End(conflictCondition)
	}
	conditions.SetError(condition.Condition{
		ID: registerCondition, Text: "failed to register with other flannelds on this host, will retry",
	}, failure)
	return p, err
}

func conflict(network netip.Prefix, held *ConflictError) condition.Condition {
	c := condition.Condition{ID: conflictCondition, Severity: condition.Severe, Fields: []any{"network", network, "reason", held.Error()}}
	switch {
	case held.Device != "":
		c.Text = "another flanneld on this host has the same device, waiting for it to stop; set another VNI in one of the networks"
	case held.Daemon.Network == network:
		c.Text, c.Severity = "another flanneld on this host serves the same network, waiting for it to stop", condition.Warning
	default:
		c.Text = "another flanneld on this host has an overlapping network, waiting for it to stop; set another Network in one of them"
	}
	return c
}
