// Package daemon wires the rooms together and gives them their order: choose
// the uplink, wait for the network config, lease a subnet, program the kernel,
// write subnet.env, say READY, follow the network.
//
// It decides nothing itself. What a part knows it pushes to those that need it, and the wires are
// in serve. Invariant: waiting for etcd never makes Run return, and after READY nothing does but
// the end of its context.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/backend"
	"flanneld/pkg/checks"
	"flanneld/pkg/condition"
	"flanneld/pkg/filter"
	"flanneld/pkg/health"
	"flanneld/pkg/host"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lease"
	"flanneld/pkg/needs"
	"flanneld/pkg/pace"
	"flanneld/pkg/presence"
	"flanneld/pkg/reconcile"
	"flanneld/pkg/registry/etcd"
	"flanneld/pkg/registry/etcdv3"
	"flanneld/pkg/registry/store"
	"flanneld/pkg/subnet"
	"flanneld/pkg/subnetenv"
	"flanneld/pkg/systemd"
	"flanneld/pkg/terms"
	"flanneld/pkg/tunnel"
	"flanneld/pkg/uplink"
)

// Options are what the command line says.
type Options struct {
	Etcd        etcd.Options
	EtcdAPI     store.API
	EtcdDomain  string // where Etcd.Endpoints come from, by SRV records; empty: they are given
	Uplink      host.Selectors
	SubnetFile  string        // subnet.env
	RenewMargin time.Duration // a lease is renewed this long before its end
	Rules       filter.Options
	Release     bool // give up the lease at exit
	Blackhole   bool // drop what is for our subnet while nobody takes it
	HealthzIP   string
	HealthzPort int // 0: off
}

// daemon is a running flanneld. Fields are set by Run and serve, before anything reads them that
// runs beside these, but for the two at the end.
type daemon struct {
	// Of the process, from the start of Run.
	options    Options
	log        *slog.Logger
	conditions *condition.List // what is wrong now
	kernel     *kernel.Kernel
	health     health.Port
	files      *subnetenv.Keeper
	fds        *systemd.Descriptors
	previous   subnetenv.Env // of the run before
	claim      lease.Claim   // of the run before
	heartbeats struct{ loop, follower, uplink systemd.Heartbeat }

	// Of this host and its way to etcd.
	uplink      *uplink.Watcher
	needs       *needs.Etcd
	staleRoutes *needs.StaleRoutes
	registry    store.Registry

	// Of the network that is served.
	net          backend.Network
	registration *presence.Registration
	terms        *terms.Keeper
	tunnels      *tunnel.Driver
	checks       *checks.Checks
	loop         *reconcile.Loop
	rules        *filter.Filter
	lock         *filter.Lock
	feed         *filter.Feed // of rules and lock

	view atomic.Pointer[lease.View] // follow's: the latest
}

// Run is flanneld from its options to its end. It returns an error when it
// cannot do its work, and ctx's when that has ended.
func Run(ctx context.Context, o Options, log *slog.Logger) error {
	etcdv3.DiscardLog()
	d := &daemon{options: o, log: log, conditions: condition.NewList(log), fds: systemd.NewDescriptors(log)}
	defer d.fds.Close()
	d.files = subnetenv.NewKeeper(o.SubnetFile, d.conditions, log)
	var k *kernel.Kernel
	err := d.retry(ctx, "use the kernel's network objects", pace.IsTemporary, func() (err error) {
		k, err = kernel.New()
		return err
	})
	if err != nil {
		return err
	}
	defer k.Close()
	d.kernel = k
	if o.HealthzPort != 0 {
		err := d.retry(ctx, "answer health checks", pace.IsResourceError, func() error {
			return d.health.Listen(o.HealthzIP, o.HealthzPort, d.conditions, log)
		})
		if err != nil {
			return withPortHolder(k, o.HealthzIP, o.HealthzPort, err)
		}
		defer d.health.Close()
	}
	if err := d.retry(ctx, "read what the last run has left", pace.IsResourceError, d.readPrevious); err != nil {
		return err
	}
	if err := d.findEtcd(ctx); err != nil {
		return err
	}
	var s *store.Store
	err = d.retry(ctx, "read the files for TLS", pace.IsResourceError, func() (err error) {
		s, err = store.Open(d.options.Etcd, o.EtcdAPI, d.identity(), log, d.conditions)
		return err
	})
	if err != nil {
		return err
	}
	defer s.Close()
	if d.net, err = subnet.WaitConfig(ctx, s, log, d.conditions, d.parseConfig); err != nil {
		return err
	}
	d.registry = s.Registry()
	for {
		log.Info("found network config", "network", d.net.V4.Network, "subnet_len", d.net.V4.SubnetLen, "backend", d.net.BackendType)
		var changed subnet.Changed[backend.Network]
		if err := d.serve(ctx); !errors.As(err, &changed) {
			return err
		}
		d.net = changed.Config
	}
}

