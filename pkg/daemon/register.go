package daemon

// chooseTUN takes the TUN device for this host's overlay, and reports whether that is another one than before.
func (d *daemon) chooseTUN() (changed bool, err error) {
	inv, err := d.inventory(false)
	if err != nil {
		return false, err
	}
	name := d.tunnels.Choose(inv, d.former.Network)
	if before := d.tun.Swap(&name); before != nil && *before == name {
		return false, nil
	}
	d.facts.stale()
	return true, nil
}

// anotherTUN looks for another TUN device, for another program has this one now.
func (d *daemon) anotherTUN() {
	if changed, err := d.chooseTUN(); err == nil && changed {
		d.loop.Retry()
	}
}
