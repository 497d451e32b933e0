package main

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"flanneld/pkg/lab"
)

// consumption measures what the daemon needs: disk, memory, CPU, and time to start.
func (b *bench) consumption(ctx context.Context) ([][]string, error) {
	rows := [][]string{{"", "MEASURED", "WANTED"}}
	file, err := os.Stat(b.flanneld)
	if err != nil {
		return rows, fmt.Errorf("size of the binary: %w", err)
	}
	rows = append(rows, []string{"size of the binary", megabytes(file.Size()), "≤ 20 MB, stripped"})

	h := b.vxlan.hosts[0]
	b.progress("restarting flanneld on %s %d times, and %d times without any state left", h.Name, b.plan.starts, b.plan.starts)
	var all []time.Duration
	for _, sort := range []struct {
		name    string
		prepare func(context.Context, overlay, *lab.Host) error
	}{{"restart", stop}, {"first start", b.removeTraces}} {
		var took []time.Duration
		for range b.plan.starts {
			if err := sort.prepare(ctx, b.vxlan, h); err != nil {
				return rows, fmt.Errorf("prepare a %s: %w", sort.name, err)
			}
			d, err := start(ctx, b.vxlan, h)
			if err != nil {
				return rows, fmt.Errorf("%s: %w", sort.name, err)
			}
			took = append(took, d)
		}
		all = append(all, took...)
		rows = append(rows, []string{"exec to READY, " + sort.name, medianAndWorst(took), "≤ 60 ms"})
	}
	rows = append(rows, []string{fmt.Sprintf("exec to READY, all %d", len(all)), medianAndWorst(all), "≤ 60 ms"})

	idle, err := b.idle(ctx, h.Flanneld())
	return append(rows, idle...), err
}

// idle measures an idle process.
func (b *bench) idle(ctx context.Context, p *lab.Process) ([][]string, error) {
	b.progress("watching an idle flanneld for %v", b.plan.idle)
	if err := window(ctx, time.Second); err != nil { // right after the start it is not idle
		return nil, err
	}
	busy, err := share(ctx, b.plan.idle, spent(p))
	if err != nil {
		return nil, err
	}
	after, err := p.Usage()
	if err != nil {
		return nil, err
	}
	return [][]string{
		{"resident memory", megabytes(after.RSS), "≤ 25 MB"},
		{"resident memory, peak", megabytes(after.HWM), "≤ 25 MB"},
		{fmt.Sprintf("idle CPU, over %v", b.plan.idle), fmt.Sprintf("%.3f %%", 100*busy), "≤ 0.1 %"},
	}, nil
}

// stop stops flanneld on a host.
func stop(ctx context.Context, _ overlay, h *lab.Host) error { return end(ctx, h, syscall.SIGTERM) }

func end(ctx context.Context, h *lab.Host, s syscall.Signal) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := h.Flanneld().Signal(s); err != nil {
		return err
	}
	_, err := h.Flanneld().Wait(ctx)
	return err
}

// removeTraces stops flanneld on a host and removes all that it leaves: lease, files, devices and
// rules.
func (b *bench) removeTraces(ctx context.Context, o overlay, h *lab.Host) error {
	if err := stop(ctx, o, h); err != nil {
		return err
	}
	env, err := h.ReadSubnet()
	if err != nil {
		return err
	}
	key := fmt.Sprintf("%s/subnets/%s-%d", o.prefix, env.Subnet.Masked().Addr(), env.Subnet.Bits())
	p, err := h.Run(lab.Command{Args: []string{"cleanup", "--files", "--subnet-file=" + h.SubnetFile}})
	if err != nil {
		return err
	}
	if code, err := p.Wait(ctx); err != nil || code != 0 {
		return fmt.Errorf("clean up: exit code %d, %w\n%s", code, err, p.Logs())
	}
	return b.lab.Etcd.Delete(ctx, key)
}

func medianAndWorst(all []time.Duration) string {
	return fmt.Sprintf("%s, worst %s", milliseconds(median(all)), milliseconds(quantile(all, 1)))
}
