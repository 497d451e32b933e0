// Package daemon wires the rooms together and gives them their order: choose
// the uplink, wait for the network config, lease a subnet, program the kernel,
// write subnet.env, say READY, follow the network.
//
// It decides nothing about leases or the kernel itself. Invariant: waiting for
// etcd never makes Run return, and after READY nothing does but the end of its
// context.
package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"flanneld/pkg/backend"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lease"
	"flanneld/pkg/netconf"
	"flanneld/pkg/reconcile"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcdv2"
	"flanneld/pkg/subnet"
	"flanneld/pkg/subnetenv"
)

// leaseTTL is what every generation of flannel uses.
const leaseTTL = 24 * time.Hour

// Options are what the command line says.
type Options struct {
	Etcd        etcdv2.Options
	Uplink      host.Selectors
	SubnetFile  string        // subnet.env
	RenewMargin time.Duration // a lease is renewed this long before its end
	IPMasq      bool          // echoed in subnet.env
	HealthzIP   string
	HealthzPort int // 0: off
}

// network is what the network config says, once it is known.
type network struct {
	netconf.Config
	backend.Backend
}

// daemon is a running flanneld.
type daemon struct {
	options Options
	log     *slog.Logger
	kernel  *kernel.Kernel
	uplink  host.Uplink
	net     network
	loop    *reconcile.Loop
	health  health

	view  atomic.Pointer[lease.View]
	facts facts
	file  sync.Mutex // one writer of the subnet file at a time
}

// Run is flanneld from its options to its end. It returns an error when it
// cannot do its work, and ctx's when that has ended.
func Run(ctx context.Context, o Options, log *slog.Logger) error {
	d := &daemon{options: o, log: log}
	if o.HealthzPort != 0 {
		h, err := d.health.start(net.JoinHostPort(o.HealthzIP, strconv.Itoa(o.HealthzPort)))
		if err != nil {
			return err
		}
		defer h.Close()
	}
	k, err := kernel.New()
	if err != nil {
		return err
	}
	defer k.Close()
	d.kernel = k
	if err := d.chooseUplink(); err != nil {
		return err
	}
	reg, err := etcdv2.New(o.Etcd)
	if err != nil {
		return err
	}
	defer reg.Close()

	if d.net, err = subnet.WaitConfig(ctx, reg, log, parseNetwork); err != nil {
		return err
	}
	log.Info("found the network config", "network", d.net.Network, "subnet_len", d.net.SubnetLen, "backend", d.net.BackendType)
	d.facts.read = d.readFacts
	return d.serve(ctx, reg)
}

func parseNetwork(raw []byte) (network, error) {
	c, err := netconf.Parse(raw)
	if err != nil {
		return network{}, err
	}
	b, err := backend.New(c)
	return network{c, b}, err
}

func (d *daemon) chooseUplink() error {
	inv, err := d.kernel.Inventory()
	if err != nil {
		return err
	}
	d.uplink, err = host.Choose(d.options.Uplink, inv, d.kernel.RouteTo)
	if err != nil {
		return fmt.Errorf("choose the uplink: %w", err)
	}
	d.log.Info("chose the uplink", "iface", d.uplink.Iface, "addr", d.uplink.Addr, "by", d.uplink.Why)
	return nil
}

// publicIP is the address that peers send to.
func (d *daemon) publicIP() netip.Addr {
	if ip := d.options.Uplink.PublicIP; ip.IsValid() {
		return ip
	}
	return d.uplink.Addr
}

func (d *daemon) readFacts() (host.Facts, error) {
	inv, err := d.kernel.Inventory()
	if err != nil {
		return host.Facts{}, err
	}
	return d.uplink.Facts(inv, d.publicIP(), d.net.Network)
}

