package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"flanneld/pkg/api"
	"flanneld/pkg/backend"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry/etcd"
	"flanneld/pkg/registry/store"
	"flanneld/pkg/status"
	"flanneld/pkg/subnetenv"
)

const (
	// Limit limits the time of a run.
	Limit = 9 * time.Second
	// localLimit limits the reading of one input of this host, and remoteLimit that of one from
	// elsewhere. What depends on both fits into Limit.
	localLimit  = 3 * time.Second
	remoteLimit = 3500 * time.Millisecond
	// answerLimit is the time in which a daemon that works answers.
	answerLimit = 2500 * time.Millisecond
	// laterDelay is the time between two readings of the daemon's status, in which it repairs what
	// it can.
	laterDelay = 2 * time.Second
)

// Options are the settings of this host's daemon, which a run needs as well.
type Options struct {
	Etcd       etcd.Options
	API        store.API
	Domain     string // whose SRV records name the endpoints of etcd; empty if they are given
	DomainErr  error  // why they name none
	Uplink     host.Selectors
	SubnetFile string
	Status     netip.AddrPort // where the daemon serves its status; invalid if it does not
	// RenewMargin is the time before the end of a lease at which it is renewed.
	RenewMargin time.Duration
	Secrets     []string // known ones, besides those in Etcd
	Source      string   // where the settings are from, for people
}

// Inputs are everything that checks read, each at most once in a run. Tests use Given and Missing
// values.
type Inputs struct {
	Options Options
	Redact  *Redactor
	Now     time.Time // when the run began

	Daemons *Input[[]Daemon] // flanneld processes of this network namespace
	Answer  *Input[Answer]   // how the daemon reacts to a request
	Status  *Input[status.Document]
	Later   *Input[status.Document] // the same, laterDelay after Status

	Env   *Input[subnetenv.Env] // subnet file
	Claim *Input[lease.Claim]   // the file beside it

	Endpoints *Input[[]Endpoint]  // each endpoint of etcd
	Elsewhere *Input[[]Place]     // other places of a network config
	OwnLease  *Input[lease.Lease] // this host's lease in etcd, with its time to live
	Overlay   *Input[Overlay]     // this host's part of the network
	Paths     *Input[Paths]       // to the other hosts

	Inventory *Input[host.Inventory]  // interfaces, and routes of the underlay
	Device    *Input[dataplane.State] // the overlay's device, with all that is on it

	hostInputs
}

// NewInputs returns the inputs of this host. ctx ends the reading of all of them.
func NewInputs(ctx context.Context, o Options) *Inputs {
	in := &Inputs{Options: o, Redact: NewRedactor(append(o.Secrets, secretsOf(o.Etcd)...)...), Now: time.Now()}
	client := api.Dial(o.SubnetFile)
	in.Daemons = newInput(ctx, "list of processes", localLimit, listDaemons)
	in.Answer = newInput(ctx, "daemon", answerLimit+time.Second, func(ctx context.Context) (Answer, error) { return askDaemon(ctx, client) })
	in.Status = newInput(ctx, "status of the daemon", answerLimit, func(ctx context.Context) (status.Document, error) { return readStatus(ctx, client) })
	in.Later = newInput(ctx, "status of the daemon", laterDelay+answerLimit, func(ctx context.Context) (d status.Document, err error) {
		if _, err := in.Status.Get(ctx); err != nil {
			return d, err
		}
		select {
		case <-time.After(laterDelay):
		case <-ctx.Done():
		}
		return readStatus(ctx, client)
	})
	in.Env = newInput(ctx, "subnet file", localLimit, func(context.Context) (subnetenv.Env, error) { return readEnv(o.SubnetFile) })
	in.Claim = newInput(ctx, "claim beside the subnet file", localLimit, func(context.Context) (lease.Claim, error) { return subnetenv.ReadClaim(o.SubnetFile) })
	in.Endpoints = newInput(ctx, "etcd", remoteLimit, func(ctx context.Context) ([]Endpoint, error) { return askEtcd(ctx, o) })
	in.Elsewhere = newInput(ctx, "etcd", remoteLimit, in.findElsewhere)
	in.OwnLease = newInput(ctx, "lease", 2*remoteLimit, in.readOwnLease)
	in.Overlay = newInput(ctx, "network of this host", remoteLimit+time.Second, in.findOverlay)
	in.Paths = newInput(ctx, "other hosts", Limit, in.readPaths)
	in.Inventory = newInput(ctx, "interfaces and routes", localLimit, func(context.Context) (inv host.Inventory, err error) {
		err = withKernel(func(k *kernel.Kernel) (err error) {
			inv, err = k.Inventory(kernel.Wanted{Routes: true})
			return err
		})
		return inv, err
	})
	in.Device = newInput(ctx, "devices", localLimit, func(context.Context) (dataplane.State, error) { return readDevices() })
	in.addHostInputs(ctx)
	return in
}

