package daemon

import (
	"cmp"
	"context"
	"net/netip"
	"sync"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/lease"
	"flanneld/pkg/pace"
	"flanneld/pkg/presence"
	"flanneld/pkg/subnet"
	"flanneld/pkg/subnetenv"
)

// releaseTimeout limits the time that releasing the lease may add to the exit.
const releaseTimeout = 500 * time.Millisecond

// join leases a subnet and renews the lease until ctx ends. It returns the first view of the
// network; views receives the latest of the following ones. Without a lease nothing on this host
// depends on the network config yet, so on any change of it join ends with a subnet.Changed.
func (d *daemon) join(ctx context.Context, tasks *sync.WaitGroup) (first lease.View, views <-chan lease.View, err error) {
	joining, settle := subnet.WhileConfig(ctx, d.registry, d.conditions, d.parseConfig, func(n backend.Network) bool {
		return n.Equal(d.net)
	})
	emitted, ended := make(chan lease.View, 1), make(chan error, 1)
	if d.registration, err = presence.Await(joining, d.net.V4.Network, d.net.FixedDevice(), d.conditions); err == nil {
		tasks.Go(func() {
			ended <- subnet.Follow(ctx, d.leaseOptions(), func(v lease.View) { pace.SendLatest(emitted, v) })
		})
		select {
		case first = <-emitted:
		case err = <-ended:
		case <-joining.Done():
		}
	}
	return first, emitted, cmp.Or(settle(), err)
}

// followViews forwards views of the network until ctx ends.
func (d *daemon) followViews(ctx context.Context, views <-chan lease.View) {
	for {
		select {
		case <-ctx.Done():
			return
		case v := <-views:
			d.setView(v)
		}
	}
}

// setView forwards a view of the network.
func (d *daemon) setView(v lease.View) {
	before := d.view.Swap(&v)
	d.feed.SetView(v) // before the loop adds the entries of new peers
	d.loop.SetView(v)
	d.checks.SetView(v)
	d.prober.SetView(v)
	subnets := v.Own.Subnets
	if before != nil && before.Own.Subnets == subnets {
		return
	}
	if before != nil {
		d.log.Error("moved to another subnet", "subnet", subnets, "before", before.Own.Subnets)
	}
	d.uplink.SetSubnet(subnets.V4())
	d.files.Update(func(e *subnetenv.Env) {
		e.Network, e.Subnet, e.IPMasq = d.net.V4.Network, subnets.V4(), d.options.Rules.Masquerade
	})
}

func (d *daemon) leaseOptions() subnet.Options {
	claim := d.claim
	if claim.Store != string(d.registry.API) {
		claim.Revision = 0 // a revision of another store is meaningless
	}
	return subnet.Options{
		Registry:   d.registry,
		Pool:       d.net.V4,
		PublicIP:   d.uplink.PublicIP(),
		Claim:      claim,
		Previous:   d.previous.Subnet,
		TTL:        d.net.LeaseTTL,
		Margin:     d.options.RenewMargin,
		Log:        d.log,
		Conditions: d.conditions,
		Attrs:      d.attrs,
		Avoid: func() ([]netip.Prefix, error) {
			return tryOnce(d, "read which subnets to avoid", pace.IsTemporary, d.uplink.Avoid)
		},
		Needed: d.uplink.Needed,
		Probe:  d.uplink.Probe,
		Terms:  d.terms.Changes(),
		Remember: func(c lease.Claim) {
			c.Store = string(d.registry.API)
			d.files.Remember(c)
		},
		Report: func(s subnet.Stats) {
			d.leases.Store(&s)
			d.state.SetEtcdDown(s.AwaySince)
			d.state.SetSubnetLost(s.Lost)
			d.terms.SetOwn(s.Own)
		},
		Heartbeat: d.heartbeats.follower.Record,
	}
}

// attrs returns the attributes of the first lease.
func (d *daemon) attrs(previous lease.Attrs, others []lease.Lease) (lease.Attrs, error) {
	f, err := tryOnce(d, "read the state of this host", pace.IsTemporary, d.uplink.Facts)
	if err != nil {
		return lease.Attrs{}, err
	}
	return d.net.Attrs(f, previous, others)
}

// release releases the lease of this run, so that another host may have the subnet at once. The
// kernel is not changed. A reservation belongs to the operator and is kept.
func (d *daemon) release() {
	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()
	claim := d.files.Claim()
	switch own, err := subnet.Release(ctx, d.registry, claim); {
	case err != nil:
		d.log.Warn("failed to release lease, it will expire", "subnet", claim.Subnets, "err", err)
	case own != lease.Lease{}:
		d.log.Info("released lease", "subnet", own.Subnets)
	}
}
