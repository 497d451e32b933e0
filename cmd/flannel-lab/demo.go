package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"flanneld/pkg/lab"
)

const (
	network   = "10.42.0.0/16"
	configKey = "/coreos.com/network/config"
	converge  = 10 * time.Second // time limit for all pairs to reach each other
)

// demo builds a lab, shows it and removes it. The error says what did not work.
func demo(ctx context.Context, s settings, r *report) (err error) {
	r.title("Building %d hosts", s.hosts)
	l, err := lab.New(ctx, lab.Options{Hosts: s.hosts, Flanneld: s.flanneld, Progress: func(line string) { r.line("%s", line) }})
	if err != nil {
		return err
	}
	defer func() {
		closeErr := l.Close()
		if closeErr == nil {
			r.line("removed all namespaces, processes and files")
		}
		err = errors.Join(err, closeErr)
	}()
	containers, err := startNetwork(ctx, l, s.backend, r)
	if err != nil {
		return err
	}
	r.title("Hosts")
	if err := r.hosts(containers); err != nil {
		return err
	}
	failed := 0
	if s.backend == "alloc" {
		r.title("Backend alloc programs nothing: hosts do not reach each other's containers")
	} else if failed, err = traffic(ctx, s, r, containers); err != nil {
		return err
	}
	if err := r.programmed(l.Hosts[0]); err != nil {
		return err
	}
	if s.keep && ctx.Err() == nil {
		r.title("Kept until Ctrl-C")
		r.printAccess(l, s.flanneld, containers)
		<-ctx.Done()
		fmt.Fprintln(r.out)
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d pings had no reply", failed, len(containers)*len(containers))
	}
	return nil
}

// traffic pings between all containers and, if that works, measures their throughput. It returns the
// number of pings without a reply.
func traffic(ctx context.Context, s settings, r *report, containers []*lab.Container) (failed int, err error) {
	r.title("Ping from container (row) to container (column), round-trip time in ms")
	matrix := pingAll(ctx, containers)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if failed = r.matrix(containers, matrix); failed > 0 {
		return failed, nil
	}
	r.title("TCP throughput")
	return 0, throughput(ctx, containers, s.slice, r)
}

// startNetwork writes the network config, starts every flanneld at once and adds a container to each host.
func startNetwork(ctx context.Context, l *lab.Lab, backend string, r *report) ([]*lab.Container, error) {
	r.title("Starting flanneld, backend %s", backend)
	config := fmt.Sprintf(`{"Network":%q,"SubnetLen":24,"Backend":{"Type":%q}}`, network, backend)
	if err := l.Etcd.Put(ctx, configKey, config, 0); err != nil {
		return nil, err
	}
	r.line("%s = %s", configKey, config)
	ready, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	start := time.Now()
	if err := l.StartAll(ready); err != nil {
		return nil, err
	}
	r.line("all %d ready after %d ms", len(l.Hosts), time.Since(start).Milliseconds())
	var containers []*lab.Container
	for _, h := range l.Hosts {
		c, err := h.AddContainer()
		if err != nil {
			return nil, fmt.Errorf("add container on %s: %w", h.Name, err)
		}
		containers = append(containers, c)
	}
	return containers, nil
}

// A reply is the result of a ping.
type reply struct {
	rtt time.Duration
	err error
}

// pingAll pings between all pairs until each has had a reply or the time limit is over.
func pingAll(ctx context.Context, containers []*lab.Container) [][]reply {
	ctx, cancel := context.WithTimeout(ctx, converge)
	defer cancel()
	matrix := make([][]reply, len(containers))
	var rows sync.WaitGroup
	for i, from := range containers {
		matrix[i] = make([]reply, len(containers))
		rows.Go(func() {
			for j, to := range containers {
				cell := &matrix[i][j]
				if _, cell.err = from.WaitPing(ctx, to.Addr); cell.err == nil {
					// Measure the second ping: the first one included ARP, and the start of the
					// other rows.
					cell.rtt, cell.err = from.WaitPing(ctx, to.Addr)
				}
			}
		})
	}
	rows.Wait()
	return matrix
}

// throughput measures TCP from one container to the next, and between the same two hosts without
// the overlay. With many hosts, only the first few pairs are measured.
func throughput(ctx context.Context, containers []*lab.Container, slice time.Duration, r *report) error {
	const pairs, rounds = 3, 10
	if len(containers) < 2 {
		r.line("(needs two hosts)")
		return nil
	}
	for i := range min(pairs, len(containers)) {
		from, to := containers[i], containers[(i+1)%len(containers)]
		sums, err := measure(ctx, []path{
			{name: "overlay", from: &from.Endpoint, to: &to.Endpoint},
			{name: "bare link", from: &from.Host.Endpoint, to: &to.Host.Endpoint},
		}, rounds, slice, streams(1))
		if err != nil {
			return err
		}
		overlay, bare := sums[0].rate(), sums[1].rate()
		r.line("%-6s → %-6s %6.2f Gbit/s    bare link %-3s → %-3s %6.2f Gbit/s    %3.0f %%",
			from.Name, to.Name, overlay/1e9, from.Host.Name, to.Host.Name, bare/1e9, 100*overlay/bare)
	}
	return nil
}
