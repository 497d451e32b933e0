package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lab"
)

// openKernel opens the kernel of a host. The caller closes it.
func openKernel(h *lab.Host) (k *kernel.Kernel, err error) {
	err = h.Do(func() error {
		k, err = kernel.New()
		return err
	})
	return k, err
}

// flannelLinks returns the names of flanneld's devices on a host, sorted.
func flannelLinks(h *lab.Host) (names []string, err error) {
	err = h.Do(func() error {
		all, err := net.Interfaces()
		for _, i := range all {
			if strings.HasPrefix(i.Name, "flannel") {
				names = append(names, i.Name)
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list devices of %s: %w", h.Name, err)
	}
	return names, nil
}

// overlayOf returns the objects of a network in a host's kernel.
func overlayOf(h *lab.Host, network netip.Prefix) (dataplane.State, error) {
	links, err := flannelLinks(h)
	if err != nil {
		return dataplane.State{}, err
	}
	k, err := openKernel(h)
	if err != nil {
		return dataplane.State{}, err
	}
	defer k.Close()
	return k.Snapshot(dataplane.Scope{Networks: []netip.Prefix{network}, Links: links})
}

// deletions returns the operations that remove all objects of one kind from a link, or the link
// itself.
func deletions(s dataplane.State, link string, kind dataplane.Kind) (ops []dataplane.Op) {
	for op := range s.Objects(kind) {
		if op.Device() == link {
			op.Verb = dataplane.Del
			ops = append(ops, op)
		}
	}
	return ops
}

// await checks every millisecond whether a condition is true. The error names the condition.
func await(ctx context.Context, what string, limit time.Duration, check func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it took longer than %v", limit))
	defer cancel()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for {
		done, err := check()
		if err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		if done {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, context.Cause(ctx))
		}
	}
}

// share returns how fast a clock of processor time runs for some time.
func share(ctx context.Context, d time.Duration, clock func() (time.Duration, error)) (float64, error) {
	before, err := clock()
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := window(ctx, d); err != nil {
		return 0, err
	}
	after, err := clock()
	return float64(after-before) / float64(time.Since(start)), err
}

// spent returns the clock of a process, for share.
func spent(p *lab.Process) func() (time.Duration, error) {
	return func() (time.Duration, error) {
		u, err := p.Usage()
		return u.CPU, err
	}
}

// window waits for the time in which something is measured.
func window(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("measure for %v: %w", d, ctx.Err())
	}
}
