package daemon

import (
	"time"

	"flanneld/pkg/kernel"
	"flanneld/pkg/lease"
	"flanneld/pkg/metrics"
)

// metrics returns the present values of the metrics. It is called by several goroutines.
func (d *daemon) metrics() metrics.Values {
	v := metrics.Values{
		Version: d.options.Version, Ready: d.state.Ready(), Conditions: len(d.state.Conditions()),
		StoreUp: d.state.EtcdAnswers(), View: d.view.Load(),
	}
	if s := d.leases.Load(); s != nil {
		v.Lease, v.Ready = *s, v.Ready && !s.Lost
	}
	if pool := d.pool.Load(); pool != nil {
		v.Pool = *pool
	}
	p := d.parts.Load()
	if p == nil || p.loop == nil {
		return v
	}
	v.Backend, v.Store, v.Loop = p.network.BackendType, p.registry.Stats(), p.loop.Stats()
	if s := p.loop.Snapshot(); s == nil || s.Outdated(time.Now()) {
		v.Loop.Drift = nil
	}
	v.Rules, v.Lock = p.feed.Rules.Stats(), p.feed.Lock.Stats()
	if name := d.device(*p); name != "" {
		v.Device = countersOf(name)
	}
	if p.network.UsesTUN() {
		s := p.tunnels.Stats()
		v.Tunnel = &s
	}
	v.Probes = d.probeMetrics()
	return v
}

// device returns the name of the overlay's device, or "" if the backend has none or it is unknown.
func (d *daemon) device(p parts) string {
	if p.uplink == nil || p.network.Backend == nil {
		return ""
	}
	facts, _ := p.uplink.Facts() // outdated ones do, too
	if facts.MTU == 0 {
		return ""
	}
	var own lease.Lease
	if v := d.view.Load(); v != nil {
		own = v.Own
	}
	name, _ := p.network.Link(facts, own)
	return name
}

// countersOf returns the counters of a device, or nil if it does not exist now. It has its own
// socket, because a pass uses that of the daemon for as long as it reads.
func countersOf(device string) *kernel.Counters {
	k, err := kernel.New()
	if err != nil {
		return nil
	}
	defer k.Close()
	c, err := k.Counters(device)
	if err != nil {
		return nil
	}
	return &c
}