// readPrevious reads what the run before has left. An error is one for want of descriptors or
// memory: what cannot be read otherwise, this run goes on without.
func (d *daemon) readPrevious() error {
	var unread, unclaimed error
	if d.previous, unread = subnetenv.Read(d.options.SubnetFile); pace.IsResourceError(unread) {
		return unread
	}
	if d.claim, unclaimed = subnetenv.ReadClaim(d.options.SubnetFile); pace.IsResourceError(unclaimed) {
		return unclaimed
	}
	if unread != nil {
		d.log.Warn("cannot read the previous subnet, continuing without it", "err", unread)
	}
	if unclaimed != nil {
		d.log.Warn("cannot read the claim on the previous lease, continuing without it", "err", unclaimed)
	}
	return nil
}

// findEtcd chooses the uplink, finds out where etcd is, and has nothing of an earlier run in the
// way to it.
func (d *daemon) findEtcd(ctx context.Context) error {
	d.uplink = uplink.New(uplink.Config{
		Kernel: d.kernel, Selectors: d.options.Uplink, Had: []netip.Prefix{d.previous.Subnet, d.claim.Subnets.V4},
		Conditions: d.conditions, Log: d.log, Heartbeat: d.heartbeats.uplink.Record,
	})
	var inv host.Inventory
	err := d.retry(ctx, "list interfaces and routes", pace.IsTemporary, func() (err error) {
		inv, err = d.uplink.Inventory(false)
		return err
	})
	if err != nil {
		return err
	}
	if err := d.uplink.Choose(inv); err != nil {
		return fmt.Errorf("choose the uplink: %w", err)
	}
	d.staleRoutes = &needs.StaleRoutes{
		Kernel: d.kernel, Network: d.previous.Network, Subnet: d.previous.Subnet, Conditions: d.conditions, Log: d.log,
	}
	d.staleRoutes.RemoveFor(inv.Gateways())
	o, domain := &d.options.Etcd, d.options.EtcdDomain
	if domain != "" {
		d.staleRoutes.WarnAbout(needs.NameServers())
		if o.Endpoints, err = store.Resolve(ctx, domain, d.log, d.conditions); err != nil {
			return err
		}
	}
	d.needs = needs.NewEtcd(*o, d.uplink.Refresh)
	if domain == "" && d.needs.Named() {
		d.staleRoutes.WarnAbout(needs.NameServers())
	}
	o.Connecting = func(a netip.Addr) {
		d.needs.Connecting(a)
		d.staleRoutes.RemoveFor(d.needs.Needs())
	}
	d.uplink.SetNeeds(d.needs.Needs, inv)
	d.staleRoutes.RemoveFor(d.uplink.Needs())
	return nil
}

// identity is by what this host finds its lease, and so its store.
func (d *daemon) identity() store.Identity {
	return store.Identity{Last: store.API(d.claim.Store), Owns: func(l lease.Lease) bool {
		return l.PublicIP == d.uplink.PublicIP() || d.claim.Matches(l)
	}}
}

// withPortHolder adds to an error of listening for health checks who has the port.
func withPortHolder(k *kernel.Kernel, ip string, port int, err error) error {
	addr, parseErr := netip.ParseAddr(ip)
	if !errors.Is(err, unix.EADDRINUSE) || parseErr != nil {
		return err
	}
	holders, _ := k.Holders("tcp", netip.AddrPortFrom(addr, uint16(port)))
	if len(holders) == 0 {
		return err
	}
	return fmt.Errorf("%w: %s has it; choose another -healthz-port", err, holders[0])
}
