package daemon

import "flanneld/pkg/driver"

// watch turns the drivers' events into passes until they end.
func (d *daemon) watch(events <-chan driver.Event) {
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

func (d *daemon) heard(e driver.Event) {
	d.log.Debug("the kernel reports changes", "of", e)
	if e&driver.Taken != 0 {
		d.anotherTUN()
	}
	if e&(driver.Candidates|driver.Routes|driver.Uplink|driver.Overflow) != 0 {
		d.checks.trigger()
	}
	if e&driver.Routes != 0 && d.facts.needy() {
		d.choice.within(d.facts.pause()) // how what is needed is reached may be another way now
	}
	if e&(driver.Uplink|driver.Overflow) != 0 {
		d.facts.stale()
	} else if e&driver.Candidates != 0 {
		d.choice.within(d.facts.pause())
	}
	switch {
	case e&driver.Uplink != 0: // not for links of our own: what we try on them is an event, too
		d.loop.Retry()
	case e&^(driver.Candidates|driver.Taken) != 0:
		d.loop.Reread()
	}
}
