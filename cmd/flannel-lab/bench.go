package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"text/tabwriter"
	"time"

	"flanneld/pkg/lab"
)

// A plan is the extent of the measurements.
type plan struct {
	starts     int           // of each kind
	idle       time.Duration // time over which idle CPU is measured
	joins      int           // peers that join
	repairs    int           // of each kind
	away       time.Duration // time without flanneld in a restart under traffic
	background time.Duration // time over which the background load is measured
	runs       int           // runs of each kind of traffic
	slices     int           // slices of a run; the paths take turns
	slice      time.Duration // time for each path in a slice
	peerCounts []int         // numbers of peers in the section peers

	sizes          []int // numbers of peers in the section scale, ascending
	launches       int   // starts with each number of peers
	changes        int   // changes of each kind, with most peers
	repetitions    int   // restarts, and faults of each kind, with most peers
	faultsAmongFew int   // faults with three peers
}

func planOf(quick bool) plan {
	p := plan{
		starts: 5, idle: 20 * time.Second, joins: 20, repairs: 10, away: 500 * time.Millisecond, background: time.Second,
		runs: 3, slices: 24, slice: 125 * time.Millisecond, peerCounts: []int{100, 5000},
		sizes: []int{1000, 5000, 20_000}, launches: 5, changes: 20, repetitions: 3, faultsAmongFew: 100,
	}
	if quick {
		p.idle, p.slices, p.launches, p.repetitions, p.faultsAmongFew = 3*time.Second, 5, 1, 1, 20
	}
	return p
}

// shorter returns the number of slices of a run that is not the main one.
func (p plan) shorter() int { return max(1, p.slices/3) }

// peerCountRounds returns the number of slices of a run over paths with different numbers of peers.
func (p plan) peerCountRounds() int { return max(1, p.slices*2/3) }

// An overlay is a network of some hosts of the lab.
type overlay struct {
	name      string
	prefix    string // prefix of its keys in etcd
	network   netip.Prefix
	config    string
	etcdPeers int // number of peers that exist in etcd only
	hosts     []*lab.Host
}

// A bench measures overlays with different backends on one fabric.
type bench struct {
	lab       *lab.Lab
	flanneld  string
	plan      plan
	vxlan     overlay
	hostGW    overlay
	udp       overlay
	noOffload overlay   // udp without offloads
	manyPeers []overlay // udp with many peers
	progress  func(format string, args ...any)
}

// A section is a table of the report. Sections with the same name are measured together.
type section struct {
	name, title string
	measure     func(context.Context) ([][]string, error)
}

// sectionNames are the names that --only accepts.
var sectionNames = []string{"daemon", "convergence", "restart", "traffic", "peers", "scale"}

