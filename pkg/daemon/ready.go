package daemon

import "flanneld/pkg/systemd"

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
	systemd.Ready(d.conditions)
	view := d.view.Load()
	d.log.Info("ready", "subnet", view.Own.Subnet, "public_ip", view.Own.PublicIP, "peers", len(view.Peers))
	d.checks.begin()
	d.lock.Ready()
}