// serve joins the network and follows it until ctx ends.
func (d *daemon) serve(ctx context.Context, reg registry.Registry) error {
	ctx, cancel := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()

	lo := d.leaseOptions(reg)
	own, listing, err := subnet.Acquire(ctx, lo, d.attrs)
	if err != nil {
		return err
	}
	view := lease.NewView(own, listing.Leases, true)
	d.view.Store(&view)

	events, err := d.kernel.Watch(ctx, kernel.Interest{Scope: dataplane.Scope{Network: d.net.Network}, Uplinks: []string{d.uplink.Iface}})
	if err != nil {
		return err
	}
	p := &plane{
		kernel: d.kernel, events: events, uplink: d.uplink.Iface, network: d.net.Network,
		log: d.log, store: newFDStore(d.log),
		ctx: ctx, lost: func() { d.loop.Trigger() }, tunnels: map[string]*carrier{},
	}
	defer p.close()
	defer cancel()
	d.loop = reconcile.New(reconcile.Config{
		Kernel:  p,
		Backend: d.net.Backend,
		Network: d.net.Network,
		Input:   d.input,
		Log:     d.log,
	})
	tasks.Go(func() { d.watch(events.Events()) })
	tasks.Go(func() { subnet.Follow(ctx, lo, own, listing, d.follow) })
	if err := d.loop.Settle(ctx); err != nil {
		return err
	}
	if _, err := d.writeSubnetFile(); err != nil {
		return err
	}
	d.health.ready.Store(true)
	if _, err := sd.SdNotify(false, sd.SdNotifyReady); err != nil {
		d.log.Warn("cannot tell systemd that the network is ready", "err", err)
	}
	d.log.Info("ready", "subnet", own.Subnet, "public_ip", own.PublicIP, "peers", len(d.view.Load().Peers))
	d.loop.Run(ctx)
	return nil
}

func (d *daemon) leaseOptions(reg registry.Registry) subnet.Options {
	previous, err := subnetenv.Read(d.options.SubnetFile)
	if err != nil {
		d.log.Warn("going on without the previous subnet", "err", err)
	}
	c := d.net.Config
	return subnet.Options{
		Registry: reg,
		Pool:     lease.Pool{Network: c.Network, SubnetLen: c.SubnetLen, Min: c.SubnetMin, Max: c.SubnetMax},
		PublicIP: d.publicIP(),
		Previous: previous.Subnet,
		TTL:      leaseTTL,
		Margin:   d.options.RenewMargin,
		Log:      d.log,
		Report:   func(s subnet.Status) { d.health.away.Store(&s.AwaySince) },
	}
}

// attrs gives what the lease says of this host.
func (d *daemon) attrs(previous lease.Attrs) (lease.Attrs, error) {
	f, err := d.readFacts()
	if err != nil {
		return lease.Attrs{}, err
	}
	return d.net.Attrs(f, previous)
}

// watch turns the kernel's events into passes until they end.
func (d *daemon) watch(events <-chan kernel.Event) {
	for e := range events {
		d.log.Debug("the kernel reports changes", "of", e)
		if e&(kernel.Uplink|kernel.Overflow) != 0 {
			d.facts.stale()
			d.updateSubnetFile()
		}
		d.loop.Trigger()
	}
}

// follow takes a new view from the registry.
func (d *daemon) follow(v lease.View) {
	before := d.view.Swap(&v)
	d.loop.Trigger()
	if d.health.ready.Load() && before.Own.Subnet != v.Own.Subnet {
		d.log.Error("this host has another subnet now", "subnet", v.Own.Subnet, "before", before.Own.Subnet)
		d.updateSubnetFile()
	}
}

// updateSubnetFile follows a change of the subnet or the MTU after READY. Docker
// reads the file at its start only.
func (d *daemon) updateSubnetFile() {
	if !d.health.ready.Load() {
		return
	}
	switch changed, err := d.writeSubnetFile(); {
	case err != nil:
		d.log.Warn("the subnet file stays as it is", "err", err)
	case changed:
		d.log.Warn("restart docker so that it takes over what has changed", "path", d.options.SubnetFile)
	}
}

// input is what the wanted state follows from now.
func (d *daemon) input() (reconcile.Input, error) {
	f, err := d.facts.latest()
	if err != nil {
		return reconcile.Input{}, err
	}
	return reconcile.Input{Facts: f, View: *d.view.Load()}, nil
}

// writeSubnetFile makes the file tell the subnet and the MTU.
func (d *daemon) writeSubnetFile() (changed bool, err error) {
	d.file.Lock()
	defer d.file.Unlock()
	f, err := d.facts.latest()
	if err != nil {
		return false, err
	}
	env := subnetenv.Env{
		Network: d.net.Network,
		Subnet:  d.view.Load().Own.Subnet,
		MTU:     d.net.MTU(f),
		IPMasq:  d.options.IPMasq,
	}
	changed, err = subnetenv.Write(d.options.SubnetFile, env)
	if changed {
		d.log.Info("wrote the subnet file", "path", d.options.SubnetFile, "subnet", env.Subnet, "mtu", env.MTU)
	}
	return changed, err
}
