package daemon

import (
	"time"

	"flanneld/pkg/host"
	"flanneld/pkg/status"
)

// bridgeAge is the maximum age of a reading from which something can be concluded. The checks read
// once a minute, and after each change of an interface.
const bridgeAge = 3 * time.Minute

// bridgeRead is what served this host's subnet at a time.
type bridgeRead struct {
	host.Bridge
	at time.Time
}

// setBridge stores what serves this host's subnet, or nil if that is unknown.
func (d *daemon) setBridge(b *host.Bridge) {
	if b == nil {
		d.bridge.Store(nil)
		return
	}
	d.bridge.Store(&bridgeRead{*b, time.Now()})
}

// statusOfBridge adds what serves the subnet of this host's lease, if that is known.
func (d *daemon) statusOfBridge(doc *status.Document) {
	b := d.bridge.Load()
	if b == nil || b.Subnet != doc.Lease.Subnet || !b.Subnet.IsValid() || doc.Now.Sub(b.at) > bridgeAge {
		return
	}
	doc.Bridge = &status.Bridge{Device: b.Device, Address: b.Addr, MTU: b.MTU}
}
