package daemon

import (
	"context"
	"slices"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/iptables"
)

// signsCondition is the ID of conditions; behind it is who cannot tell.
const signsCondition = "packet-filter-changes/"

// signs returns a channel that signals possible changes of rules until ctx ends.
func (r *rules) signs(ctx context.Context) <-chan struct{} {
	out := make(chan struct{}, 1)
	go r.listen(ctx, out, "iptables", func(ctx context.Context) (<-chan struct{}, error) {
		if ipt, ok := r.tools.iptables.peek(); ok && ipt.Legacy() {
			return ipt.Watch(ctx)
		}
		if in, err := iptables.WatchLegacy(ctx, iptables.IPv4); in != nil || err != nil {
			return in, err
		}
		return r.watchTables(ctx), nil
	})
	go r.listen(ctx, out, "nftables", func(ctx context.Context) (<-chan struct{}, error) {
		nft, ok := r.tools.nftables.peek()
		if !ok {
			return nil, nil
		}
		return nft.Watch(ctx, r.ours)
	})
	return out
}

// watchTables signals for a while when tables of iptables-legacy come or go, where its commands are
// not there and so perhaps not their lock: who writes them may be in another container.
func (r *rules) watchTables(ctx context.Context) <-chan struct{} {
	out := make(chan struct{})
	before, _ := iptables.LegacyTables(iptables.IPv4) // that they cannot be read is said elsewhere
	go func() {
		defer close(out)
		ticker := time.NewTicker(r.options.Resync)
		defer ticker.Stop()
		for end := time.Now().Add(ruleResync); time.Now().Before(end); {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			if now, err := iptables.LegacyTables(iptables.IPv4); err == nil && !slices.Equal(now, before) {
				return // a sign, too: it is looked at again
			}
		}
	}()
	return out
}

// listen passes on the signs of one source. What cannot be opened, or has ended, is opened again
// after a while; nil is a source that there is none of now.
func (r *rules) listen(ctx context.Context, out chan<- struct{}, name string, open func(context.Context) (<-chan struct{}, error)) {
	sign := func() {
		select {
		case out <- struct{}{}:
		default: // one is there that was not read yet
		}
	}
	for late := false; ; late = true {
		in, err := open(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			r.others.conditions.Set(condition.Condition{
				ID: signsCondition + name, Text: "changes of packet filter rules by others are seen late, for they cannot be watched",
				Fields: []any{"by", name, "err", err},
			})
		} else {
			r.others.conditions.End(signsCondition + name)
		}
		wait := ruleRetry
		switch {
		case in != nil:
			if late {
				sign() // of what was not told
			}
			for range in {
				sign()
			}
		case err == nil:
			wait = ruleResync
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}
