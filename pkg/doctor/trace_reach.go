package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"flanneld/pkg/kernel"
	"flanneld/pkg/status"
	"flanneld/pkg/trace"
)

// ping pings the container of this host, so that the kernel looks for it, and the peer: its public
// IP, and through the overlay its own address and its container.
func (c *collector) ping(ctx context.Context) {
	f := &c.f
	var targets []target
	for _, side := range []trace.Side{f.Src, f.Dst} {
		if side.Here && f.Bridge(side) != "" {
			targets = append(targets, target{addr: side.Addr})
		}
	}
	var publicIP, overlay, container target
	if f.Role() != trace.Both && c.peer.PublicIP.IsValid() {
		through := target{source: f.Gateway}
		f.Peer.Ping = "ping -c 3 -I " + f.Gateway.String()
		if f.Tunnelled() {
			through = target{device: f.Device}
			f.Peer.Ping = "ping -c 3 -I " + f.Device
		}
		f.Peer.OverlayAddr = peerAddress(c.peer.Subnets.V4(), f.Device != "")
		publicIP, overlay, container = target{addr: c.peer.PublicIP}, through, through
		overlay.addr, container.addr = f.Peer.OverlayAddr, f.Far().Addr
		targets = append(targets, publicIP, overlay, container)
	}
	pings := newInput(ctx, "pings", localLimit, func(ctx context.Context) (map[target]bool, error) { return ping(ctx, targets) })
	answers, err := pings.Get(ctx)
	if publicIP.addr.IsValid() {
		f.Peer.PublicIP, f.Peer.Overlay, f.Peer.Container = known(answers[publicIP], err), known(answers[overlay], err), known(answers[container], err)
	}
}

// readNeighbors reads the entries of the containers of this host, and that of the next hop to the
// peer; and the state of the interface to it.
func (c *collector) readNeighbors() {
	f := &c.f
	err := withKernel(func(k *kernel.Kernel) error {
		for _, side := range []*trace.Side{&f.Src, &f.Dst} {
			if bridge := f.Bridge(*side); side.Here && bridge != "" {
				side.Neighbor = known(k.Neighbor(bridge, side.Addr))
			}
		}
		if d := f.Outer.Value; f.Outer.Is && d.Iface != "" && !d.Local {
			hop := c.peer.PublicIP
			if d.Gateway.IsValid() {
				hop = d.Gateway
			}
			f.NextHop = known(k.Neighbor(d.Iface, hop))
			inv, err := k.Inventory(kernel.Wanted{Names: []string{d.Iface}})
			f.UplinkState.Err = err
			for _, i := range inv.Ifaces {
				if i.Name == d.Iface {
					f.UplinkState = trace.Is(i)
				}
			}
		}
		return nil
	})
	if err != nil {
		f.NextHop.Err = err
	}
}

// errNoPort is the reason why a peer is not asked for its status.
var errNoPort = errors.New("this host's flanneld has no -status-listen whose port the peer might have; --peer-status names one")

// askPeer asks the peer's flanneld for its status.
func (c *collector) askPeer(ctx context.Context) {
	f := &c.f
	addr := c.TraceOptions.Peer
	port := c.in.Options.Status.Port()
	switch {
	case addr.IsValid():
	case !c.peer.PublicIP.IsValid():
		f.Peer.Status.Err = errors.New("the peer is not known")
		return
	case port == 0:
		f.Peer.Status.Err = errNoPort
		return
	default:
		addr = netip.AddrPortFrom(c.peer.PublicIP, port)
	}
	f.Peer.Asked = fmt.Sprintf("curl http://%s/status", addr)
	answer := newInput(ctx, addr.String(), peerLimit, func(ctx context.Context) (status.Document, error) {
		return askStatus(ctx, addr, f.Subnet)
	})
	d, err := answer.Get(ctx)
	f.Peer.Status = known(d, err)
}
