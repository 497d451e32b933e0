package filter

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/firewalld"
)

// Firewalld configures firewalld, whose rules no other program can change.
type Firewalld interface {
	// Trust makes firewalld accept packets of the network, and reports whether that is new.
	Trust(ctx context.Context, network netip.Prefix) (added bool, err error)
	// Changed signals that firewalld's rules may have changed. It is closed with the connection.
	Changed() <-chan struct{}
}

const (
	trustCondition = "firewalld"
	trustWithin    = 15 * time.Second // for an answer
	trustRetry     = 5 * time.Second
)

// trust adds networks to firewalld's trusted zone while its rules drop their packets. It has its
// own goroutine, because firewalld may answer late while it loads its configuration.
type trust struct {
	dial       func(context.Context) (Firewalld, error)
	changed    func() // called when firewalld's rules may have changed
	conditions *condition.List
	log        *slog.Logger

	wants chan []netip.Prefix // the latest ones
}

func newTrust(cfg Config, changed func()) *trust {
	return &trust{
		dial: cfg.Firewalld, changed: changed, conditions: cfg.Conditions, log: cfg.Log,
		wants: make(chan []netip.Prefix, 1),
	}
}

// set sets the networks whose packets firewalld may drop. It never blocks, and is for one
// goroutine.
func (t *trust) set(networks []netip.Prefix) {
	select {
	case <-t.wants:
	default:
	}
	t.wants <- networks
}

// run handles set until ctx ends.
func (t *trust) run(ctx context.Context) {
	var client Firewalld
	var changed <-chan struct{}
	var wanted []netip.Prefix
	retry := time.NewTimer(0)
	retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case wanted = <-t.wants:
		case <-retry.C:
		case _, open := <-changed:
			if !open {
				client, changed = nil, nil
			}
			t.changed() // its rules must be evaluated again
			continue
		}
		if len(wanted) == 0 {
			t.conditions.End(trustCondition)
			continue
		}
		var err error
		if client == nil {
			var dialed Firewalld
			if dialed, err = t.dial(ctx); err == nil {
				client, changed = dialed, dialed.Changed()
			}
		}
		for _, network := range wanted {
			if err == nil {
				err = t.ask(ctx, client, network)
			}
			if err != nil && ctx.Err() == nil {
				t.failed(network, err)
				retry.Reset(trustRetry)
				break
			}
		}
		if err == nil {
			t.conditions.End(trustCondition)
		}
	}
}

func (t *trust) ask(ctx context.Context, client Firewalld, network netip.Prefix) error {
	ctx, cancel := context.WithTimeout(ctx, trustWithin)
	defer cancel()
	added, err := client.Trust(ctx, network)
	if added {
		t.log.Info("added the network to firewalld's trusted zone", "command", firewalld.TrustCommand(network))
	}
	return err
}

func (t *trust) failed(network netip.Prefix, err error) {
	c := condition.Condition{
		ID: trustCondition, Text: "firewalld may drop overlay packets, failed to make it trust the network",
		Fields: []any{"err", err}, Command: firewalld.TrustCommand(network),
	}
	if errors.Is(err, firewalld.ErrOtherZone) {
		c.Command = firewalld.MoveCommand(network)
	}
	t.conditions.Set(c)
}