// runBench prints tables to out, and what it does to progress. If only is not empty, it measures
// that section only. The error says what could not be measured.
func runBench(ctx context.Context, flanneld, only string, p plan, out, progress io.Writer) error {
	start := time.Now()
	say := func(format string, args ...any) {
		fmt.Fprintf(progress, "[%5.1f s] %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}
	few, many := &bench{flanneld: flanneld, plan: p, progress: say}, &scale{plan: p, progress: say}
	var errs []error
	for _, part := range []struct {
		sections []section
		build    func(context.Context) error
		close    func() error
	}{{few.sections(), few.build, few.close}, {many.sections(), func(ctx context.Context) error { return many.build(ctx, flanneld) }, many.close}} {
		sections := slices.DeleteFunc(part.sections, func(s section) bool { return only != "" && s.name != only })
		if len(sections) == 0 {
			continue
		}
		say("building hosts")
		err := part.build(ctx)
		if err == nil {
			err = measureAll(ctx, sections, out, say)
		}
		say("removing all namespaces, processes and files")
		errs = append(errs, err, part.close())
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// measureAll measures and prints one table after another. It continues after a section that fails.
func measureAll(ctx context.Context, sections []section, out io.Writer, say func(string, ...any)) error {
	var errs []error
	for _, s := range sections {
		rows, err := s.measure(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			err = fmt.Errorf("not everything was measured: %w", err)
			say("%v", err)
		}
		errs = append(errs, err, printTable(out, s.title, rows))
	}
	return errors.Join(errs...)
}

func (b *bench) sections() []section {
	return []section{
		{"daemon", "The daemon, with 2 peers, backend vxlan", b.consumption},
		{"convergence", "Convergence and repair, backend vxlan", b.convergence},
		{"restart", fmt.Sprintf("Pings lost, %d/s, while flanneld ends, is away for %v and starts", pingRate, b.plan.away), b.losses},
		{"traffic", "Traffic, container to container, beside the bare link between two hosts; CPU of the whole machine (/proc/stat)", b.traffic},
		{"peers", "udp, by the number of peers in its forwarding table", b.byPeerCount},
	}
}

// build creates the lab and starts flanneld on most of its hosts.
func (b *bench) build(ctx context.Context) (err error) {
	if b.lab, err = lab.New(ctx, lab.Options{Hosts: b.defineNetworks(), Flanneld: b.flanneld}); err != nil {
		return err
	}
	b.assignHosts()
	for _, o := range []overlay{b.vxlan, b.hostGW, b.udp, b.noOffload} {
		if err := b.startNetwork(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) close() error {
	if b.lab == nil {
		return nil
	}
	return b.lab.Close()
}

// defineNetworks defines the networks and returns the number of hosts that they need. SubnetMin
// reserves the lower half of the first network for peers that exist in etcd only; SubnetMax does so
// with all but the first /16 of the networks with many peers.
func (b *bench) defineNetworks() (hosts int) {
	network := func(name, prefix, network, rest string) overlay {
		config := fmt.Sprintf(`{"Network":%q,%s}`, network, rest)
		return overlay{name: name, prefix: prefix + "/network", network: netip.MustParsePrefix(network), config: config}
	}
	b.vxlan = network("vxlan", "/coreos.com", "10.42.0.0/16", `"SubnetMin":"10.42.128.0","Backend":{"Type":"vxlan"}`)
	b.hostGW = network("host-gw", "/host-gw", "10.43.0.0/16", `"Backend":{"Type":"host-gw"}`)
	b.udp = network("udp", "/udp", "10.44.0.0/16", `"Backend":{"Type":"udp"}`)
	b.noOffload = network("udp without offloads", "/no-offload", "10.45.0.0/16", `"Backend":{"Type":"udp","Offload":false}`)
	for i, peers := range b.plan.peerCounts {
		first := 64 + 32*i
		o := network(fmt.Sprintf("udp with %d peers", peers), fmt.Sprintf("/peers%d", i), fmt.Sprintf("10.%d.0.0/11", first),
			fmt.Sprintf(`"SubnetLen":24,"SubnetMin":"10.%d.1.0","SubnetMax":"10.%d.250.0","Backend":{"Type":"udp"}`, first, first))
		o.etcdPeers = peers - 1 // the other host is a peer too
		b.manyPeers = append(b.manyPeers, o)
	}
	return 3 + 2*(3+len(b.manyPeers))
}

// assignHosts assigns hosts to each network.
func (b *bench) assignHosts() {
	rest := b.lab.Hosts
	take := func(o *overlay, n int) { o.hosts, rest = rest[:n:n], rest[n:] }
	take(&b.vxlan, 3)
	for _, o := range []*overlay{&b.hostGW, &b.udp, &b.noOffload} {
		take(o, 2)
	}
	for i := range b.manyPeers {
		take(&b.manyPeers[i], 2)
	}
}

// startNetwork writes the config of a network and starts flanneld on its hosts.
func (b *bench) startNetwork(ctx context.Context, o overlay) error {
	b.progress("starting flanneld on %d hosts, %s", len(o.hosts), o.name)
	if err := b.lab.Etcd.Put(ctx, o.prefix+"/config", o.config, 0); err != nil {
		return err
	}
	for _, h := range o.hosts {
		if _, err := start(ctx, o, h); err != nil {
			return err
		}
	}
	return nil
}

// start starts flanneld on a host and returns the time from exec to READY.
func start(ctx context.Context, o overlay, h *lab.Host) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	p, err := h.Start("-etcd-prefix=" + o.prefix)
	if err != nil {
		return 0, err
	}
	if err := p.WaitReady(ctx); err != nil {
		return 0, fmt.Errorf("host %s: %w", h.Name, err)
	}
	return p.ReadyAfter(), nil
}

// printTable prints rows in columns. The first row is the heading.
func printTable(out io.Writer, title string, rows [][]string) error {
	fmt.Fprintf(out, "\n%s\n\n", title)
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if i == 0 {
				cell = "  " + cell
			} else {
				cell = "\t" + cell
			}
			fmt.Fprint(table, cell)
		}
		fmt.Fprintln(table)
	}
	return table.Flush()
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1e3)
}

func microseconds(d time.Duration) string {
	return fmt.Sprintf("%.0f µs", float64(d.Nanoseconds())/1e3)
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
