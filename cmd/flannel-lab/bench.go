package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"text/tabwriter"
	"time"

	"flanneld/pkg/lab"
)

// A plan says how much is measured.
type plan struct {
	starts  int           // of each sort
	idle    time.Duration // window for idle CPU
	joins   int           // peers that appear
	repairs int           // of each sort
	away    time.Duration // of flanneld, over a restart under traffic
	runs    int           // of throughput
	slices  int           // of a run, in which the paths take turns
	slice   time.Duration // over each path
}

func planOf(quick bool) plan {
	p := plan{
		starts: 5, idle: 20 * time.Second, joins: 20, repairs: 10, away: 500 * time.Millisecond,
		runs: 3, slices: 24, slice: 125 * time.Millisecond,
	}
	if quick {
		p.idle, p.slices = 5*time.Second, 6
	}
	return p
}

// An overlay is a network of some of the lab's hosts.
type overlay struct {
	backend string
	prefix  string // of its keys in etcd
	network netip.Prefix
	config  string
	hosts   []*lab.Host
}

// A bench measures two overlays with different backends on one fabric.
type bench struct {
	lab      *lab.Lab
	flanneld string
	plan     plan
	vxlan    overlay
	hostGW   overlay
	progress func(format string, args ...any)
}

// runBench prints tables to out and, while it measures, lines to progress. The error tells what could not be measured.
func runBench(ctx context.Context, flanneld string, p plan, out, progress io.Writer) (err error) {
	start := time.Now()
	b := &bench{flanneld: flanneld, plan: p, progress: func(format string, args ...any) {
		fmt.Fprintf(progress, "[%5.1f s] %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}}
	b.progress("building hosts")
	if b.lab, err = lab.New(ctx, lab.Options{Hosts: 5, Flanneld: flanneld}); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, b.lab.Close())
		b.progress("removed all namespaces, processes and files")
	}()
	if err := b.startNetworks(ctx); err != nil {
		return err
	}
	var errs []error
	for _, section := range []struct {
		title   string
		measure func(context.Context) ([][]string, error)
	}{
		{"The daemon, with 2 peers, backend vxlan", b.consumption},
		{"Convergence and repair, backend vxlan", b.convergence},
		{fmt.Sprintf("Pings lost, %d/s, while flanneld ends, is away for %v and starts", pingRate, p.away), b.losses},
		{"Traffic, container to container, beside the bare link between two hosts", b.traffic},
	} {
		rows, err := section.measure(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			err = fmt.Errorf("not everything was measured: %w", err)
			b.progress("%v", err)
		}
		errs = append(errs, err, printTable(out, section.title, rows))
	}
	return errors.Join(errs...)
}

// startNetworks runs vxlan on three hosts and host-gw on two others. SubnetMin keeps the lower half of the first
// network free for peers that are made up.
func (b *bench) startNetworks(ctx context.Context) error {
	b.vxlan = overlay{
		backend: "vxlan", prefix: "/coreos.com/network", network: netip.MustParsePrefix("10.42.0.0/16"),
		config: `{"Network":"10.42.0.0/16","SubnetMin":"10.42.128.0","Backend":{"Type":"vxlan"}}`,
		hosts:  b.lab.Hosts[:3],
	}
	b.hostGW = overlay{
		backend: "host-gw", prefix: "/host-gw/network", network: netip.MustParsePrefix("10.43.0.0/16"),
		config: `{"Network":"10.43.0.0/16","Backend":{"Type":"host-gw"}}`,
		hosts:  b.lab.Hosts[3:],
	}
	for _, o := range []overlay{b.vxlan, b.hostGW} {
		b.progress("starting flanneld on %d hosts, backend %s", len(o.hosts), o.backend)
		if err := b.lab.Etcd.Put(ctx, o.prefix+"/config", o.config, 0); err != nil {
			return err
		}
		for _, h := range o.hosts {
			if _, err := start(ctx, o, h); err != nil {
				return err
			}
		}
	}
	return nil
}

// start starts flanneld on a host and gives the time from exec to READY.
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

// printTable prints rows in columns; the first one is their head.
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
