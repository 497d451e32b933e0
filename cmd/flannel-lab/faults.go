package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/lab"
)

// faults are the faults, and the part of the baseline that their repair needs. ip(8) cannot flush
// routes with nexthop objects: it asks for routes with both the object and the link, which the
// kernel refuses. So among many peers, these routes are deleted one by one.
var faults = []struct {
	command  string
	many     string // command for each subnet, used among many peers; empty: the same
	baseline func(baseline) time.Duration
}{
	{"ip route flush dev " + vxlanLink, "route del", func(b baseline) time.Duration { return b.routes }},
	{"bridge fdb flush dev " + vxlanLink, "", func(b baseline) time.Duration { return b.fdb }},
	{"ip neigh flush dev " + vxlanLink + " nud permanent", "", func(b baseline) time.Duration { return b.neighs }},
	{"ip link del " + vxlanLink, "", baseline.all},
}

// restarts measures starts of flanneld with everything in place, with pings from a container to a
// container of a real peer.
func (s *scale) restarts(ctx context.Context) ([][]string, error) {
	rows := [][]string{{"", "EXEC TO READY", "LEASE TO READY", "OPERATIONS", "NOTIFICATIONS", "PINGS LOST", "OF", "PEAK MEMORY"}}
	c := &s.watched
	if c.process == nil {
		return rows, errNotWatched
	}
	path, err := s.pair(ctx)
	if err != nil {
		return rows, err
	}
	for i := range s.plan.repetitions {
		s.progress("restart under traffic, %d of %d", i+1, s.plan.repetitions)
		events := c.monitor.events()
		pinger, err := path.from.StartPinger(path.to.Addr, time.Second/pingRate)
		if err != nil {
			return rows, err
		}
		err = paused(ctx, s.plan.away,
			func() error { return stop(ctx, c.overlay, c.host) },
			func() error { return c.start(ctx) },
			func() error { return nil }) // which waits twice as long
		stats := pinger.Stop()
		if err != nil {
			return rows, err
		}
		leased, err := loggedAt(c.process, leaseTexts...)
		if err != nil {
			return rows, err
		}
		usage, err := c.process.Usage()
		if err != nil {
			return rows, err
		}
		ready := c.begun.Add(c.process.ReadyAfter())
		rows = append(rows, []string{fmt.Sprint(i + 1), milliseconds(c.process.ReadyAfter()), milliseconds(ready.Sub(leased)),
			operations(c.process), fmt.Sprint(c.monitor.events() - events), fmt.Sprint(stats.Lost), fmt.Sprint(stats.Sent), megabytes(usage.HWM)})
	}
	return append(rows, []string{"wanted", "", "≤ 1 s", "none", "0", "0", "", "≤ 80 MB"}), c.check()
}

// operations returns what flanneld has done to the kernel, by its log.
func operations(p *lab.Process) string {
	return cmp.Or(strings.Join(summaries(p), ", "), "none")
}

// pair adds a real peer to the overlay and returns a path between a container on each side. The
// peer's own flanneld is stopped when it has programmed its kernel, so that it does not disturb the
// measurement.
func (s *scale) pair(ctx context.Context) (path, error) {
	c := &s.watched
	other := watchedHost{overlay: c.overlay, host: s.next()}
	s.progress("a real peer joins")
	if err := other.start(ctx); err != nil {
		return path{}, err
	}
	env, err := other.host.ReadSubnet()
	if err != nil {
		return path{}, err
	}
	p := peer{subnet: env.Subnet.Masked(), public: other.host.Addr}
	err = other.host.Do(func() error {
		d, err := net.InterfaceByName(vxlanLink)
		if err == nil {
			p.mac = dataplane.MAC(d.HardwareAddr)
		}
		return err
	})
	if err != nil {
		return path{}, err
	}
	c.monitor.expect(true, p.inKernel(c.name))
	if _, err := c.monitor.await(ctx, time.Time{}, patience); err != nil {
		return path{}, err
	}
	way, err := containerPath(ctx, overlay{name: c.name, hosts: []*lab.Host{c.host, other.host}})
	return way, errors.Join(err, stop(ctx, other.overlay, other.host))
}

