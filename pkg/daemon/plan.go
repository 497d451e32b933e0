package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"flanneld/pkg/backend"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/filter"
	"flanneld/pkg/firewall"
	"flanneld/pkg/host"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lease"
	"flanneld/pkg/plan"
	"flanneld/pkg/status"
	"flanneld/pkg/subnetenv"
	"flanneld/pkg/tunnel"
)

// wanted is everything that the wanted state of this host follows from.
type wanted struct {
	options Options
	network backend.Network
	facts   host.Facts
	view    lease.View
	feed    *filter.Feed // with these facts and this view
	// read reads the objects in a scope, with what only a process knows of those in want.
	read func(want dataplane.State, scope dataplane.Scope) (dataplane.State, error)
}

// backendOf returns the backend of a network with the options of the command line.
func (o Options) backendOf(n backend.Network) backend.Backend {
	if o.Blackhole {
		return backend.WithBlackhole(n.Backend)
	}
	return n.Backend
}

// plan answers /plan: what a pass and a sync of the rules would change now. It reads the kernel with
// sockets of its own and computes the wanted state anew, so it delays no pass. It is called by
// several goroutines.
func (d *daemon) plan(ctx context.Context) plan.Document {
	doc := plan.New()
	p, view := d.parts.Load(), d.view.Load()
	if p == nil || p.feed == nil || view == nil {
		doc.Failed("the wanted state", errors.New("flanneld has no lease of a subnet yet"))
		return doc
	}
	facts, err := p.uplink.Facts()
	if err != nil {
		doc.Failed("the wanted state", err)
		return doc
	}
	k, err := kernel.New()
	if err != nil {
		doc.Failed("the kernel", err)
		return doc
	}
	defer k.Close()
	w := wanted{options: d.options, network: p.network, facts: facts, view: *view, feed: p.feed}
	w.read = func(_ dataplane.State, scope dataplane.Scope) (dataplane.State, error) {
		have, err := k.Snapshot(scope)
		if err == nil {
			err = p.tunnels.Snapshot(scope, &have)
		}
		return have, err
	}
	w.addTo(ctx, &doc)
	return doc
}

// addTo adds what would be changed to a document.
func (w *wanted) addTo(ctx context.Context, doc *plan.Document) {
	doc.Failed("the kernel", w.objects(doc))
	changes, fallback, err := w.feed.Rules.Plan(ctx)
	doc.AddChanges(changes)
	doc.Failed("packet filter rules", err)
	if fallback != nil {
		doc.Note("the preferred packet filter cannot be used: " + status.Line(fallback))
	}
	var locked []firewall.Change
	locked, err = w.feed.Lock.Plan(ctx, w.view)
	doc.AddChanges(locked)
	doc.Failed("the underlay lock", err)
	doc.Failed("the subnet file", w.file(doc))
}

// objects adds operations on kernel objects.
func (w *wanted) objects(doc *plan.Document) error {
	network := w.network.V4.Network
	p := backend.NewPlan(w.options.backendOf(w.network), network)
	p.Update(w.facts, w.view)
	want := p.Want()
	scope := want.ScopeOf([]netip.Prefix{network}, w.facts.Uplink)
	have, err := w.read(want, scope)
	if err != nil {
		return err
	}
	delta, _ := dataplane.Compare(want, have, scope, w.view.Complete)
	doc.AddOps(delta.Ops())
	for _, c := range append(delta.Conflicts, p.UnsafeRoutes()...) {
		doc.Note(fmt.Sprintf("%s is not created: %s", c.Op.Object(), c.Reason))
	}
	return nil
}

// file adds the subnet file.
func (w *wanted) file(doc *plan.Document) error {
	path := w.options.SubnetFile
	command, err := subnetenv.Command(path, subnetenv.Env{
		Network: w.network.V4.Network, Subnet: w.view.Own.Subnets.V4(), MTU: w.network.MTU(w.facts), IPMasq: w.options.Rules.Masquerade,
	})
	if command != "" {
		doc.Operations = append(doc.Operations, plan.Operation{Kind: "file", Verb: "replace", Object: "file " + path, Command: command})
	}
	return err
}

// assume returns a read for a process without tunnels.
func assume(k *kernel.Kernel) func(dataplane.State, dataplane.Scope) (dataplane.State, error) {
	return func(want dataplane.State, scope dataplane.Scope) (dataplane.State, error) {
		have, err := k.Snapshot(scope)
		if err == nil {
			tunnel.Assume(want, have)
		}
		return have, err
	}
}
