package filter

import (
	"context"

	"flanneld/pkg/condition"
	"flanneld/pkg/firewall"
	"flanneld/pkg/pace"
)

// watchCondition is the ID of conditions; behind it is what cannot be watched.
const watchCondition = "packet-filter-changes/"

// watch returns a channel that signals possible changes of rules until ctx ends. All rules are in
// one of two packet filters of the kernel.
func (f *Filter) watch(ctx context.Context) <-chan struct{} {
	out := make(chan struct{}, 1)
	go f.listen(ctx, out, "iptables", f.cfg.Keepers.Legacy)
	go f.listen(ctx, out, "nftables", f.cfg.Keepers.NFTables)
	return out
}

// listen passes on the signals of one keeper. A watch that cannot be had, or has ended, is tried
// again after a while.
func (f *Filter) listen(ctx context.Context, out chan<- struct{}, name string, k firewall.Keeper) {
	signal := func() {
		select {
		case out <- struct{}{}:
		default: // one is there that was not read yet
		}
	}
	for again := false; ; again = true {
		in, err := k.Watch(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			f.cfg.Conditions.Set(condition.Condition{
				ID: watchCondition + name, Text: "cannot watch packet filter rules, checking them periodically",
				Fields: []any{"keeper", name, "err", err},
			})
		} else {
			f.cfg.Conditions.End(watchCondition + name)
		}
		wait := firstRetry
		switch {
		case in != nil:
			if again {
				signal() // what was not told
			}
			for range in {
				signal()
			}
		case err == nil:
			wait = idle
		}
		if pace.Sleep(ctx, wait) != nil {
			return
		}
	}
}