// repairsAmongMany injects each fault on the host with most peers and measures its repair.
func (s *scale) repairsAmongMany(ctx context.Context) ([][]string, error) {
	rows := [][]string{{"", "FAULT TAKES", "REPAIR, MEDIAN", "WORST", "OF", "BASELINE", "RATIO", "WANTED", "PEAK MEMORY"}}
	c := &s.watched
	if c.process == nil {
		return rows, errNotWatched
	}
	c.monitor.setDelay(time.Millisecond)
	for _, fault := range faults {
		name, inject := fault.command, func() (time.Duration, error) { return command(ctx, c.host, fault.command) }
		if fault.many != "" {
			name, inject = "ip "+fault.many+" of all", func() (time.Duration, error) { return s.batch(ctx, c.host, "ip", c.ofEach(fault.many)) }
		}
		var takes, took []time.Duration
		var peak int64
		for i := range s.plan.repetitions {
			s.progress("%s, %d of %d", name, i+1, s.plan.repetitions)
			// A new process has no history of repairs that slows it down.
			if err := c.restartFlanneld(ctx); err != nil {
				return rows, err
			}
			if err := window(ctx, s.plan.away); err != nil {
				return rows, err
			}
			begun, ended, repaired, err := c.injectFault(ctx, inject, s.plan.away)
			if err != nil {
				return rows, fmt.Errorf("%s: %w", name, err)
			}
			s.progress("%s: took %s, repaired %s after that", name, milliseconds(ended.Sub(begun)), milliseconds(repaired.Sub(ended)))
			usage, err := c.process.Usage()
			if err != nil {
				return rows, err
			}
			peak = max(peak, usage.HWM)
			takes, took = append(takes, ended.Sub(begun)), append(took, repaired.Sub(ended))
		}
		least := fault.baseline(s.baselines[c.prefix])
		rows = append(rows, []string{name, milliseconds(median(takes)), milliseconds(median(took)), milliseconds(quantile(took, 1)),
			fmt.Sprint(len(took)), milliseconds(least), fmt.Sprintf("%.2f", float64(median(took))/float64(least)), "≤ 2", megabytes(peak)})
	}
	return rows, c.check()
}

// ofEach returns a command for the subnet of every peer that exists in etcd only.
func (c *watchedHost) ofEach(command string) string {
	var lines strings.Builder
	for i := range c.etcdPeers {
		fmt.Fprintf(&lines, "%s %s\n", command, numberedPeer(i).subnet)
	}
	return lines.String()
}

// restartFlanneld restarts flanneld.
func (c *watchedHost) restartFlanneld(ctx context.Context) error {
	if err := stop(ctx, c.overlay, c.host); err != nil {
		return err
	}
	return c.start(ctx)
}

// injectFault injects a fault and waits until the kernel has the wanted objects, and still has them
// after a while.
func (c *watchedHost) injectFault(ctx context.Context, inject func() (time.Duration, error), quiet time.Duration) (begun, ended, repaired time.Time, err error) {
	took, err := inject()
	if err != nil {
		return
	}
	ended = time.Now()
	begun = ended.Add(-took)
	for at := begun; ; at = repaired {
		if repaired, err = c.monitor.await(ctx, begun, limit); err != nil || repaired == at {
			return
		}
		if err = window(ctx, quiet); err != nil {
			return
		}
	}
}

// repairsAmongFew injects all faults in turn, several times, on a host with three peers, and
// measures the repairs.
func (s *scale) repairsAmongFew(ctx context.Context) ([][]string, error) {
	rows := [][]string{{"", "MEDIAN", "WORST", "OF", "WANTED"}}
	o := manyOverlay("vxlan", 3)
	if err := s.writeMany(ctx, o); err != nil {
		return rows, err
	}
	c, _, err := s.launch(ctx, o, s.next())
	if err != nil {
		return rows, errors.Join(err, c.leave(ctx, s))
	}
	c.monitor.setDelay(0)
	s.progress("faults among 3 peers, %d times", s.plan.faultsAmongFew)
	var all []time.Duration
	each := make([][]time.Duration, len(faults))
	for i := range s.plan.faultsAmongFew {
		// flanneld slows down when something is undone again and again. A new process has no such
		// history.
		if i > 0 && i%(4*len(faults)) == 0 {
			if err := c.restartFlanneld(ctx); err != nil {
				return rows, err
			}
		}
		line := faults[i%len(faults)].command
		begun, _, repaired, err := c.injectFault(ctx, func() (time.Duration, error) { return command(ctx, c.host, line) }, changePause/4)
		if err != nil {
			return rows, fmt.Errorf("%s: %w", line, err)
		}
		all = append(all, repaired.Sub(begun))
		each[i%len(faults)] = append(each[i%len(faults)], repaired.Sub(begun))
	}
	for i, took := range each {
		rows = append(rows, []string{faults[i].command, milliseconds(median(took)), milliseconds(quantile(took, 1)), fmt.Sprint(len(took)), ""})
	}
	rows = append(rows, []string{"all", milliseconds(median(all)), milliseconds(quantile(all, 1)), fmt.Sprint(len(all)), "≤ 100 ms, worst ≤ 1 s"})
	return rows, errors.Join(c.check(), c.leave(ctx, s))
}
