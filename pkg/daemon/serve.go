package daemon

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/checks"
	"flanneld/pkg/condition"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/driver"
	"flanneld/pkg/filter"
	"flanneld/pkg/firewall"
	"flanneld/pkg/firewalld"
	"flanneld/pkg/host"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lease"
	"flanneld/pkg/nftables"
	"flanneld/pkg/pace"
	"flanneld/pkg/presence"
	"flanneld/pkg/reconcile"
	"flanneld/pkg/subnet"
	"flanneld/pkg/subnetenv"
	"flanneld/pkg/systemd"
	"flanneld/pkg/terms"
	"flanneld/pkg/tunnel"
)

// rulesTimeout limits the time that the first sync of the packet filter may add to the start.
const rulesTimeout = 5 * time.Second

// serve joins the network and follows it until ctx ends. Data flows:
//
//	drivers' events -> uplink -> facts  -> terms, files, feed, loop, checks, prober
//	                          -> events -> checks, loop (see handleEvent)
//	follower        -> views            -> feed, loop, checks, prober, uplink, files (see followViews)
//	config          -> pool, choice     -> terms, uplink, rules (see applyConfig)
//	loop            -> rivals, missing  -> terms, checks
//	                -> skipped          -> prober
//	loop, feed      -> repairs          -> status
//	checks          -> bridge           -> status
//	terms           -> changes          -> follower
func (d *daemon) serve(until context.Context) error {
	ctx, cancel := context.WithCancel(until)
	var tasks sync.WaitGroup
	defer func() {
		d.registration.Close()
		d.registration = nil
	}()
	defer func() {
		if d.options.Release && until.Err() != nil { // the follower, which would renew it, has ended
			d.release()
		}
	}()
	nft := new(nftables.Keeper)
	defer nft.Close()
	defer tasks.Wait()
	defer cancel()
	events, err := d.wire(ctx, nft)
	if err != nil {
		return err
	}
	defer d.tunnels.Close()
	defer d.terms.Close()
	defer cancel()
	tasks.Go(func() {
		d.uplink.Run(ctx, events, d.handleEvent, d.terms.SetFacts, d.setMTU, d.feed.SetFacts, d.loop.SetFacts, d.checks.SetFacts, d.prober.SetFacts)
	})
	first, views, err := d.join(ctx, &tasks)
	if err != nil {
		return err
	}
	if !d.net.UsesTUN() {
		d.fds.RemoveAll()
	} else if _, err := retry(ctx, d, "list interfaces for a TUN device", pace.IsTemporary, d.chooseTUN); err != nil {
		return err
	}
	d.staleRoutes.Stop() // from here on the loop ensures that no route hides an address that this host needs
	d.setView(first)
	tasks.Go(func() { d.checks.Run(ctx) })
	tasks.Go(func() { d.feed.Rules.Run(ctx) })
	tasks.Go(func() { d.feed.Lock.Run(ctx) })
	tasks.Go(func() { d.followViews(ctx, views) })
	if err := d.loop.Settle(ctx); err != nil {
		return err
	}
	late, cancelled := context.WithTimeout(ctx, rulesTimeout)
	for _, tried := range []<-chan struct{}{d.feed.Rules.Tried(), d.feed.Lock.Tried()} {
		select { // one attempt, successful or not, but no longer than the timeout
		case <-tried:
		case <-late.Done():
		}
	}
	cancelled()
	tasks.Go(func() { d.needs.Run(ctx) })
	tasks.Go(func() { d.prober.Run(ctx) })
	tasks.Go(func() { subnet.FollowConfig(ctx, d.registry, d.conditions, d.parseConfig, d.applyConfig) })
	tasks.Go(func() { d.files.Run(ctx, d.onSubnetFile) })
	tasks.Go(func() {
		systemd.Watchdog(ctx, d.conditions, &d.heartbeats.loop, &d.heartbeats.follower, &d.heartbeats.uplink)
	})
	d.loop.Run(ctx)
	return nil
}

// wire reads the facts about this host for the network, and creates and connects the rooms that
// change this host. Nothing is changed before there are facts and a view. It returns the drivers'
// events.
func (d *daemon) wire(ctx context.Context, nft *nftables.Keeper) (<-chan driver.Event, error) {
	d.uplink.SetNetwork(d.net)
	first := dataplane.Scope{Networks: []netip.Prefix{d.net.V4.Network}, Underlay: []string{d.uplink.Uplink().Iface}}
	objects, err := retry(ctx, d, "watch the kernel", pace.IsTemporary, func() (*kernel.Driver, error) {
		return d.kernel.Drive(ctx, first)
	})
	if err != nil {
		return nil, err
	}
	d.tunnels = tunnel.NewDriver(ctx, d.net.V4.Network, d.fds, d.log)
	drivers := driver.NewMux(ctx, objects, driver.Part{
		Driver: d.tunnels, Kinds: []dataplane.Kind{dataplane.KindTunnel}, CreatesLinks: dataplane.KindTUN,
	})
	d.terms = terms.New(d.net, d.conditions, d.log)
	d.feed = d.newFeed(nft)
	d.checks = checks.New(checks.Config{
		Open:    func() (checks.Kernel, error) { return kernel.New() },
		Network: d.net, Masquerade: d.options.Rules.Masquerade, Conditions: d.conditions, Bridge: d.setBridge,
		Move: func(subnets lease.Subnets) string {
			return d.registry.MoveCommand(subnets, subnetenv.Files(d.options.SubnetFile))
		},
	})
	d.prober.SetNetwork(d.net)
	d.loop = reconcile.New(reconcile.Config{
		Driver: drivers, Backend: d.options.backendOf(d.net), Network: d.net.V4.Network, Conditions: d.conditions, Log: d.log,
		BeforeApply: d.feed.Lock.Admit, Heartbeat: d.heartbeats.loop.Record,
		Rivals: d.terms.SetRivals, Skipped: d.prober.SetSkipped, Missing: d.checks.SetMissing, Repaired: d.repairs.add,
	})
	pool := d.net.V4
	d.pool.Store(&pool)
	d.expose()
	return drivers.Events(), nil
}

