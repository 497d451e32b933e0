package filter

import (
	"context"

	"flanneld/pkg/condition"
	"flanneld/pkg/firewall"
	"flanneld/pkg/pace"
)

// watchCondition is the prefix of condition IDs; the name of the keeper follows.
const watchCondition = "packet-filter-changes/"

// watch returns a channel that signals possible changes of rules until ctx ends. It watches both
// packet filters of the kernel.
func (f *Filter) watch(ctx context.Context) <-chan struct{} {
	out := make(chan struct{}, 1)
	go f.listen(ctx, out, "iptables", f.cfg.Keepers.Legacy)
	go f.listen(ctx, out, "nftables", f.cfg.Keepers.NFTables)
	return out
}

// listen forwards the signals of one keeper. If a watch fails or ends, it is restarted after a
// pause.
func (f *Filter) listen(ctx context.Context, out chan<- struct{}, name string, k firewall.Keeper) {
	for again := false; ; again = true {
		in, err := k.Watch(ctx)
		if ctx.Err() != nil {
			return
		}
		f.cfg.Conditions.SetError(condition.Condition{
			ID: watchCondition + name, Severity: condition.Notice, Text: "cannot watch packet filter rules, checking them periodically", Fields: []any{"keeper", name},
		}, err)
		wait := firstRetry
		switch {
		case in != nil:
			if again {
				pace.Wake(out) // changes may have been missed
			}
			for range in {
				pace.Wake(out)
			}
		case err == nil:
			wait = idle
		}
		if pace.Sleep(ctx, wait) != nil {
			return
		}
	}
}
