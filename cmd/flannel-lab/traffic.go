package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/wait"
)

// A path is a pair of endpoints whose speed is compared with that of others.
type path struct {
	name     string
	from, to *lab.Endpoint
}

// takeTurns measures every path once in each round, in reverse order in every second round, so that
// background load affects all paths alike.
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

// A sample is the result of traffic on a path.
type sample struct {
	amount  float64 // bits or packets
	elapsed time.Duration
	busy    time.Duration // by all processors of the machine
}

func (s sample) plus(o sample) sample {
	return sample{s.amount + o.amount, s.elapsed + o.elapsed, s.busy + o.busy}
}

// rate returns the amount per second.
func (s sample) rate() float64 { return s.amount / max(s.elapsed.Seconds(), 1e-9) }

// A meter sends over a path for some time.
type meter func(ctx context.Context, p path, d time.Duration) (sample, error)

// streams returns a meter of n parallel TCP connections.
func streams(n int) meter {
	return func(ctx context.Context, p path, d time.Duration) (s sample, err error) {
		stats, errs := make([]lab.TransferStats, n), make([]error, n)
		var all sync.WaitGroup
		for i := range n {
			all.Go(func() { stats[i], errs[i] = p.from.Throughput(ctx, p.to, d) })
		}
		all.Wait()
		for _, one := range stats {
			s.amount += 8 * float64(one.Bytes)
			s.elapsed = max(s.elapsed, one.Duration)
		}
		return s, errors.Join(errs...)
	}
}

// datagrams returns a meter of UDP packets of a size, of which it sends more than any path carries.
func datagrams(size int) meter {
	return func(ctx context.Context, p path, d time.Duration) (sample, error) {
		stats, err := p.from.Flood(ctx, p.to, size, d)
		return sample{amount: float64(stats.Received), elapsed: stats.Duration}, err
	}
}

// measure sends over each path once in each round and returns the sums by path.
func measure(ctx context.Context, paths []path, rounds int, each time.Duration, m meter) ([]sample, error) {
	sums := make([]sample, len(paths))
	err := takeTurns(paths, rounds, func(i int) error {
		before, err := busy()
		if err != nil {
			return err
		}
		s, err := m(ctx, paths[i], each)
		if err != nil {
			return err
		}
		after, err := busy()
		s.busy = after - before
		sums[i] = sums[i].plus(s)
		return err
	})
	return sums, err
}

const (
	// pingEvery is short enough for many round trips and long enough for each to have the machine
	// for itself.
	pingEvery = time.Millisecond
	// warmUp is the number of replies at the begin of each turn that are ignored, because the
	// pinger was still starting.
	warmUp = 5
)

// roundTrips pings over each path and returns the round-trip times by path. A turn lasts until
// there are replies that count: on a busy machine there may be none in the given time.
func roundTrips(ctx context.Context, paths []path, rounds int, each time.Duration) ([][]time.Duration, error) {
	times := make([][]time.Duration, len(paths))
	err := takeTurns(paths, rounds, func(i int) error {
		pinger, err := paths[i].from.StartPinger(paths[i].to.Addr, pingEvery)
		if err != nil {
			return err
		}
		if err = window(ctx, each); err == nil {
			err = awaitReplies(ctx, pinger)
		}
		times[i] = append(times[i], counted(pinger.Stop().RTTs)...)
		return err
	})
	return times, err
}

// awaitReplies waits for replies that count.
func awaitReplies(ctx context.Context, pinger *lab.Pinger) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return wait.Until(ctx, func() error {
		if stats := pinger.Stats(); len(counted(stats.RTTs)) == 0 {
			return fmt.Errorf("%d replies to %d pings", stats.Received, stats.Sent)
		}
		return nil
	})
}

// counted returns the replies that count.
func counted(times []time.Duration) []time.Duration { return times[min(warmUp, len(times)):] }

// containerPath adds a container to the first two hosts of an overlay and waits until they reach
// each other.
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
	return path{name: o.name, from: &from.Endpoint, to: &to.Endpoint}, err
}
