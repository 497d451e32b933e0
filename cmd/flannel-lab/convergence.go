package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/kernel"
)

const (
	vxlanLink = "flannel.1"
	// patience is far longer than anything that is measured.
	patience = 10 * time.Second
	pingRate = 100 // per second, over a restart
)

// convergence measures the time from a change in etcd or on a host until the kernel of a host is
// right.
func (b *bench) convergence(ctx context.Context) ([][]string, error) {
	rows := [][]string{{"", "MEDIAN", "WORST", "OF"}}
	var errs []error
	add := func(what string, took []time.Duration, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
			return
		}
		rows = append(rows, []string{what, milliseconds(median(took)), milliseconds(quantile(took, 1)), fmt.Sprint(len(took))})
	}
	joins, err := b.joins(ctx)
	add("key of a new peer in etcd → its route, neighbour and FDB entry", joins, err)
	for _, fault := range []struct {
		name string
		kind dataplane.Kind
	}{
		{"ip link del " + vxlanLink, dataplane.KindLink},
		{"ip route flush", dataplane.KindRoute},
		{"ip neigh flush", dataplane.KindNeigh},
		{"bridge fdb flush", dataplane.KindFDB},
	} {
		b.progress("%s, %d times", fault.name, b.plan.repairs)
		took, err := b.repairs(ctx, fault.kind)
		add(fault.name+" → repaired", took, err)
	}
	return rows, errors.Join(errs...)
}

// joins adds peers in etcd one after another and measures the reaction of a host whose own lease
// does not change.
func (b *bench) joins(ctx context.Context) ([]time.Duration, error) {
	b.progress("%d peers appear", b.plan.joins)
	k, err := openKernel(b.vxlan.hosts[1])
	if err != nil {
		return nil, err
	}
	defer k.Close()
	var took []time.Duration
	for i := range b.plan.joins {
		p := examplePeer(i)
		start := time.Now()
		e, err := p.entry(b.vxlan)
		if err != nil {
			return took, err
		}
		if err := b.lab.Etcd.Put(ctx, e.Key, e.Value, 0); err != nil {
			return took, err
		}
		if err := b.awaitState(ctx, k, "all of the peer", func(s dataplane.State) bool { return p.among(s) == 3 }); err != nil {
			return took, err
		}
		took = append(took, time.Since(start))
		if err := b.lab.Etcd.Delete(ctx, e.Key); err != nil {
			return took, err
		}
		if err := b.awaitState(ctx, k, "nothing of the peer", func(s dataplane.State) bool { return p.among(s) == 0 }); err != nil {
			return took, err
		}
		if err := window(ctx, changePause); err != nil { // measure single changes only
			return took, err
		}
	}
	return took, nil
}

// repairs injects the same fault on a host several times and measures the repairs.
func (b *bench) repairs(ctx context.Context, kind dataplane.Kind) ([]time.Duration, error) {
	h := b.vxlan.hosts[0]
	// The daemon slows down when something is undone again and again. A new process starts without
	// this history.
	if err := stop(ctx, b.vxlan, h); err != nil {
		return nil, err
	}
	if _, err := start(ctx, b.vxlan, h); err != nil {
		return nil, err
	}
	k, err := openKernel(h)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	before, err := k.Snapshot(b.vxlanScope())
	if err != nil {
		return nil, err
	}
	ops := deletions(before, vxlanLink, kind)
	if len(ops) == 0 {
		return nil, errors.New("there is nothing to delete")
	}
	var took []time.Duration
	for range b.plan.repairs {
		start := time.Now()
		if err := errors.Join(k.Apply(ops)...); err != nil {
			return took, err
		}
		if err := b.awaitState(ctx, k, "the repair", before.Equal); err != nil {
			return took, err
		}
		took = append(took, time.Since(start))
	}
	return took, nil
}

func (b *bench) vxlanScope() dataplane.Scope {
	return dataplane.Scope{Networks: []netip.Prefix{b.vxlan.network}, Links: []string{vxlanLink}}
}

func (b *bench) awaitState(ctx context.Context, k *kernel.Kernel, what string, check func(dataplane.State) bool) error {
	return await(ctx, what, patience, func() (bool, error) {
		s, err := k.Snapshot(b.vxlanScope())
		return err == nil && check(s), err
	})
}

// losses counts the pings between containers that are lost while flanneld restarts on one of the
// hosts.
func (b *bench) losses(ctx context.Context) ([][]string, error) {
	rows := [][]string{{"", "LOST", "OF", "LONGEST GAP"}}
	h := b.vxlan.hosts[0]
	p, err := containerPath(ctx, b.vxlan)
	if err != nil {
		return rows, err
	}
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		b.progress("%s and start, under traffic", unix.SignalName(s))
		pinger, err := p.from.StartPinger(p.to.Addr, time.Second/pingRate)
		if err != nil {
			return rows, err
		}
		err = paused(ctx, b.plan.away, func() error { return end(ctx, h, s) }, func() error {
			_, err := start(ctx, b.vxlan, h)
			return err
		})
		stats := pinger.Stop()
		if err != nil {
			return rows, err
		}
		rows = append(rows, []string{unix.SignalName(s), fmt.Sprint(stats.Lost), fmt.Sprint(stats.Sent), milliseconds(stats.Outage)})
	}
	return rows, nil
}

// paused runs steps, such as the end and the start of flanneld, with a pause before, between and
// after them, so that late losses are counted.
func paused(ctx context.Context, d time.Duration, steps ...func() error) error {
	for _, step := range steps {
		if err := window(ctx, d); err != nil {
			return err
		}
		if err := step(); err != nil {
			return err
		}
	}
	return window(ctx, d)
}

// A peer exists in etcd only.
type peer struct {
	subnet netip.Prefix
	public netip.Addr
	mac    dataplane.MAC
}

// examplePeer returns peer i, 0 to 99.
func examplePeer(i int) peer {
	n := byte(i + 1)
	return peer{
		subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 42, n, 0}), 24),
		public: netip.AddrFrom4([4]byte{203, 0, 113, n}), // RFC 5737: for documentation, never a real host
		mac:    dataplane.MAC{0x0a, 0, 0, 0, 0, n},
	}
}

func (p peer) key() string { return fmt.Sprintf("%s-%d", p.subnet.Addr(), p.subnet.Bits()) }

// among returns how many of the peer's objects are in a kernel.
func (p peer) among(s dataplane.State) (n int) {
	have := objectsOf(s, vxlanLink)
	for o, mac := range p.inKernel("vxlan") {
		if m, ok := have[o]; ok && m == mac {
			n++
		}
	}
	return n
}
