package daemon

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/firewalld"
)

// trust has firewalld let the network pass while its rules, which nobody else may write,
// do not. It asks in a goroutine of its own: a firewalld that is just loading its
// configuration answers late.
type trust struct {
	network    netip.Prefix
	conditions *condition.List
	rules      *rules

	wants chan bool
}

const (
	trustCondition = "firewalld"
	trustWithin    = 15 * time.Second // for an answer
	trustRetry     = 5 * time.Second
)

func newTrust(network netip.Prefix, conditions *condition.List, r *rules) *trust {
	return &trust{network: network, conditions: conditions, rules: r, wants: make(chan bool, 1)}
}

// want says whether firewalld may drop the network's packets now. Only run's goroutine and
// that of rules may use the channel.
func (t *trust) want(drops bool) {
	select {
	case <-t.wants:
	default:
	}
	t.wants <- drops
}

// run asks until ctx ends.
func (t *trust) run(ctx context.Context) {
	var client *firewalld.Client
	var changed <-chan struct{}
	needed := false
	retry := time.NewTimer(0)
	retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case needed = <-t.wants:
		case <-retry.C:
		case _, open := <-changed:
			if !open {
				client, changed = nil, nil
			}
			// Whether it lets the network pass now, its rules say.
			t.rules.trigger()
			continue
		}
		if !needed {
			t.conditions.End(trustCondition)
			continue
		}
		var err error
		if client == nil {
			if client, err = firewalld.Dial(ctx); err == nil {
				changed = client.Changed()
			}
		}
		if err == nil {
			err = t.ask(ctx, client)
		}
		if err != nil && ctx.Err() == nil {
			t.say(err)
			retry.Reset(trustRetry)
		}
	}
}

func (t *trust) ask(ctx context.Context, client *firewalld.Client) error {
	ctx, cancel := context.WithTimeout(ctx, trustWithin)
	defer cancel()
	added, err := client.Trust(ctx, t.network)
	if added {
		t.rules.log.Info("firewalld lets the network pass now", "command", firewalld.TrustCommand(t.network))
	}
	if err == nil {
		t.conditions.End(trustCondition)
	}
	return err
}

func (t *trust) say(err error) {
	c := condition.Condition{
		ID: trustCondition, Text: "firewalld may drop the overlay's packets, and cannot be told to let them pass",
		Fields: []any{"err", err}, Command: firewalld.TrustCommand(t.network),
	}
	if errors.Is(err, firewalld.ErrOtherZone) {
		c.Command = firewalld.MoveCommand(t.network)
	}
	t.conditions.Set(c)
}
