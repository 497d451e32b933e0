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

// Firewalld lets networks pass its rules, which nobody else may write.
type Firewalld interface {
	// Trust has packets of the network pass, and reports whether that is new.
	Trust(ctx context.Context, network netip.Prefix) (added bool, err error)
	// Changed signals that its rules may be others now; it is closed with the connection.
	Changed() <-chan struct{}
}

const (
	trustCondition = "firewalld"
	trustWithin    = 15 * time.Second // for an answer
	trustRetry     = 5 * time.Second
)

// trust has firewalld let networks pass while its rules do not. It asks in a goroutine of its own:
// a firewalld that is just loading its configuration answers late.
type trust struct {
	dial       func(context.Context) (Firewalld, error)
	changed    func() // called when firewalld's rules may be others
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

// set says which networks' packets firewalld may drop now. It never blocks, and is for one
// goroutine.
func (t *trust) set(networks []netip.Prefix) {
	select {
	case <-t.wants:
	default:
	}
	t.wants <- networks
}

// run asks until ctx ends.
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
			t.changed() // whether it lets the networks pass now, its rules say
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
