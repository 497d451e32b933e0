// Package daemon connects the rooms and defines their order: choose the uplink, wait for the
// network config, lease a subnet, program the kernel, write subnet.env, notify READY, follow the
// network.
//
// It makes no decisions. Each room pushes its values to those that need them, and serve connects
// them. Invariant: Run never returns because etcd is unreachable, and after READY only when its
// context ends.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"flanneld/pkg/api"
	"flanneld/pkg/backend"
	"flanneld/pkg/checks"
	"flanneld/pkg/condition"
	"flanneld/pkg/filter"
	"flanneld/pkg/host"
	"flanneld/pkg/iptables"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lease"
	"flanneld/pkg/needs"
	"flanneld/pkg/pace"
	"flanneld/pkg/presence"
	"flanneld/pkg/prober"
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

// Options are the settings of the command line.
type Options struct {
	Etcd        etcd.Options
	EtcdAPI     store.API
	EtcdDomain  string // domain whose SRV records name Etcd.Endpoints; empty if they are set
	Uplink      host.Selectors
	SubnetFile  string        // path of subnet.env
	RenewMargin time.Duration // a lease is renewed this long before its end
	Rules       filter.Options
	Release     bool           // release the lease at exit
	Blackhole   bool           // drop packets to our subnet while no bridge has it
	Probes      time.Duration  // time in which a few peers are pinged; 0 means none are
	Healthz     netip.AddrPort // where health checks are answered; port 0 means nowhere
	Status      netip.AddrPort // where the status is served over TCP; port 0 means nowhere
	PerPeer     bool           // metrics of each peer
	Version     string         // of the program, for the status
}

// daemon is a running flanneld. Run and serve set its fields before they start goroutines that read
// them, except for the last ones.
type daemon struct {
	// Process, set at the start of Run.
	options    Options
	log        *slog.Logger
	conditions *condition.List
	kernel     *kernel.Kernel
	iptables   *iptables.Tools
	state      *api.State
	started    time.Time
	files      *subnetenv.Keeper
	fds        *systemd.Descriptors
	previous   subnetenv.Env // of the previous run
	claim      lease.Claim   // of the previous run
	heartbeats struct{ loop, follower, uplink systemd.Heartbeat }

	// This host and its connection to etcd.
	uplink      *uplink.Watcher
	needs       *needs.Etcd
	staleRoutes *needs.StaleRoutes
	registry    store.Registry

	// The network that is served.
	net          backend.Network
	registration *presence.Registration
	terms        *terms.Keeper
	tunnels      *tunnel.Driver
	checks       *checks.Checks
	prober       *prober.Prober
	loop         *reconcile.Loop
	feed         *filter.Feed // and the packet filter and the underlay lock that it feeds

	view    atomic.Pointer[lease.View]   // the latest view
	leases  atomic.Pointer[subnet.Stats] // of the follower
	pool    atomic.Pointer[lease.Pool]   // subnets that are leased from now on
	repairs repairs
	bridge  atomic.Pointer[bridgeRead] // the last reading; nil if it is unknown
	parts   atomic.Pointer[parts]      // of which requests are answered
}

