package doctor

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry/etcd"
	"flanneld/pkg/registry/store"
	"flanneld/pkg/subnetenv"
)

const (
	// Limit limits the time of a run.
	Limit = 9 * time.Second
	// localLimit limits the reading of one input of this host, and remoteLimit that of one from
	// elsewhere. Both fit into Limit one after the other.
	localLimit  = 3 * time.Second
	remoteLimit = 4 * time.Second
)

// Options are the settings of this host's daemon, which a run needs as well.
type Options struct {
	Etcd       etcd.Options
	API        store.API
	Domain     string // whose SRV records name the endpoints of etcd; empty if they are given
	Uplink     host.Selectors
	SubnetFile string
	Source     string // where the settings are from, for people
}

// Inputs are everything that checks read, each at most once in a run. Tests use Given and Missing
// values.
type Inputs struct {
	Options Options
	Redact  *Redactor
	Now     time.Time // when the run began

	Daemons   *Input[[]Daemon]        // flanneld processes of this network namespace
	Env       *Input[subnetenv.Env]   // subnet file
	Claim     *Input[lease.Claim]     // the file beside it
	Endpoints *Input[[]Endpoint]      // each endpoint of etcd
	Overlay   *Input[Overlay]         // this host's part of the network
	Inventory *Input[host.Inventory]  // interfaces and routes of the underlay
	Device    *Input[dataplane.State] // the overlay's device, with all that is on it
}

// NewInputs returns the inputs of this host. ctx ends the reading of all of them.
func NewInputs(ctx context.Context, o Options) *Inputs {
	in := &Inputs{Options: o, Redact: NewRedactor(o.Etcd.Password), Now: time.Now()}
	in.Daemons = newInput(ctx, "list of processes", localLimit, listDaemons)
	in.Env = newInput(ctx, "subnet file", localLimit, func(context.Context) (subnetenv.Env, error) { return subnetenv.Read(o.SubnetFile) })
	in.Claim = newInput(ctx, "claim beside the subnet file", localLimit, func(context.Context) (lease.Claim, error) { return subnetenv.ReadClaim(o.SubnetFile) })
	in.Endpoints = newInput(ctx, "etcd", remoteLimit, func(ctx context.Context) ([]Endpoint, error) { return askEtcd(ctx, o) })
	in.Overlay = newInput(ctx, "network of this host", remoteLimit+localLimit, in.findOverlay)
	in.Inventory = newInput(ctx, "interfaces and routes", localLimit, func(context.Context) (inv host.Inventory, err error) {
		err = withKernel(func(k *kernel.Kernel) (err error) {
			inv, err = k.Inventory(kernel.Wanted{Routes: true})
			return err
		})
		return inv, err
	})
	in.Device = newInput(ctx, "devices", localLimit, func(context.Context) (dataplane.State, error) { return readDevices() })
	return in
}

// withKernel calls f with a connection to the kernel.
func withKernel(f func(*kernel.Kernel) error) error {
	k, err := kernel.New()
	if err != nil {
		return err
	}
	defer k.Close()
	return f(k)
}

// readDevices reads the links with names of flanneld's, and the objects on them.
func readDevices() (have dataplane.State, err error) {
	err = withKernel(func(k *kernel.Kernel) error {
		names, err := k.LinkNames()
		if err != nil {
			return err
		}
		scope := dataplane.Scope{}
		for _, name := range names {
			if dataplane.IsDeviceName(name) {
				scope.Links = append(scope.Links, name)
			}
		}
		have, err = k.Snapshot(scope)
		return err
	})
	return have, err
}

// Overlay is this host's part of the network, as far as it is known: fields may be zero.
type Overlay struct {
	Network  netip.Prefix
	Subnet   netip.Prefix // this host's
	Backend  string       // type
	Device   string       // empty for backends without one
	VNI      int
	Port     uint16 // of the tunnel; 0 if the backend has none
	MTU      int    // of containers
	Uplink   string
	PublicIP netip.Addr
	Peers    []lease.Lease
	Config   *backend.Network // nil if no valid one was found
}

// findOverlay collects what is known of the network: from the daemon, the files, etcd and the kernel.
func (in *Inputs) findOverlay(ctx context.Context) (o Overlay, err error) {
	env, err := in.Env.Get(ctx)
	if err == nil {
		o.Network, o.Subnet = env.Network, env.Subnet
	}
	claim, _ := in.Claim.Get(ctx)
	if !o.Subnet.IsValid() {
		o.Subnet = claim.Subnets.V4()
	}
	o.PublicIP = claim.Held.PublicIP
	if o.Backend = claim.Held.BackendType; o.Backend == "" && claim.Subnets.IsValid() {
		o.Backend = "udp"
	}
	endpoints, _ := in.Endpoints.Get(ctx)
	o.fromStore(endpoints, claim)
	if have, derr := in.Device.Get(ctx); derr == nil {
		o.fromDevice(have)
	}
	if !o.Network.IsValid() {
		if err == nil {
			err = errors.New("neither the subnet file nor etcd names a network")
		}
		return o, err
	}
	return o, nil
}

// fromStore adds what the network config and the leases in etcd have.
func (o *Overlay) fromStore(endpoints []Endpoint, claim lease.Claim) {
	s := network(endpoints, store.API(claim.Store))
	if s == nil {
		return
	}
	if n, err := backend.ParseNetwork(s.Config); err == nil {
		o.Config, o.Network, o.Backend = &n, n.V4.Network, n.BackendType
		_, link := n.Link(host.Facts{}, lease.Lease{})
		o.Device, o.VNI, o.Port = n.FixedDevice(), link.VNI, uint16(link.Port)
	}
	for _, l := range s.Leases {
		if l.Subnets.V4() != o.Subnet {
			o.Peers = append(o.Peers, l)
		}
	}
}

// fromDevice adds what the kernel has: the device of the network.
func (o *Overlay) fromDevice(have dataplane.State) {
	for name, l := range have.Links {
		if is, _ := have.DeviceOf(o.Network, name); !is || !o.Network.IsValid() {
			continue
		}
		o.Device, o.MTU = name, l.MTU
		if l.Kind == dataplane.KindVXLAN {
			o.Backend, o.VNI, o.Port, o.Uplink = "vxlan", l.VNI, uint16(l.Port), l.Parent
		}
	}
}

// and joins words for people.
func and(words []string) string { return strings.Join(words, ", ") }
