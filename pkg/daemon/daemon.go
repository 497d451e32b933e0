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
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/driver"
	"flanneld/pkg/filter"
	"flanneld/pkg/health"
	"flanneld/pkg/host"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lease"
	"flanneld/pkg/nftables"
	"flanneld/pkg/pace"
	"flanneld/pkg/presence"
	"flanneld/pkg/reconcile"
	"flanneld/pkg/registry/etcd"
	"flanneld/pkg/registry/etcdv3"
	"flanneld/pkg/registry/store"
	"flanneld/pkg/subnet"
	"flanneld/pkg/subnetenv"
	"flanneld/pkg/systemd"
	"flanneld/pkg/tunnel"
)

const (
	// rulesWithin bounds what the first look at the packet filter may add to the start.
	rulesWithin = 5 * time.Second
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

// daemon is a running flanneld.
type daemon struct {
	options  Options
	log      *slog.Logger
	kernel   *kernel.Kernel
	choosing sync.Mutex   // one user of tracker at a time
	tracker  host.Tracker // of the uplink
	uplink   atomic.Pointer[host.Uplink]
	choice   *alarm // when the uplink is to be chosen anew
	net      backend.Network
	loop     *reconcile.Loop
	rules    *filter.Filter
	lock     *filter.Lock
	checks   *checks
	registry store.Registry
	health   health.Port
	alive    struct{ loop, follower systemd.Pulse }
	here     *presence.Registration // of the network that is served

	conditions *condition.List // what is wrong now
	fds        *systemd.Descriptors
	tunnels    *tunnel.Driver
	tun        atomic.Pointer[string] // name of the TUN device, where there is one

	files    *subnetenv.Keeper
	former   subnetenv.Env  // of the run before
	claim    lease.Claim    // of the run before
	had      []netip.Prefix // subnets of this host, of runs before
	view     atomic.Pointer[lease.View]
	own      atomic.Pointer[lease.Lease] // with its present revision
	facts    facts
	needs    *needs
	atStart  []host.Need // what it needed then, wherever it lies
	way      sync.Mutex  // to etcd: one looks at a time what is in it
	looping  atomic.Bool // the loop sees to it that no route takes what this host needs
	rivalry  rivalry
	again    *time.Timer // ask once more for the facts, which could not be had; the loop's
	filtered *host.Facts // that the packet filter goes by; the loop's
	said     string      // why the lease cannot follow the uplink
	refused  string      // what of a later network config waits for a restart
	terms    struct {    // of the lease
		sync.Mutex
		now  subnet.Terms
		news chan subnet.Terms
	}
}

// Run is flanneld from its options to its end. It returns an error when it
// cannot do its work, and ctx's when that has ended.
func Run(ctx context.Context, o Options, log *slog.Logger) error {
	etcdv3.DiscardLog()
	d := &daemon{options: o, log: log, conditions: condition.NewList(log), choice: newAlarm(), fds: systemd.NewDescriptors(log)}
	defer d.fds.Close()
	d.files = subnetenv.NewKeeper(o.SubnetFile, d.conditions, log)
	d.terms.news = make(chan subnet.Terms, 1)
	var k *kernel.Kernel
	err := d.persist(ctx, "use the kernel's network objects", pace.Passing, func() (err error) {
		k, err = kernel.New()
		return err
	})
	if err != nil {
		return err
	}
	defer k.Close()
	d.kernel = k
	if o.HealthzPort != 0 {
		err := d.persist(ctx, "answer health checks", pace.Scarce, func() error {
			return d.health.Listen(o.HealthzIP, o.HealthzPort, d.conditions, log)
		})
		if err != nil {
			return withHolder(k, o.HealthzIP, o.HealthzPort, err)
		}
		defer d.health.Close()
	}
	if err := d.persist(ctx, "read what the last run has left", pace.Scarce, d.recall); err != nil {
		return err
	}
	d.tracker = host.Tracker{Selectors: o.Uplink, Reach: k.RouteTo}
	var inv host.Inventory
	err = d.persist(ctx, "list interfaces and routes", pace.Passing, func() (err error) {
		inv, err = d.inventory(false)
		return err
	})
	if err != nil {
		return err
	}
	if err := d.chooseUplink(inv); err != nil {
		return fmt.Errorf("choose the uplink: %w", err)
	}
	if err := d.findEtcd(ctx, inv); err != nil {
		return err
	}
	var etcd *store.Store
	err = d.persist(ctx, "read the files for TLS", pace.Scarce, func() (err error) {
		etcd, err = store.Open(d.options.Etcd, o.EtcdAPI, d.identity(), log, d.conditions)
		return err
	})
	if err != nil {
		return err
	}
	defer etcd.Close()
	if d.net, err = subnet.WaitConfig(ctx, etcd, log, d.conditions, d.admit); err != nil {
		return err
	}
	d.facts.read = d.readFacts
	d.registry = etcd.Registry()
	for {
		log.Info("found the network config", "network", d.net.Network, "subnet_len", d.net.SubnetLen, "backend", d.net.BackendType)
		var another anotherNetwork
		if err := d.serve(ctx); !errors.As(err, &another) {
			return err
		}
		d.net = another.Network
		d.facts.stale()
	}
}

// serve joins the network and follows it until ctx ends.
func (d *daemon) serve(until context.Context) error {
	ctx, cancel := context.WithCancel(until)
	var tasks sync.WaitGroup
	defer func() {
		if d.options.Release && until.Err() != nil { // no follower is left that would make it again
			d.release()
		}
	}()
	defer func() { d.here.Close() }()
	defer tasks.Wait()
	defer cancel()

	first, views, err := d.join(ctx, &tasks)
	if err != nil {
		return err
	}
	d.tunnels = tunnel.NewDriver(ctx, d.net.Network, d.fds, d.log)
	defer d.tunnels.Close()
	defer cancel()
	if d.net.UsesTUN() {
		err := d.persist(ctx, "list interfaces for a TUN device", pace.Passing, func() error {
			_, err := d.chooseTUN()
			return err
		})
		if err != nil {
			return err
		}
	} else {
		d.fds.RemoveAll()
	}
	var objects *kernel.Driver
	err = d.persist(ctx, "watch the kernel", pace.Passing, func() (err error) {
		objects, err = d.kernel.Drive(ctx, kernel.Interest{Scope: dataplane.Scope{Network: d.net.Network}, Uplinks: []string{d.uplink.Load().Iface}})
		return err
	})
	if err != nil {
		return err
	}
	drivers := driver.NewMux(ctx, objects, driver.Part{Driver: d.tunnels, Kinds: []dataplane.Kind{dataplane.KindTunnel}, Makes: dataplane.KindTUN})
	nft := new(nftables.Keeper)
	d.rules, d.lock = d.newFilter(nft)
	wanted := d.net.Backend
	if d.options.Blackhole {
		wanted = backend.WithBlackhole(wanted)
	}
	d.checks = newChecks(d)
	d.loop = reconcile.New(reconcile.Config{
		Driver: drivers, Backend: wanted, Network: d.net.Network, Input: d.input, Before: d.applying, Missing: d.checks.lacks, Rivals: d.contest,
		Conditions: d.conditions, Log: d.log,
	})
	d.looping.Store(true)
	d.conditions.End(routesUnread)
	tasks.Go(func() { d.checks.run(ctx) })
	tasks.Go(func() { d.watch(drivers.Events()) })
	tasks.Go(func() {
		defer nft.Close()
		d.rules.Run(ctx)
	})
	tasks.Go(func() { d.lock.Run(ctx) })
	tasks.Go(func() { d.follow(ctx, first, views) })
	if err := d.loop.Settle(ctx); err != nil {
		return err
	}
	late, cancelled := context.WithTimeout(ctx, rulesWithin)
	for _, tried := range []<-chan struct{}{d.rules.Tried(), d.lock.Tried()} {
		select { // neither success nor a command that hangs is waited for
		case <-tried:
		case <-late.Done():
		}
	}
	cancelled()
	tasks.Go(func() { d.needs.run(ctx) })
	tasks.Go(func() { subnet.FollowConfig(ctx, d.registry, d.conditions, d.admit, d.reconfigure) })
	tasks.Go(func() { d.files.Run(ctx, d.wroteSubnetFile) })
	tasks.Go(func() { systemd.Watchdog(ctx, d.conditions, &d.alive.loop, &d.alive.follower) })
	d.loop.Run(ctx)
	return nil
}

// applying is called before each batch of operations: among the peers may be new ones.
func (d *daemon) applying() {
	d.alive.loop.Beat()
	d.lock.Admit()
}

// recall reads what the run before has left. An error is one for want of descriptors or
// memory: what cannot be read otherwise, this run goes on without.
func (d *daemon) recall() error {
	var unread, unclaimed error
	if d.former, unread = subnetenv.Read(d.options.SubnetFile); pace.Scarce(unread) {
		return unread
	}
	if d.claim, unclaimed = subnetenv.ReadClaim(d.options.SubnetFile); pace.Scarce(unclaimed) {
		return unclaimed
	}
	if unread != nil {
		d.log.Warn("going on without the previous subnet", "err", unread)
	}
	if unclaimed != nil {
		d.log.Warn("going on without a claim on the previous lease", "err", unclaimed)
	}
	d.had = []netip.Prefix{d.former.Subnet, d.claim.Subnet}
	return nil
}

// identity is by what this host finds its lease, and so its store.
func (d *daemon) identity() store.Identity {
	return store.Identity{Last: store.API(d.claim.Store), Owns: func(l lease.Lease) bool {
		return l.PublicIP == d.publicIP() || d.claim.Matches(l)
	}}
}
