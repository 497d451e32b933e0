package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"time"

	"flanneld/pkg/api"
	"flanneld/pkg/condition"
	"flanneld/pkg/iptables"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lease"
	"flanneld/pkg/needs"
	"flanneld/pkg/nftables"
	"flanneld/pkg/plan"
	"flanneld/pkg/registry/etcdv3"
	"flanneld/pkg/registry/store"
	"flanneld/pkg/subnet"
	"flanneld/pkg/subnetenv"
	"flanneld/pkg/terms"
	"flanneld/pkg/tunnel"
)

// dryRunTimeout limits the time of a DryRun.
const dryRunTimeout = 30 * time.Second

// DryRun returns what a start would change on this host and in etcd, and changes nothing: it writes
// no lease, no file, no device, no rule and no setting. It asks for a previous address of this host
// as a start does, by ARP and ICMP. An error means that it cannot find out.
func DryRun(ctx context.Context, o Options, log *slog.Logger) (plan.Document, error) {
	etcdv3.DiscardLog()
	ctx, cancel := context.WithTimeout(ctx, dryRunTimeout)
	defer cancel()
	doc := plan.New()
	d := &daemon{
		options: o, log: log, conditions: condition.NewList(log), started: time.Now(), iptables: iptables.NewTools(o.Rules.Resync),
	}
	d.state = api.NewState(d.conditions)
	k, err := kernel.New()
	if err != nil {
		return doc, err
	}
	defer k.Close()
	d.kernel = k
	if d.previous, err = subnetenv.Read(o.SubnetFile); err != nil {
		doc.Note(err.Error())
	}
	if d.claim, err = subnetenv.ReadClaim(o.SubnetFile); err != nil {
		doc.Note(err.Error())
	}
	s, err := d.dryOpen(ctx)
	if err != nil {
		return doc, err
	}
	defer s.Close()
	view, writes, err := d.dryJoin(ctx, s)
	if err != nil {
		return doc, err
	}
	doc.Operations = append(doc.Operations, writes...)
	facts, err := d.uplink.Facts()
	if err != nil {
		return doc, err
	}
	nft := new(nftables.Keeper)
	defer nft.Close()
	feed := d.newFeed(nft)
	feed.SetFacts(facts, nil)
	feed.SetView(view)
	w := wanted{options: o, network: d.net, facts: facts, view: view, feed: feed, read: assume(k)}
	w.addTo(ctx, &doc)
	return doc, nil
}

// dryOpen chooses the uplink, and opens etcd with the network config.
func (d *daemon) dryOpen(ctx context.Context) (*store.Store, error) {
	d.uplink = d.newUplink()
	d.uplink.Moved = func() {}
	inv, err := d.uplink.Inventory(false)
	if err != nil {
		return nil, err
	}
	if err := d.uplink.Choose(inv); err != nil {
		return nil, fmt.Errorf("choose the uplink: %w", err)
	}
	o := &d.options.Etcd
	if domain := d.options.EtcdDomain; domain != "" {
		if o.Endpoints, err = store.Resolve(ctx, domain, d.log, d.conditions); err != nil {
			return nil, fmt.Errorf("find etcd by the SRV records of %s: %w", domain, err)
		}
	}
	d.needs = needs.NewEtcd(*o, d.uplink.Refresh)
	o.Connecting = d.needs.Connecting
	d.uplink.SetNeeds(d.needs.Needs, inv)
	s, err := store.Open(*o, d.options.EtcdAPI, d.identity(), d.log, d.conditions)
	if err != nil {
		return nil, err
	}
	raw, err := s.Find(ctx)
	if err == nil {
		d.net, err = d.parseConfig(raw)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	d.uplink.SetNetwork(d.net)
	if d.net.UsesTUN() {
		d.uplink.SetTUN(tunnel.Candidate(inv, d.net.V4.Network, d.previous.Network))
	}
	return s, nil
}

// dryJoin returns the view with which a start would begin, and what it would write to etcd.
func (d *daemon) dryJoin(ctx context.Context, s *store.Store) (v lease.View, writes []plan.Operation, err error) {
	d.registry = s.Registry()
	dry := &dryRegistry{Client: d.registry.Client, commands: d.registry}
	d.registry.Client = dry
	d.terms = terms.New(d.net, d.conditions, d.log)
	defer d.terms.Close()
	o := d.leaseOptions()
	o.Remember, o.Report = nil, nil
	own, listing, err := subnet.Preview(ctx, o)
	if err != nil {
		return v, nil, fmt.Errorf("find the lease of this host: %w", err)
	}
	d.uplink.SetSubnet(own.Subnets.V4())
	all := make([]*lease.Lease, len(listing.Leases))
	for i := range listing.Leases {
		all[i] = &listing.Leases[i]
	}
	return lease.NewView(own, all, true), dry.writes, nil
}

// dryRegistry is a registry that records what would be written. A renewal without a change is not
// recorded.
type dryRegistry struct {
	store.Client
	commands store.Registry
	writes   []plan.Operation
}

// Create implements registry.Registry.
func (r *dryRegistry) Create(_ context.Context, s lease.Subnets, a lease.Attrs, ttl time.Duration) (lease.Lease, error) {
	l := lease.Lease{Subnets: s, Attrs: a, Revision: math.MaxUint64, Created: math.MaxUint64}
	return r.write("create", l, ttl)
}

// Update implements registry.Registry.
func (r *dryRegistry) Update(_ context.Context, prev lease.Lease, a lease.Attrs, ttl time.Duration) (lease.Lease, error) {
	l, same := prev, prev.Attrs == a
	if l.Attrs = a; same {
		return l, nil
	}
	return r.write("replace", l, ttl)
}

func (r *dryRegistry) write(verb string, l lease.Lease, ttl time.Duration) (lease.Lease, error) {
	if ttl > 0 {
		l.Expires = time.Now().Add(ttl)
	}
	command, err := r.commands.WriteCommand(l.Subnets, l.Attrs, ttl)
	r.writes = append(r.writes, plan.Operation{Kind: "lease", Verb: verb, Object: "lease " + l.Subnets.String(), Command: command})
	return l, err
}

// Release implements registry.Registry.
func (r *dryRegistry) Release(_ context.Context, prev lease.Lease) error {
	r.writes = append(r.writes, plan.Operation{
		Kind: "lease", Verb: "delete", Object: "lease " + prev.Subnets.String(), Command: r.commands.DeleteCommand(prev.Subnets),
	})
	return nil
}
