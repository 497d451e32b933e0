package operator

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"flanneld/pkg/api"
	"flanneld/pkg/host"
	"flanneld/pkg/kernel"
	"flanneld/pkg/status"
	"flanneld/pkg/uplink"
)

// aliveTime is the time that a host has for a reply.
const aliveTime = 2 * time.Second

// alive returns evidence that the host with an address is alive, or why that cannot be found out. It
// is empty if the host does not reply, or if it is this one and flanneld does not run here.
func (n *Network) alive(ctx context.Context, addr netip.Addr) string {
	if !addr.IsValid() || addr.IsUnspecified() {
		return ""
	}
	k, err := kernel.New()
	if err == nil {
		defer k.Close()
		var inv host.Inventory
		if inv, err = k.Inventory(kernel.Wanted{Routes: true, Targets: []netip.Addr{addr}}); err == nil {
			if inv.HasAddr(addr) {
				return n.runsHere(ctx)
			}
			ctx, cancel := context.WithTimeout(ctx, aliveTime)
			defer cancel()
			return uplink.Replies(ctx, k, inv, addr)
		}
	}
	return fmt.Sprintf("failed to check whether %s is in use: %s", addr, status.Line(err))
}

// runsHere returns evidence that flanneld runs on this host.
func (n *Network) runsHere(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, aliveTime)
	defer cancel()
	client := api.Dial(n.options.SubnetFile)
	if _, err := client.Get(ctx, "/healthz"); errors.Is(err, api.ErrNotRunning) {
		return ""
	}
	return "it is the lease of this host, where flanneld runs"
}
