package daemon

import (
	"flanneld/pkg/kernel"
	"flanneld/pkg/lease"
	"flanneld/pkg/subnetenv"
)

// watch turns the kernel's events into passes until they end.
func (d *daemon) watch(events <-chan kernel.Event) {
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return
			}
			d.heard(e)
		case <-d.choice.C:
			d.choice.rang()
			d.facts.stale()
			d.loop.Trigger()
		}
	}
}

func (d *daemon) heard(e kernel.Event) {
	d.log.Debug("the kernel reports changes", "of", e)
	if e&(kernel.Candidates|kernel.Routes|kernel.Uplink|kernel.Overflow) != 0 {
		d.checks.trigger()
	}
	if e&kernel.Routes != 0 && d.facts.needy() {
		d.choice.within(d.facts.pause()) // how what is needed is reached may be another way now
	}
	if e&(kernel.Uplink|kernel.Overflow) != 0 {
		d.facts.stale()
	} else if e&kernel.Candidates != 0 {
		d.choice.within(d.facts.pause())
	}
	switch {
	case e&kernel.Uplink != 0: // not for links of our own: what we try on them is an event, too
		d.loop.Retry()
	case e != kernel.Candidates:
		d.loop.Reread()
	}
}

// follow takes a new view from the registry.
func (d *daemon) follow(v lease.View) {
	before := d.view.Swap(&v)
	d.lock.SetView(v)
	d.loop.Trigger()
	if before.Own.Subnet != v.Own.Subnet {
		d.log.Error("this host has another subnet now", "subnet", v.Own.Subnet, "before", before.Own.Subnet)
		d.checks.trigger()
		d.files.Update(func(e *subnetenv.Env) { e.Subnet = v.Own.Subnet })
	}
}