// setMTU writes the MTU that follows from the facts.
func (d *daemon) setMTU(f host.Facts, err error) {
	if err == nil {
		d.files.Update(func(e *subnetenv.Env) { e.MTU = d.net.MTU(f) })
	}
}

// newFeed returns the feed of the packet filter and the underlay lock.
func (d *daemon) newFeed(nft *nftables.Keeper) *filter.Feed {
	ipt := d.iptables
	rules := filter.New(filter.Config{
		Options: d.options.Rules, Choice: d.net.NFTables,
		Keepers:    filter.Keepers{IPTables: ipt.Installed(), Compat: ipt.Compat(), Legacy: ipt.Legacy(), NFTables: nft},
		Previous:   []firewall.Overlay{{Network: d.previous.Network, Subnet: d.previous.Subnet}},
		Vacate:     presence.Vacate,
		Firewalld:  func(ctx context.Context) (filter.Firewalld, error) { return firewalld.Dial(ctx) },
		Repaired:   d.repairs.add,
		Conditions: d.conditions, Log: d.log,
	})
	lock := filter.NewLock(filter.LockConfig{
		Wanted: d.options.Rules.Lock, Network: d.net.V4.Network, Previous: d.previous.Network, Vacate: presence.Vacate,
		Open:  func() (filter.Locker, error) { return nft.OpenLock() },
		Table: nftables.LockTable(d.net.V4.Network), Repaired: d.repairs.add, Conditions: d.conditions, Log: d.log,
	})
	return &filter.Feed{Network: d.net, Rules: rules, Lock: lock}
}

// chooseTUN chooses the TUN device of this host's overlay, and reports whether it has changed.
func (d *daemon) chooseTUN() (changed bool, err error) {
	inv, err := d.uplink.Inventory(false)
	if err != nil {
		return false, err
	}
	return d.uplink.SetTUN(d.tunnels.Choose(inv, d.previous.Network)), nil
}

// handleEvent triggers the rooms that an event may concern.
func (d *daemon) handleEvent(e driver.Event) {
	retry := e&driver.Uplink != 0 // not for our own links, because retries cause events on them
	if e&driver.DeviceTaken != 0 {
		changed, err := d.chooseTUN()
		retry = retry || err == nil && changed
	}
	if e&(driver.Candidates|driver.Routes|driver.Uplink|driver.Overflow) != 0 {
		d.checks.Trigger()
	}
	switch {
	case retry:
		d.loop.Retry()
	case e&^(driver.Candidates|driver.DeviceTaken) != 0:
		d.loop.Reread()
	case e&driver.Candidates != 0:
		d.loop.Unblock() // the kernel deletes the routes of an interface that is deleted without an event
	}
}

// onSubnetFile is called when the content of the subnet file has changed in this run; the first
// time, the network is ready. Docker reads the file only at its start.
func (d *daemon) onSubnetFile(first, changed bool) {
	if changed && (!first || d.previous.Subnet.IsValid()) {
		d.log.Warn("subnet file changed, restart docker to apply it", "path", d.options.SubnetFile)
	}
	if !first {
		return
	}
	d.state.SetReady()
	systemd.Ready(d.conditions)
	view := d.view.Load()
	d.log.Info("ready", "subnet", view.Own.Subnets, "public_ip", view.Own.PublicIP, "peers", len(view.Peers))
	d.checks.Ready()
	d.feed.Lock.Ready()
}

// parseConfig parses a network config. A new one is rejected if its routes would hide addresses
// that this host needs.
func (d *daemon) parseConfig(raw []byte) (backend.Network, error) {
	n, err := backend.ParseNetwork(raw)
	if err == nil && !n.Equal(d.net) {
		err = d.uplink.CheckNetwork(n)
	}
	return n, err
}

// applyConfig applies the parts of a later network config that may change at runtime: which subnets
// are leased from now on, for how long, and which packet filter is preferred. Other changes would
// cut this host off from hosts that have not applied them yet; they need a restart.
func (d *daemon) applyConfig(n backend.Network) {
	const id = "network-config/restart"
	if late := d.net.NeedsRestart(n); len(late) > 0 {
		d.conditions.Set(condition.Condition{
			ID: id, Text: "config change needs a restart of flanneld on all hosts, keeping the old config",
			Fields: []any{"changes", strings.Join(late, "; ")},
		})
		return
	}
	d.conditions.End(id)
	d.pool.Store(&n.V4)
	changed := d.terms.SetConfig(n)
	if changed {
		d.uplink.SetLeased(n.V4.Cover())
	}
	if d.feed.Rules.SetChoice(n.NFTables) || changed {
		d.log.Info("applied new network config", "subnet_min", n.V4.Min, "subnet_max", n.V4.Max, "lease_ttl", n.LeaseTTL)
	}
}
