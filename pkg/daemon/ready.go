package daemon

import (
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"flanneld/pkg/condition"
)

// wroteSubnetFile is called when the subnet file says something else than before in this
// run. Docker reads it at its start only.
func (d *daemon) wroteSubnetFile(first, changed bool) {
	if changed && (!first || d.former.Subnet.IsValid()) {
		d.log.Warn("restart docker so that it takes over what has changed", "path", d.options.SubnetFile)
	}
	if first {
		d.announce()
	}
}

// announce tells that the network is there.
func (d *daemon) announce() {
	d.health.Ready()
	d.notifyReady()
	view := d.view.Load()
	d.log.Info("ready", "subnet", view.Own.Subnet, "public_ip", view.Own.PublicIP, "peers", len(view.Peers))
	d.checks.begin()
	close(d.lock.ready)
}

// notifyReady tells systemd, which waits for it.
func (d *daemon) notifyReady() {
	const id = "systemd/ready"
	if _, err := sd.SdNotify(false, sd.SdNotifyReady); err != nil {
		d.conditions.Set(condition.Condition{
			ID: id, Severe: true, Text: "cannot tell systemd that the network is ready, will retry", Fields: []any{"err", err},
		})
		time.AfterFunc(notifyRetry, d.notifyReady)
		return
	}
	d.conditions.End(id)
}

// live tells systemd's watchdog that this process makes progress.
func (d *daemon) live() {
	const id = "systemd/watchdog"
	if _, err := sd.SdNotify(false, sd.SdNotifyWatchdog); err != nil {
		d.conditions.Set(condition.Condition{
			ID: id, Severe: true, Text: "cannot tell systemd's watchdog that flanneld works, will retry", Fields: []any{"err", err},
		})
		return
	}
	d.conditions.End(id)
}
