package filter

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/firewalld"
	"flanneld/pkg/pace"
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
	cfg     Config
	changed func()              // called when firewalld's rules may have changed
	wants   chan []netip.Prefix // the latest ones

	// The following fields belong to run's goroutine.

	client  Firewalld       // nil if there is no connection
	signals <-chan struct{} // of the client
}

// set sets the networks whose packets firewalld may drop. It never blocks, and is for one
// goroutine.
func (t *trust) set(networks []netip.Prefix) {
	pace.SendLatest(t.wants, networks)
}

// run handles set until ctx ends.
func (t *trust) run(ctx context.Context) {
	var wanted []netip.Prefix
	retry := time.NewTimer(0)
	retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case wanted = <-t.wants:
		case <-retry.C:
		case _, open := <-t.signals:
			if !open {
				t.client, t.signals = nil, nil
			}
			t.changed() // its rules must be evaluated again
			continue
		}
		var err error
		for i := 0; i < len(wanted) && err == nil; i++ {
			if err = t.ask(ctx, wanted[i]); err != nil && ctx.Err() == nil {
				t.failed(wanted[i], err)
				retry.Reset(trustRetry)
			}
		}
		if err == nil {
			t.cfg.Conditions.End(trustCondition)
		}
	}
}

// ask makes firewalld accept packets of a network.
func (t *trust) ask(ctx context.Context, network netip.Prefix) error {
	if t.client == nil {
		client, err := t.cfg.Firewalld(ctx)
		if err != nil {
			return err
		}
		t.client, t.signals = client, client.Changed()
	}
	ctx, cancel := context.WithTimeout(ctx, trustWithin)
	defer cancel()
	added, err := t.client.Trust(ctx, network)
	if added {
		t.cfg.Log.Info("added the network to firewalld's trusted zone", "command", firewalld.TrustCommand(network))
	}
	return err
}

func (t *trust) failed(network netip.Prefix, err error) {
	c := condition.Condition{
		ID: trustCondition, Text: "firewalld may drop overlay packets, failed to make it trust the network",
		Command: firewalld.TrustCommand(network),
	}
	if errors.Is(err, firewalld.ErrOtherZone) {
		c.Command = firewalld.MoveCommand(network)
	}
	t.cfg.Conditions.SetError(c, err)
}
