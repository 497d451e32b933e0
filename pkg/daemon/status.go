package daemon

import (
	"net/netip"
	"net/url"
	"os"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/filter"
	"flanneld/pkg/reconcile"
	"flanneld/pkg/registry/store"
	"flanneld/pkg/status"
	"flanneld/pkg/tunnel"
	"flanneld/pkg/uplink"
)

// parts are the rooms that the status is read from, as far as they exist. They are immutable, so
// that requests can be answered from the start.
type parts struct {
	previous  netip.Prefix // subnet of the previous run
	uplink    *uplink.Watcher
	endpoints []string // of etcd
	registry  store.Registry
	network   backend.Network // its Backend is nil before there is a network config
	loop      *reconcile.Loop
	feed      *filter.Feed
	tunnels   *tunnel.Driver
}

// expose makes the rooms that exist now known to requests.
func (d *daemon) expose() {
	d.parts.Store(&parts{
		previous: d.previous.Subnet, uplink: d.uplink, endpoints: d.options.Etcd.Endpoints, registry: d.registry,
		network: d.net, loop: d.loop, feed: d.feed, tunnels: d.tunnels,
	})
}

// status returns the present status. It is called by several goroutines.
func (d *daemon) status() status.Document {
	now := time.Now()
	doc := status.NotRunning(now, "", "")
	doc.Daemon = status.Daemon{Version: d.options.Version, PID: os.Getpid(), Started: d.started, Ready: d.state.Ready()}
	doc.Conditions = d.state.Conditions()
	if doc.Repairs = d.repairs.list(); len(doc.Repairs) > 0 {
		doc.LastRepair = &doc.Repairs[0]
	}
	var p parts
	if exposed := d.parts.Load(); exposed != nil {
		p = *exposed
	}
	d.statusOfStore(&doc, p)
	d.statusOfLease(&doc, p)
	d.statusOfHost(&doc, p)
	d.statusOfBridge(&doc)
	d.statusOfKernel(&doc, p)
	doc.Judge()
	return doc
}

// statusOfStore adds the state of etcd.
func (d *daemon) statusOfStore(doc *status.Document, p parts) {
	s := &doc.Store
	s.API, s.Prefix, s.Up = string(p.registry.API), d.options.Etcd.Prefix, d.state.EtcdAnswers()
	for _, e := range p.endpoints {
		if u, err := url.Parse(e); err == nil {
			u.User = nil // it may contain a password
			s.Endpoints = append(s.Endpoints, u.String())
		}
	}
	if since := d.state.EtcdDownSince(); !since.IsZero() {
		s.DownSince = &since
	}
	if l := d.leases.Load(); l != nil {
		s.Invalid = l.Invalid
		if !l.Answered.IsZero() {
			s.ViewAge = secondsBetween(l.Answered, doc.Now)
		}
	}
}

func secondsBetween(a, b time.Time) *float64 {
	s := b.Sub(a).Round(time.Millisecond).Seconds()
	return &s
}

// statusOfLease adds the network and the lease of this host.
func (d *daemon) statusOfLease(doc *status.Document, p parts) {
	if p.network.Backend != nil {
		doc.Network = status.Network{CIDR: p.network.V4.Network, SubnetLen: p.network.V4.SubnetLen}
	}
	doc.Lease.Subnet = p.previous
	if v := d.view.Load(); v != nil {
		doc.Lease.Subnet = v.Own.Subnets.V4()
	}
	l := d.leases.Load()
	if l == nil {
		return
	}
	doc.Lease.Lost = l.Lost
	if at := l.Own.Expires; l.Own.Subnets.IsValid() && !at.IsZero() {
		doc.Lease.Expires, doc.Lease.Remaining = &at, secondsBetween(doc.Now, at)
	}
}

// statusOfHost adds the uplink, the backend and the packet filter.
func (d *daemon) statusOfHost(doc *status.Document, p parts) {
	if p.uplink == nil {
		return
	}
	facts, _ := p.uplink.Facts() // why they are unknown is a condition
	u := p.uplink.Uplink()
	doc.Uplink = status.Uplink{Interface: u.Iface, Address: u.Addr, PublicIP: p.uplink.PublicIP(), MTU: facts.MTU}
	if p.network.Backend != nil {
		doc.Backend.Type = p.network.BackendType
		doc.Backend.Device = d.device(p)
		if facts.MTU != 0 {
			doc.Backend.MTU = p.network.MTU(facts)
		}
	}
	if p.feed != nil {
		s, r := p.feed.Rules.Stats(), d.options.Rules
		doc.Filter = status.Filter{Keeper: s.Keeper, Version: s.Version, Masquerade: r.Masquerade, Forward: r.Forward, Lock: r.Lock}
	}
}

// statusOfKernel adds the drift and the peers.
func (d *daemon) statusOfKernel(doc *status.Document, p parts) {
	var snapshot *reconcile.Snapshot
	if p.loop != nil {
		snapshot = p.loop.Snapshot()
	}
	unprobed := status.ProbeUnknown
	if d.options.Probes == 0 {
		unprobed = status.ProbeOff
	}
	if snapshot == nil {
		if v := d.view.Load(); v != nil {
			for _, l := range v.Peers {
				doc.Peers = append(doc.Peers, status.Peer{
					Subnet: l.Subnets.V4(), PublicIP: l.PublicIP, State: status.Unknown, Probe: unprobed,
					Reason: "the kernel was not read yet",
				})
			}
		}
		return
	}
	if !snapshot.Outdated(doc.Now) {
		drift := 0
		for kind, n := range snapshot.Drift {
			doc.DriftKinds[kind.String()] = n
			drift += n
		}
		doc.Drift = &drift
	}
	doc.Peers = make([]status.Peer, 0, len(snapshot.View.Peers))
	probes, traffic := d.probes(), trafficOf(p.tunnels)
	for peer := range snapshot.Peers(doc.Now) {
		out := status.Peer{
			Subnet: peer.Subnets.V4(), PublicIP: peer.PublicIP, State: peerState(peer.State), Reason: peer.Reason, Programmed: peer.Has,
		}
		if out.State == status.OK || out.State == status.Unknown {
			out.SetProbe(probes(peer.Subnets))
		} else {
			out.Probe = unprobed
		}
		if t, there := traffic[out.Subnet]; there {
			out.Sent, out.Received = (*status.Traffic)(&t.Sent), (*status.Traffic)(&t.Received)
		}
		if at := peer.Changed; !at.IsZero() {
			out.Changed = &at
		}
		doc.Peers = append(doc.Peers, out)
	}
}

func peerState(s reconcile.PeerState) status.PeerState {
	switch s {
	case reconcile.Programmed:
		return status.OK
	case reconcile.Unprogrammed:
		return status.Unprogrammed
	case reconcile.Skipped:
		return status.Skipped
	}
	return status.Unknown
}

// trafficOf returns the traffic with each peer, if a tunnel counts it.
func trafficOf(d *tunnel.Driver) map[netip.Prefix]*tunnel.PeerStats {
	if d == nil {
		return nil
	}
	stats := d.Stats().Peers
	all := make(map[netip.Prefix]*tunnel.PeerStats, len(stats))
	for i := range stats {
		all[stats[i].Peer.Subnet] = &stats[i]
	}
	return all
}
