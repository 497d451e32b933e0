package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/firewall"
	"flanneld/pkg/iptables"
	"flanneld/pkg/lab"
	"flanneld/pkg/nftables"
	"flanneld/pkg/subnetenv"
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
	before, err := p.Usage()
	if err != nil {
		return nil, err
	}
	from := time.Now()
	if err := window(ctx, b.plan.idle); err != nil {
		return nil, err
	}
	after, err := p.Usage()
	if err != nil {
		return nil, err
	}
	busy := float64(after.CPU-before.CPU) / float64(time.Since(from))
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
	if err := end(ctx, h, syscall.SIGTERM); err != nil {
		return err
	}
	env, err := h.ReadSubnet()
	if err != nil {
		return err
	}
	key := fmt.Sprintf("%s/subnets/%s-%d", o.prefix, env.Subnet.Masked().Addr(), env.Subnet.Bits())
	if err := errors.Join(b.lab.Etcd.Delete(ctx, key), os.Remove(h.SubnetFile), os.Remove(subnetenv.ClaimPath(h.SubnetFile))); err != nil {
		return err
	}
	if err := h.Do(func() error { return removeRules(ctx, firewall.Overlay{Network: o.network, Subnet: env.Subnet}) }); err != nil {
		return err
	}
	state, err := overlayOf(h, o.network)
	if err != nil {
		return err
	}
	k, err := openKernel(h)
	if err != nil {
		return err
	}
	defer k.Close()
	var errs []error
	for link := range state.Links {
		errs = append(errs, k.Apply(deletions(state, link, dataplane.KindLink))...)
	}
	return errors.Join(errs...)
}

// removeRules removes an overlay's packet filter rules from this network namespace.
func removeRules(ctx context.Context, o firewall.Overlay) error {
	none := firewall.Ruleset{
		Family: firewall.FamilyOf(o.Network),
		Owner:  firewall.Owner{Network: o.Network, Overlays: []firewall.Overlay{o}},
	}
	nft := new(nftables.Keeper)
	defer nft.Close()
	_, err := iptables.NewTools(0).Installed().Sync(ctx, none)
	if firewall.Absent(err) {
		_, err = nft.Sync(ctx, none)
	}
	return err
}

func medianAndWorst(all []time.Duration) string {
	return fmt.Sprintf("%s, worst %s", milliseconds(median(all)), milliseconds(quantile(all, 1)))
}
