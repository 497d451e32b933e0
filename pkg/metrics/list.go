package metrics

import (
	"cmp"
	"math"
	"strings"
	"time"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/filter"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lease"
	"flanneld/pkg/reconcile"
	"flanneld/pkg/registry/store"
	"flanneld/pkg/subnet"
	"flanneld/pkg/tunnel"
)

// metric is one metric: its name after the namespace, its type, what it means, its labels, and the
// function that adds its series. Series of counters exist from the start, with the value 0, so that
// the first event is a change.
type metric struct {
	name   string
	kind   kind
	help   string
	labels []string
	emit   func(*Values, series)
}

// kind is the type of a metric.
type kind string

const (
	gauge   kind = "gauge"
	counter kind = "counter"
	summary kind = "summary" // without quantiles: only _sum and _count
)

// metrics returns all metrics. TestReadmeListsMetrics compares them with the README.
func metrics(perPeer bool) []metric {
	var peer []string
	rtt, failures := meanRTT, allFailures
	if perPeer {
		peer, rtt, failures = []string{"peer"}, rttOfPeers, failuresOfPeers
	}
	return []metric{
		{"build_info", gauge, "Version of flanneld; always 1.", []string{"version"}, func(v *Values, s series) { s.add(1, v.Version) }},
		{"ready", gauge, "Whether the host has its subnet.", nil, func(v *Values, s series) { s.add(number(v.Ready)) }},
		{"conditions", gauge, "Number of present problems, as /readyz lists them.", nil, func(v *Values, s series) { s.add(float64(v.Conditions)) }},
		{"peers", gauge, "Number of other hosts in the network.", nil, peers},
		{"peers_skipped", gauge, "Number of peers that are left out because of their lease.", []string{"reason"}, peersSkipped},
		{"peers_unreachable", gauge, "Number of peers that answered probes before and do not answer now.", nil, peersUnreachable},
		{"peer_probe_rtt_seconds", gauge, "Smoothed round-trip time of probes through the overlay: of a peer, or the mean of all.", peer, rtt},
		{"peer_probe_failures_total", counter, "Number of probes that peers did not answer in time.", peer, failures},
		{"subnets", gauge, "Number of subnets in the pool, leased or not.", nil, subnets},
		{"subnets_used", gauge, "Number of subnets of the pool that are leased.", nil, subnetsUsed},
		{"lease_expires_timestamp_seconds", gauge, "When this host's lease expires unless it is renewed; +Inf if it never does.", nil, leaseExpires},
		{"lease_writes_total", counter, "Number of attempts to write this host's lease.", []string{"result"}, leaseWrites},
		{"lease_conflicts_total", counter, "Number of times that another program wrote this host's lease.", nil, func(v *Values, s series) {
			s.add(float64(v.Lease.Conflicts))
		}},
		{"store_up", gauge, "Whether etcd answers.", nil, storeUp},
		{"store_errors_total", counter, "Number of requests that etcd did not answer, or refused.", []string{"op"}, storeErrors},
		{"store_last_event_timestamp_seconds", gauge, "When etcd last reported a change of a lease; 0 if it did not yet.", nil, storeLastEvent},
		{"store_resyncs_total", counter, "Number of times that all leases were listed again.", []string{"cause"}, storeResyncs},
		{"reconcile_duration_seconds", summary, "Time that comparing the kernel with the wanted state and repairing it took.", nil, func(v *Values, s series) {
			s.timing(v.Loop.PassTime)
		}},
		{"reconciles_total", counter, "Number of comparisons of the kernel with the wanted state; failed if something is not as wanted after it.", []string{"trigger", "result"}, reconciles},
		{"kernel_operations_total", counter, "Number of changes of objects in the kernel.", []string{"kind", "verb", "result"}, operations},
		{"repairs_total", counter, "Number of objects repaired after another program changed them.", []string{"kind"}, repairs},
		{"repair_duration_seconds", summary, "Time from the kernel's event about a change by another program to its repair.", nil, func(v *Values, s series) {
			s.timing(v.Loop.RepairTime)
		}},
		{"drift_objects", gauge, "Number of objects in the kernel that are not as wanted.", []string{"kind"}, drift},
		{"propagation_seconds", summary, "Time from receiving etcd's event about a peer to the end of its programming; etcd's events do not tell when they were committed.", nil, func(v *Values, s series) {
			s.timing(v.Loop.Propagation)
		}},
		{"filter_repairs_total", counter, "Number of times that packet filter rules were repaired after another program changed them.", nil, func(v *Values, s series) {
			s.add(float64(v.Rules.Syncs[filter.Repaired] + v.Lock.Syncs[filter.Repaired]))
		}},
		{"filter_info", gauge, "Program by which packet filter rules are kept; always 1.", []string{"by"}, func(v *Values, s series) {
			s.add(1, cmp.Or(v.Rules.Keeper, "none"))
		}},
		{"device_receive_bytes_total", counter, "Number of bytes received by the overlay's device.", nil, device(func(c *kernel.Counters) uint64 { return c.Receive.Bytes })},
		{"device_receive_packets_total", counter, "Number of packets received by the overlay's device.", nil, device(func(c *kernel.Counters) uint64 { return c.Receive.Packets })},
		{"device_receive_drop_total", counter, "Number of received packets dropped by the overlay's device.", nil, device(func(c *kernel.Counters) uint64 { return c.Receive.Dropped })},
		{"device_transmit_bytes_total", counter, "Number of bytes transmitted by the overlay's device.", nil, device(func(c *kernel.Counters) uint64 { return c.Transmit.Bytes })},
		{"device_transmit_packets_total", counter, "Number of packets transmitted by the overlay's device.", nil, device(func(c *kernel.Counters) uint64 { return c.Transmit.Packets })},
		{"device_transmit_drop_total", counter, "Number of packets to transmit dropped by the overlay's device.", nil, device(func(c *kernel.Counters) uint64 { return c.Transmit.Dropped })},
		{"tunnel_drops_total", counter, "Number of packets dropped by the backend udp.", []string{"direction", "reason"}, tunnelDrops},
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// timing adds the series of a timing.
func (s series) timing(t reconcile.Timing) { s.addTotal(t.Count, t.Total.Seconds()) }

// table adds the series of a metric with one label: one for each of the known values of the label,
// and one for "other" if there are other values.
func (s series) table(counts map[string]uint64, known ...string) {
	for _, label := range known {
		s.add(float64(counts[label]), label)
	}
	if n := counts[other]; n > 0 {
		s.add(float64(n), other)
	}
}

// other is the label of a value that is not known in advance.
const other = "other"

func peers(v *Values, s series) {
	if v.View != nil {
		s.add(float64(len(v.View.Peers)))
	}
}

func peersSkipped(v *Values, s series) {
	counts := map[string]uint64{}
	for reason, n := range v.Loop.Skipped {
		counts[skipReason(reason)] += uint64(n)
	}
	s.table(counts, "conflict", "invalid")
}

// skipReason returns the label for the reason why a peer is skipped: it conflicts with an older
// lease, or with this host and its addresses; or it is invalid by itself.
func skipReason(reason string) string {
	for _, part := range []string{"older lease", "our own", "this host", "in a leased subnet"} {
		if strings.Contains(reason, part) {
			return "conflict"
		}
	}
	for _, part := range []string{"is missing", " is not ", " has no "} {
		if strings.Contains(reason, part) {
			return "invalid"
		}
	}
	return other
}

func peersUnreachable(v *Values, s series) {
	if v.Probes != nil {
		s.add(float64(v.Probes.Unreachable))
	}
}

func meanRTT(v *Values, s series) {
	if v.Probes == nil {
		return
	}
	sum, n := 0.0, 0
	for p := range v.Probes.Peers {
		if p.RTT > 0 && !p.Unreachable {
			sum += p.RTT.Seconds()
			n++
		}
	}
	if n > 0 {
		s.add(sum / float64(n))
	}
}

func rttOfPeers(v *Values, s series) {
	if v.Probes == nil {
		return
	}
	for p := range v.Probes.Peers {
		if p.RTT > 0 && !p.Unreachable {
			s.add(p.RTT.Seconds(), p.Peer.String())
		}
	}
}

func allFailures(v *Values, s series) {
	if v.Probes != nil {
		s.add(float64(v.Probes.Failures))
	}
}

func failuresOfPeers(v *Values, s series) {
	if v.Probes == nil {
		return
	}
	for p := range v.Probes.Peers {
		s.add(float64(p.Failures), p.Peer.String())
	}
}

func subnets(v *Values, s series) {
	if v.Pool != (lease.Pool{}) {
		s.add(float64(v.Pool.Size()))
	}
}

func subnetsUsed(v *Values, s series) {
	if v.Pool == (lease.Pool{}) || v.View == nil {
		return
	}
	n := 0
	for _, l := range v.View.Peers {
		if v.Pool.Fits(l.Subnets.V4()) {
			n++
		}
	}
	if v.Pool.Fits(v.View.Own.Subnets.V4()) {
		n++
	}
	s.add(float64(n))
}

func leaseExpires(v *Values, s series) {
	switch own := v.Lease.Own; {
	case !own.Subnets.IsValid():
	case own.Reservation():
		s.add(math.Inf(1))
	default:
		s.add(unixSeconds(own.Expires))
	}
}

func leaseWrites(v *Values, s series) {
	counts := map[string]uint64{}
	for call, n := range v.Store.Calls {
		switch {
		case call.Op != store.OpCreate && call.Op != store.OpUpdate && call.Op != store.OpRelease:
		case call.Result == store.Done:
			counts["ok"] += n
		case call.Result == store.Conflict:
			counts["conflict"] += n
		default:
			counts["failed"] += n
		}
	}
	s.table(counts, "conflict", "failed", "ok")
}

func storeUp(v *Values, s series) {
	if v.StoreUp != nil {
		s.add(number(*v.StoreUp))
	}
}

func storeErrors(v *Values, s series) {
	counts := map[string]uint64{}
	for call, n := range v.Store.Calls {
		switch {
		case call.Result != store.Failed && call.Result != store.Denied:
		case call.Op == store.OpConfig || call.Op == store.OpList || call.Op == store.OpGet || call.Op == store.OpWatch:
			counts["read"] += n
		default:
			counts["write"] += n
		}
	}
	s.table(counts, "read", "write")
}

func storeLastEvent(v *Values, s series) {
	s.add(unixSeconds(v.Lease.Event))
}

// unixSeconds returns a time in seconds since 1970, or 0 if there is none.
func unixSeconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return t.Sub(time.Unix(0, 0)).Seconds()
}

func storeResyncs(v *Values, s series) {
	counts := map[string]uint64{}
	for cause, n := range v.Lease.Relists {
		counts[subnet.Cause(cause).String()] += n
	}
	counts["missed_event"] = counts[subnet.Behind.String()] + counts[subnet.OwnLease.String()]
	s.table(counts, "history_lost", "missed_event", "rolled_back")
}

func reconciles(v *Values, s series) {
	counts := map[[2]string]uint64{}
	for o, n := range v.Loop.Passes {
		trigger, result := "check", "failed"
		if o.Trigger == reconcile.OnChange {
			trigger = "change"
		}
		if o.Result == reconcile.Unchanged || o.Result == reconcile.Changed {
			result = "ok"
		}
		counts[[2]string{trigger, result}] += n
	}
	for _, trigger := range []string{"change", "check"} {
		for _, result := range []string{"failed", "ok"} {
			s.add(float64(counts[[2]string{trigger, result}]), trigger, result)
		}
	}
}

// kindOf returns the label of a kind of objects. There are fewer than kinds.
func kindOf(k dataplane.Kind) string {
	switch k {
	case dataplane.KindLink, dataplane.KindAddr, dataplane.KindSysctl:
		return "link"
	case dataplane.KindFDB, dataplane.KindNeigh:
		return "neighbour"
	case dataplane.KindRoute, dataplane.KindNextHop, dataplane.KindTunnel:
		return "route"
	}
	return other
}

// kinds returns the kinds that a backend uses, as labels.
func kinds(backend string) []string {
	if backend == "vxlan" {
		return []string{"link", "neighbour", "route"}
	}
	return []string{"link", "route"}
}

func operations(v *Values, s series) {
	type class struct{ kind, verb, result string }
	counts := map[class]uint64{}
	for result, ops := range map[string]map[reconcile.OpClass]uint64{"ok": v.Loop.Done, "failed": v.Loop.Failed} {
		for op, n := range ops {
			verb := "put"
			if op.Verb == dataplane.Del {
				verb = "del"
			}
			counts[class{kindOf(op.Kind), verb, result}] += n
		}
	}
	for _, kind := range kinds(v.Backend) {
		for _, verb := range []string{"del", "put"} {
			for _, result := range []string{"failed", "ok"} {
				s.add(float64(counts[class{kind, verb, result}]), kind, verb, result)
			}
		}
	}
}

func repairs(v *Values, s series) {
	counts := map[string]uint64{}
	for kind, n := range v.Loop.Repairs {
		counts[kindOf(kind)] += n
	}
	s.table(counts, kinds(v.Backend)...)
}

func drift(v *Values, s series) {
	if v.Loop.Drift == nil {
		return
	}
	counts := map[string]uint64{}
	for kind, n := range v.Loop.Drift {
		counts[kindOf(kind)] += uint64(n)
	}
	s.table(counts, kinds(v.Backend)...)
}

// device returns the function that adds a counter of the overlay's device.
func device(value func(*kernel.Counters) uint64) func(*Values, series) {
	return func(v *Values, s series) {
		if v.Device != nil {
			s.add(float64(value(v.Device)))
		}
	}
}

func tunnelDrops(v *Values, s series) {
	if v.Tunnel == nil {
		return
	}
	counts := map[[2]string]uint64{}
	for _, d := range v.Tunnel.Drops {
		counts[[2]string{d.Direction.String(), dropReason(d.Reason)}] += d.Packets
	}
	for _, direction := range []tunnel.Direction{tunnel.In, tunnel.Out} {
		for _, reason := range []string{"address", "failed", "packet"} {
			s.add(float64(counts[[2]string{direction.String(), reason}]), direction.String(), reason)
		}
	}
}

// dropReason returns the label of the reason why a packet was dropped: no peer has its address, the
// packet itself is invalid or too long, or the kernel refused it.
func dropReason(r tunnel.Reason) string {
	switch r {
	case tunnel.NoRoute, tunnel.UnknownSource, tunnel.SourcePort, tunnel.SpoofedSource, tunnel.ForeignDestination:
		return "address"
	case tunnel.SendFailed, tunnel.DeviceRefused:
		return "failed"
	}
	return "packet"
}
