package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"flanneld/pkg/lab"
)

// A path is a way between two endpoints whose speed is compared with that of others.
type path struct {
	name     string
	from, to *lab.Endpoint
}

// takeTurns measures every path once a round, and every second round in reverse, so that whatever else the machine does
// hits all paths alike.
func takeTurns(paths []path, rounds int, measure func(i int) error) error {
	for round := range rounds {
		for i := range paths {
			if round%2 == 1 {
				i = len(paths) - 1 - i
			}
			if err := measure(i); err != nil {
				return fmt.Errorf("%s: %w", paths[i].name, err)
			}
		}
	}
	return nil
}

// throughputs sends over each path by TCP, one stream at a time, a stream a round, and gives what was sent by path.
func throughputs(ctx context.Context, paths []path, rounds int, each time.Duration) ([]lab.TransferStats, error) {
	sums := make([]lab.TransferStats, len(paths))
	err := takeTurns(paths, rounds, func(i int) error {
		stats, err := paths[i].from.Throughput(ctx, paths[i].to, each)
		sums[i].Bytes += stats.Bytes
		sums[i].Duration += stats.Duration
		return err
	})
	return sums, err
}

// pingEvery is short enough for many round trips and long enough for each to have the machine for itself.
const pingEvery = time.Millisecond

// roundTrips pings over each path and gives the round-trip times of all replies by path.
func roundTrips(ctx context.Context, paths []path, rounds int, each time.Duration) ([][]time.Duration, error) {
	times := make([][]time.Duration, len(paths))
	err := takeTurns(paths, rounds, func(i int) error {
		pinger, err := paths[i].from.StartPinger(paths[i].to.Addr, pingEvery)
		if err != nil {
			return err
		}
		err = window(ctx, each)
		stats := pinger.Stop()
		if err == nil && stats.Received == 0 {
			err = errors.New("no reply")
		}
		times[i] = append(times[i], stats.RTTs...)
		return err
	})
	return times, err
}

// containerPath adds a container to the first two hosts of an overlay and waits until they reach each other.
func containerPath(ctx context.Context, o overlay) (path, error) {
	from, err := o.hosts[0].AddContainer()
	if err != nil {
		return path{}, err
	}
	to, err := o.hosts[1].AddContainer()
	if err != nil {
		return path{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err = from.WaitPing(ctx, to.Addr)
	return path{name: o.backend, from: &from.Endpoint, to: &to.Endpoint}, err
}

// traffic compares the overlays with the bare link: throughput and round-trip times.
func (b *bench) traffic(ctx context.Context) ([][]string, error) {
	rows := [][]string{{"", "TCP, 1 STREAM", "RATIO", "PING P50", "P99", "RATIO OF P50"}}
	paths := []path{{name: "bare link", from: &b.lab.Hosts[0].Endpoint, to: &b.lab.Hosts[1].Endpoint}}
	for _, o := range []overlay{b.vxlan, b.hostGW} {
		p, err := containerPath(ctx, o)
		if err != nil {
			return rows, fmt.Errorf("%s: %w", o.backend, err)
		}
		paths = append(paths, p)
	}
	rates := make([][]float64, len(paths))
	for run := range b.plan.runs {
		b.progress("TCP over %d paths in turn, %d times %v each, run %d", len(paths), b.plan.slices, b.plan.slice, run+1)
		sums, err := throughputs(ctx, paths, b.plan.slices, b.plan.slice)
		if err != nil {
			return rows, err
		}
		for i := range paths {
			rates[i] = append(rates[i], sums[i].BitsPerSecond())
		}
	}
	b.progress("pings over %d paths in turn, %d times %v each", len(paths), b.plan.slices, b.plan.slice)
	times, err := roundTrips(ctx, paths, b.plan.slices, b.plan.slice)
	if err != nil {
		return rows, err
	}
	for i, p := range paths {
		rows = append(rows, []string{
			p.name,
			fmt.Sprintf("%.2f Gbit/s", median(rates[i])/1e9), fmt.Sprintf("%.2f", median(rates[i])/median(rates[0])),
			microseconds(median(times[i])), microseconds(quantile(times[i], 0.99)),
			fmt.Sprintf("%.2f", float64(median(times[i]))/float64(median(times[0]))),
		})
	}
	return rows, nil
}
