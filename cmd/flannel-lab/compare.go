package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Rows of the table of traffic.
const (
	rowBare = iota
	rowVXLAN
	rowHostGW
	rowUDP
	rowNoOffload
	rowWanted
	rowCount
)

// A column is a heading and a cell for each row. A cell may be empty.
type column struct {
	head  string
	cells [rowCount]string
}

// traffic compares the overlays with the bare link and with each other.
func (b *bench) traffic(ctx context.Context) ([][]string, error) {
	paths := []path{{name: "bare link", from: &b.lab.Hosts[0].Endpoint, to: &b.lab.Hosts[1].Endpoint}}
	for _, o := range []*overlay{&b.vxlan, &b.hostGW, &b.udp, &b.noOffload} {
		p, err := containerPath(ctx, *o)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o.name, err)
		}
		paths = append(paths, p)
	}
	var names column
	for i, p := range paths {
		names.cells[i] = p.name
	}
	names.cells[rowWanted] = "wanted of udp"
	if err := reportBackgroundLoad(ctx, b.plan.background, b.progress); err != nil {
		return nil, err
	}
	columns := []column{names}
	var errs []error
	for _, group := range []func(context.Context, []path) ([]column, error){b.tcp, b.packets, b.pings} {
		more, err := group(ctx, paths)
		columns = append(columns, more...)
		if errs = append(errs, err); ctx.Err() != nil {
			break
		}
	}
	return table(columns), errors.Join(errs...)
}

// reportBackgroundLoad reports the load of the machine before the measurement, by which the figures
// can be judged.
func reportBackgroundLoad(ctx context.Context, d time.Duration, progress func(string, ...any)) error {
	processors, err := share(ctx, d, busy)
	if err == nil {
		progress("before that, %.2f processors of this machine are busy", processors)
	}
	return err
}

// tcp measures the throughput of one stream and of several, and the CPU time of one stream.
func (b *bench) tcp(ctx context.Context, paths []path) ([]column, error) {
	one, err := b.series(ctx, "TCP, one stream", paths, b.plan.slices, streams(1))
	if err != nil {
		return nil, err
	}
	cost := column{head: "CPU s/GB"}
	for i, f := range one {
		cost.cells[i] = fmt.Sprintf("%.2f", f.sum.busy.Seconds()/(f.sum.amount/8e9))
	}
	columns := []column{rates("TCP, 1 STREAM", "%.2f Gbit/s", 1e9, one), ratios("× BARE", rowBare, one), ratios("× VXLAN", rowVXLAN, one), cost}
	columns[2].cells[rowWanted] = "≥ 0.50"
	four, err := b.series(ctx, "TCP, four streams", paths, b.plan.shorter(), streams(4))
	if err != nil {
		return columns, err
	}
	return append(columns, rates("4 STREAMS", "%.2f Gbit/s", 1e9, four)), nil
}

// packets measures the rate at which packets of two sizes arrive.
func (b *bench) packets(ctx context.Context, paths []path) (columns []column, err error) {
	for _, size := range []struct {
		bytes  int
		wanted string
	}{{1400, "≥ 0.60"}, {64, ""}} {
		title := fmt.Sprintf("UDP, %d B", size.bytes)
		figures, err := b.series(ctx, title, paths, b.plan.shorter(), datagrams(size.bytes))
		if err != nil {
			return columns, fmt.Errorf("%s: %w", title, err)
		}
		ratio := ratios("× VXLAN", rowVXLAN, figures)
		ratio.cells[rowWanted] = size.wanted
		columns = append(columns, rates(title, "%.0f k/s", 1e3, figures), ratio)
	}
	return columns, nil
}

// pings measures round-trip times over paths without other traffic.
func (b *bench) pings(ctx context.Context, paths []path) ([]column, error) {
	b.progress("pings over %d paths in turn, %d times %v each", len(paths), b.plan.slices, b.plan.slice)
	times, err := roundTrips(ctx, paths, b.plan.slices, b.plan.slice)
	if err != nil {
		return nil, fmt.Errorf("pings: %w", err)
	}
	p50, p99, ratio := column{head: "PING P50"}, column{head: "P99"}, column{head: "× NO OFFLOADS"}
	for i := range times {
		p50.cells[i], p99.cells[i] = microseconds(median(times[i])), microseconds(quantile(times[i], 0.99))
	}
	ratio.cells[rowUDP] = fmt.Sprintf("%.2f", float64(median(times[rowUDP]))/float64(median(times[rowNoOffload])))
	ratio.cells[rowWanted] = "≤ 1.30"
	return []column{p50, p99, ratio}, nil
}

// A figure is the measurement of one path.
type figure struct {
	runs []float64 // amount per second
	sum  sample    // of all runs
}

func (f figure) rate() float64 { return median(f.runs) }

// series measures all paths several times.
func (b *bench) series(ctx context.Context, title string, paths []path, rounds int, m meter) ([]figure, error) {
	figures := make([]figure, len(paths))
	for run := range b.plan.runs {
		b.progress("%s over %d paths in turn, %d times %v each, run %d", title, len(paths), rounds, b.plan.slice, run+1)
		sums, err := measure(ctx, paths, rounds, b.plan.slice, m)
		if err != nil {
			return nil, err
		}
		for i, s := range sums {
			figures[i].runs = append(figures[i].runs, s.rate())
			figures[i].sum = figures[i].sum.plus(s)
		}
	}
	for i, f := range figures {
		if f.rate() == 0 {
			return nil, fmt.Errorf("%s: nothing came", paths[i].name)
		}
	}
	return figures, nil
}

func rates(head, format string, unit float64, figures []figure) column {
	c := column{head: head}
	for i, f := range figures {
		c.cells[i] = fmt.Sprintf(format, f.rate()/unit)
	}
	return c
}

// ratios compares all rows with one of them.
func ratios(head string, row int, figures []figure) column {
	c := column{head: head}
	for i, f := range figures {
		c.cells[i] = fmt.Sprintf("%.2f", f.rate()/figures[row].rate())
	}
	return c
}

// table converts columns to rows for printTable.
func table(columns []column) [][]string {
	rows := make([][]string, 1+rowCount)
	for _, c := range columns {
		rows[0] = append(rows[0], c.head)
		for i, cell := range c.cells {
			rows[1+i] = append(rows[1+i], cell)
		}
	}
	return rows
}
