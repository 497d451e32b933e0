package main

import (
	"net/netip"
	"testing"

	"flanneld/pkg/lab"
)

// TestUnderlayWiderThanOverlay: hosts on a LAN that contains the overlay's network, with the
// least MTU of IPv6, reach each other, and nothing is tried that the kernel cannot do.
func TestUnderlayWiderThanOverlay(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 2, Underlay: netip.MustParsePrefix("10.0.0.0/8"), MTU: 1280})
	c.join(vxlanConfig)
	for _, h := range c.Hosts {
		if n := logged(h, "skipped peer") + logged(h, "failed to apply changes"); n != 0 {
			t.Errorf("%s complains %d times", h.Name, n)
		}
	}
}