// Run runs flanneld. It returns an error if it cannot work, and ctx's error when that ends.
func Run(ctx context.Context, o Options, log *slog.Logger) error {
	etcdv3.DiscardLog()
	d := &daemon{options: o, log: log, conditions: condition.NewList(log), fds: systemd.NewDescriptors(log), started: time.Now()}
	d.state = api.NewState(d.conditions)
	d.prober = prober.New(prober.Config{Interval: o.Probes, Conditions: d.conditions})
	defer d.fds.Close()
	d.files = subnetenv.NewKeeper(o.SubnetFile, d.conditions, log)
	k, err := retry(ctx, d, "use the kernel's network objects", pace.IsTemporary, kernel.New)
	if err != nil {
		return err
	}
	defer k.Close()
	d.kernel = k
	d.iptables = iptables.NewTools(o.Rules.Resync)
	go d.iptables.Search() // while etcd is asked; it ends by itself
	stop, err := d.answer(ctx)
	if err != nil {
		return err
	}
	defer stop()
	if d.previous, err = readPrevious(ctx, d, subnetenv.Read); err != nil {
		return err
	}
	if d.claim, err = readPrevious(ctx, d, subnetenv.ReadClaim); err != nil {
		return err
	}
	if err := d.findEtcd(ctx); err != nil {
		return err
	}
	d.expose()
	s, err := retry(ctx, d, "read the files for TLS", pace.IsResourceError, func() (*store.Store, error) {
		return store.Open(d.options.Etcd, o.EtcdAPI, d.identity(), log, d.conditions)
	})
	if err != nil {
		return err
	}
	defer s.Close()
	if d.net, err = subnet.WaitConfig(ctx, s, log, d.conditions, d.state.SetEtcdDown, d.parseConfig); err != nil {
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

// readPrevious reads a file of the previous run. It retries for lack of descriptors or memory, until
// ctx ends; other errors are logged, and the run continues without the file.
func readPrevious[T any](ctx context.Context, d *daemon, read func(path string) (T, error)) (T, error) {
	v, err := retry(ctx, d, "read what the last run has left", pace.IsResourceError, func() (T, error) {
		return read(d.options.SubnetFile)
	})
	if err != nil && ctx.Err() == nil {
		d.log.Warn("cannot read a file of the previous run, continuing without it", "err", err)
	}
	return v, ctx.Err()
}

// findEtcd chooses the uplink, finds the addresses of etcd, and removes stale routes to them.
func (d *daemon) findEtcd(ctx context.Context) error {
	d.uplink = d.newUplink()
	inv, err := retry(ctx, d, "list interfaces and routes", pace.IsTemporary, func() (host.Inventory, error) {
		return d.uplink.Inventory(false)
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

func (d *daemon) newUplink() *uplink.Watcher {
	return uplink.New(uplink.Config{
		Kernel: d.kernel, Selectors: d.options.Uplink, Had: []netip.Prefix{d.previous.Subnet, d.claim.Subnets.V4()},
		Conditions: d.conditions, Log: d.log, Heartbeat: d.heartbeats.uplink.Record,
		Moved: func() { d.registry.Reconnect() },
	})
}

// identity returns how to recognise this host's lease, and with it the store to use.
func (d *daemon) identity() store.Identity {
	return store.Identity{Last: store.API(d.claim.Store), Owns: func(l lease.Lease) bool {
		return l.PublicIP == d.uplink.PublicIP() || d.claim.Matches(l)
	}}
}

// retry calls f until it succeeds, fails with a permanent error, or ctx ends. It returns f's last
// results.
func retry[T any](ctx context.Context, d *daemon, operation string, temporary func(error) bool, f func() (T, error)) (T, error) {
	defer d.conditions.End(startCondition(operation))
	for backoff := (pace.Backoff{Initial: 20 * time.Millisecond, Max: time.Second}); ; {
		v, err := tryOnce(d, operation, temporary, f)
		if !errors.Is(err, subnet.ErrTryAgain) {
			return v, err
		}
		if err := pace.Sleep(ctx, backoff.Failed()); err != nil {
			return v, err
		}
	}
}

// tryOnce calls f. A temporary error is a condition until the next call, and is returned as a
// subnet.ErrTryAgain.
func tryOnce[T any](d *daemon, operation string, temporary func(error) bool, f func() (T, error)) (T, error) {
	v, err := f()
	if err == nil || !temporary(err) {
		d.conditions.End(startCondition(operation))
		return v, err
	}
	if !errors.As(err, &condition.Reported{}) {
		d.conditions.Set(condition.Condition{
			ID: startCondition(operation), Severity: condition.Severe, Text: "operation failed, will retry", Fields: []any{"operation", operation, "err", err},
		})
	}
	return v, fmt.Errorf("%w: %w", subnet.ErrTryAgain, err)
}

// startCondition returns the ID of the condition that an operation fails.
func startCondition(operation string) string { return "start/" + operation }