// readStatus reads the status of the daemon.
func readStatus(ctx context.Context, client *api.Client) (status.Document, error) {
	d, err := client.Status(ctx)
	if errors.Is(err, api.ErrNotRunning) {
		err = errDown
	}
	return d, err
}

// askDaemon sends a request to the daemon.
func askDaemon(ctx context.Context, client *api.Client) (Answer, error) {
	limited, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	_, err := client.Get(limited, "/healthz")
	switch {
	case err == nil:
		return answered, nil
	case errors.Is(err, api.ErrNotRunning):
		return nobody, nil
	case limited.Err() != nil && ctx.Err() == nil:
		return silent, nil
	}
	return nobody, err
}

// maxEnv limits the length of a subnet file, in bytes.
const maxEnv = 64 << 10

// readEnv reads the subnet file with everything that docker reads from it.
func readEnv(path string) (subnetenv.Env, error) {
	e, err := subnetenv.Read(path)
	if err != nil {
		return e, err
	}
	b, err := readStart(path, maxEnv)
	if errors.Is(err, fs.ErrNotExist) {
		return e, nil
	}
	for _, kv := range environment(string(b)) {
		switch k, v, _ := strings.Cut(strings.TrimPrefix(kv, "export "), "="); k {
		case "FLANNEL_MTU":
			e.MTU, _ = strconv.Atoi(v) // 0 is unknown
		case "FLANNEL_IPMASQ":
			e.IPMasq = v == "true"
		}
	}
	return e, err
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

	raw []byte // the network config
}

// direct reports whether packets to some hosts may leave by the uplink without a tunnel. If that is
// not known, they may not.
func (o Overlay) direct() bool {
	var options struct{ Backend struct{ DirectRouting bool } }
	return o.Config != nil && json.Unmarshal(o.raw, &options) == nil && options.Backend.DirectRouting
}

// findOverlay collects what is known of the network: from the daemon, the files, etcd and the kernel.
func (in *Inputs) findOverlay(ctx context.Context) (o Overlay, err error) {
	if d, derr := in.Status.Get(ctx); derr == nil {
		defer func() { o.fromStatus(d) }() // knows better
		if d.Network.CIDR.IsValid() {
			o.Network = d.Network.CIDR
		}
	}
	env, err := in.Env.Get(ctx)
	if err == nil && !o.Network.IsValid() {
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
	if s := in.store(ctx, endpoints); s != nil {
		o.fromStore(*s)
	}
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
func (o *Overlay) fromStore(s Store) {
	if n, err := backend.ParseNetwork(s.Config); err == nil {
		_, link := n.Link(host.Facts{}, lease.Lease{})
		o.Config, o.raw, o.Network, o.Backend = &n, s.Config, n.V4.Network, n.BackendType
		o.Device, o.VNI, o.Port = n.FixedDevice(), link.VNI, uint16(link.Port)
	}
	for _, l := range s.Leases {
		if l.Subnets.V4() != o.Subnet && !l.Leaving {
			o.Peers = append(o.Peers, l)
		}
	}
}

// fromStatus sets what the daemon knows.
func (o *Overlay) fromStatus(d status.Document) {
	o.Network, o.Subnet = cmp.Or(d.Network.CIDR, o.Network), cmp.Or(d.Lease.Subnet, o.Subnet)
	o.Backend, o.MTU = cmp.Or(d.Backend.Type, o.Backend), cmp.Or(d.Backend.MTU, o.MTU)
	o.Device = cmp.Or(d.Backend.Device, o.Device)
	o.Uplink, o.PublicIP = cmp.Or(d.Uplink.Interface, o.Uplink), cmp.Or(d.Uplink.PublicIP, o.PublicIP)
	if o.Peers != nil {
		return
	}
	for i := range d.Peers { // etcd is away
		p := &d.Peers[i]
		o.Peers = append(o.Peers, lease.Lease{Subnets: lease.SubnetsOf(p.Subnet), Attrs: lease.Attrs{PublicIP: p.PublicIP}})
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
