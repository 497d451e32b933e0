package daemon

import (
	"fmt"

	"flanneld/pkg/lease"
	"flanneld/pkg/metrics"
	"flanneld/pkg/prober"
	"flanneld/pkg/status"
)

// probes returns what the probes of each peer have shown until now, for the status.
func (d *daemon) probes() (of func(lease.Subnets) status.Probe) {
	if d.options.Probes == 0 {
		return func(lease.Subnets) status.Probe { return status.Probe{State: status.ProbeOff, Loss: -1} }
	}
	results := d.prober.Results()
	return func(s lease.Subnets) status.Probe { return statusProbe(results.Of(s)) }
}

// statusProbe returns the result of a peer as the status shows it.
func statusProbe(r prober.Result) status.Probe {
	p := status.Probe{State: status.ProbeOK, RTT: r.Last, Loss: r.Loss, Answered: r.Heard}
	switch r.State {
	case prober.Unknown:
		p.State, p.Loss = status.ProbeUnknown, -1
	case prober.Lossy:
		p.State, p.Fault = status.ProbeLossy, fmt.Sprintf("%.0f %% of the probes are lost", 100*r.Loss)
	case prober.MTU:
		p.State, p.Fault = status.ProbeFailing, "full-size packets are lost: the path has a smaller MTU"
	case prober.Failing:
		p.State, p.Fault = status.ProbeFailing, fmt.Sprintf("does not answer probes since %s", r.Since.Format("2006-01-02 15:04:05"))
	}
	return p
}

// probeMetrics returns what the probes have shown until now, for the metrics, or nil if there are
// none.
func (d *daemon) probeMetrics() *metrics.Probes {
	if d.options.Probes == 0 {
		return nil
	}
	s, results := d.prober.Stats(), d.prober.Results()
	return &metrics.Probes{Failures: s.Lost, Unreachable: s.Peers[prober.Failing], Peers: func(yield func(metrics.Probe) bool) {
		for subnet, r := range results.All() {
			p := metrics.Probe{Peer: subnet, RTT: r.RTT, Failures: r.Lost, Unreachable: r.State == prober.Failing}
			if r.RTT > 0 && !yield(p) {
				return
			}
		}
	}}
}
