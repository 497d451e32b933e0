package doctor

import (
	"cmp"
	"context"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"flanneld/pkg/condition"
	"flanneld/pkg/host"
	"flanneld/pkg/iptables"
	"flanneld/pkg/kernel"
)

// hostInputs are what the checks of the packet filter and of this host's settings read.
type hostInputs struct {
	Surroundings *Input[host.Surroundings] // links, routes and rules of others
	Sysctls      *Input[map[string]string] // those that exist
	Bridge       *Input[Bridge]            // of the containers
	Port         *Input[[]kernel.Holder]   // sockets with the tunnel port
	Ways         *Input[Ways]
	Legacy       *Input[*iptables.Listing] // nil if the kernel has no tables of iptables-legacy
	Passages     *Input[Passages]
	Release      *Input[string] // of the kernel
	Files        *Input[Files]
}

// Bridge is the bridge of this host's containers.
type Bridge struct {
	kernel.Port
	Ports []kernel.Port // the host's ends of the containers' cables
}

// Sysctls that host.CheckedSysctls does not have.
const (
	bridgeFilter = "net/bridge/bridge-nf-call-iptables"
	neighLimit   = "net/ipv4/neigh/default/gc_thresh3"
)

// addHostInputs adds the inputs of the packet filter and of this host's settings.
func (in *Inputs) addHostInputs(ctx context.Context) {
	in.Surroundings = newInput(ctx, "links, routes and rules of other programs", remoteLimit+localLimit, in.readSurroundings)
	in.Sysctls = newInput(ctx, "sysctls", remoteLimit+localLimit, func(ctx context.Context) (values map[string]string, err error) {
		o, facts := in.hostOverlay(ctx)
		err = withKernel(func(k *kernel.Kernel) (err error) {
			values, err = k.Sysctls(append(o.CheckedSysctls(facts), neighLimit))
			return err
		})
		return values, err
	})
	in.Bridge = newInput(ctx, "bridge of the containers", remoteLimit+localLimit, in.readBridge)
	in.Port = newInput(ctx, "sockets", remoteLimit+localLimit, func(ctx context.Context) (all []kernel.Holder, err error) {
		o, err := in.Overlay.Get(ctx)
		if err != nil || o.Port == 0 {
			return nil, err
		}
		err = withKernel(func(k *kernel.Kernel) (err error) {
			all, err = k.Holders("udp", netip.AddrPortFrom(netip.IPv4Unspecified(), o.Port))
			return err
		})
		return all, err
	})
	in.Ways = newInput(ctx, "ways of packets", remoteLimit+localLimit, in.findWays)
	in.Legacy = newInput(ctx, "rules of iptables-legacy", localLimit, readLegacy)
	in.Passages = newInput(ctx, "packet filter rules", Limit, in.readPassages)
	in.Release = newInput(ctx, "release of the kernel", localLimit, func(context.Context) (string, error) {
		var u unix.Utsname
		err := unix.Uname(&u)
		return unix.ByteSliceToString(u.Release[:]), err
	})
	in.Files = newInput(ctx, "files of other programs", localLimit, readFiles)
}

// readSurroundings reads what affects the overlay.
func (in *Inputs) readSurroundings(ctx context.Context) (s host.Surroundings, err error) {
	o, _ := in.hostOverlay(ctx)
	err = withKernel(func(k *kernel.Kernel) (err error) {
		if s, err = k.Surroundings(o.Relevant(), o.Devices); err != nil || !o.Subnet.IsValid() {
			return err
		}
		d, ok, err := k.Detour(o.Container())
		if ok {
			s.Detour = &d
		}
		return err
	})
	return s, err
}

// hostOverlay returns the network as package host's checks need it, and the facts about this host.
func (in *Inputs) hostOverlay(ctx context.Context) (o host.Overlay, f host.Facts) {
	known, _ := in.Overlay.Get(ctx)
	env, _ := in.Env.Get(ctx)
	o = host.Overlay{Network: known.Network, Subnet: known.Subnet, Masquerade: env.IPMasq}
	if known.Device != "" {
		o.Devices = []string{known.Device}
	}
	if known.Backend != "alloc" {
		for _, l := range known.Peers {
			if s := l.Subnets.V4(); s.IsValid() && known.Network.Contains(s.Addr()) && !s.Overlaps(known.Subnet) {
				o.Peers = append(o.Peers, host.Peer{Subnet: s, PublicIP: l.PublicIP})
			}
		}
	}
	slices.SortFunc(o.Peers, func(a, b host.Peer) int {
		return cmp.Or(a.Subnet.Addr().Compare(b.Subnet.Addr()), cmp.Compare(a.Subnet.Bits(), b.Subnet.Bits()))
	})
	// None overlaps another.
	o.Peers = slices.CompactFunc(o.Peers, func(a, b host.Peer) bool { return a.Subnet.Overlaps(b.Subnet) })
	if daemons, err := otherNetworks(o.Network); err == nil {
		o.Others = daemons
	}
	if known.Backend == "udp" {
		o.Routed = []netip.Prefix{known.Network}
	}
	inv, _ := in.Inventory.Get(ctx)
	f = host.Facts{Uplink: known.Uplink, PublicIP: known.PublicIP, Addr: known.PublicIP, Underlay: inv.Routes}
	return o, f
}

// bridgeOf returns the link that serves this host's subnet, as the bridge of its containers does.
func bridgeOf(s host.Surroundings, o Overlay) (name string) {
	return s.Bridge(o.Subnet, o.Device, o.Uplink).Device
}

func (in *Inputs) readBridge(ctx context.Context) (b Bridge, err error) {
	o, err := in.Overlay.Get(ctx)
	if err != nil {
		return b, err
	}
	s, err := in.Surroundings.Get(ctx)
	if err != nil {
		return b, err
	}
	name := bridgeOf(s, o)
	if name == "" {
		return b, nil
	}
	err = withKernel(func(k *kernel.Kernel) (err error) {
		b.Port, b.Ports, _, err = k.BridgePorts(name)
		return err
	})
	return b, err
}

// describe returns the sentence of a finding with its fields.
func describe(f host.Finding) string {
	return condition.Condition{Text: f.Text, Fields: f.Fields}.String()
}
