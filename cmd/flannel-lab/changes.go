package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"flanneld/pkg/lab/etcdkeys"
	"flanneld/pkg/lease"
)

// changePause is the pause after each change. All costs of the change arise within it.
const changePause = 200 * time.Millisecond

// changes measures single changes among many peers: the time from etcd's commit, after which a
// write returns, to the last object in the kernel, and the CPU time.
func (s *scale) changes(ctx context.Context) ([][]string, error) {
	rows := [][]string{{"", "MEDIAN", "WORST", "OF", "WANTED", "CPU A CHANGE", "WANTED"}}
	c := &s.watched
	if c.process == nil {
		return rows, errNotWatched
	}
	c.monitor.setDelay(0)
	idle, err := s.idleShare(ctx)
	if err != nil {
		return rows, err
	}
	n := s.plan.changes
	for _, sort := range []struct {
		name   string
		wanted string
		change func(context.Context, int) (time.Duration, error)
		count  int
	}{
		{"a peer joins", "≤ 20 ms", s.join, n},
		{"a peer comes back with another MAC", "≤ 20 ms", s.changeMAC, n},
		{"a peer leaves, and says so", "≤ 20 ms", s.leave, n},
		{"", "", s.join, n / 4},
		{"a peer's key is deleted, 1 s of grace included", "", s.deleteKey, n / 4},
	} {
		if sort.name != "" {
			s.progress("%s, %d times", sort.name, sort.count)
		}
		took, each, err := s.series(ctx, sort.count, idle, sort.change)
		if err != nil {
			return rows, fmt.Errorf("%s: %w", sort.name, err)
		}
		if sort.name != "" {
			rows = append(rows, []string{sort.name, milliseconds(median(took)), milliseconds(quantile(took, 1)), fmt.Sprint(len(took)),
				sort.wanted, milliseconds(each), "≤ 5 ms"})
		}
	}
	return rows, c.check()
}

// idleShare returns the share of a processor that an idle flanneld uses.
func (s *scale) idleShare(ctx context.Context) (float64, error) {
	d := min(s.plan.idle, 3*time.Second)
	s.progress("an idle flanneld for %v", d)
	return share(ctx, d, spent(s.watched.process))
}

// series makes single changes with pauses between them. It returns the time that each took, and the
// CPU time of one change beyond that of an idle flanneld.
func (s *scale) series(ctx context.Context, n int, idle float64, change func(context.Context, int) (time.Duration, error)) (took []time.Duration, each time.Duration, err error) {
	before, err := s.watched.process.Usage()
	if err != nil {
		return nil, 0, err
	}
	start := time.Now()
	for i := range n {
		d, err := change(ctx, s.watched.etcdPeers+i)
		if err != nil {
			return took, 0, err
		}
		took = append(took, d)
		if err := window(ctx, changePause); err != nil {
			return took, 0, err
		}
	}
	after, err := s.watched.process.Usage()
	spent := after.CPU - before.CPU - time.Duration(idle*float64(time.Since(start)))
	return took, spent / time.Duration(max(1, n)), err
}

// returned returns peer i with the MAC that it has after its return.
func returned(i int) peer {
	p := numberedPeer(i)
	p.mac[1] = 1
	return p
}

func (s *scale) join(ctx context.Context, i int) (time.Duration, error) {
	p := numberedPeer(i)
	return s.change(ctx, nil, p.inKernel(s.watched.name), func(st *store) error { return st.put(ctx, p.attrs(s.watched.name), p.subnet) })
}

func (s *scale) changeMAC(ctx context.Context, i int) (time.Duration, error) {
	was, is := numberedPeer(i), returned(i)
	return s.change(ctx, was.inKernel(s.watched.name), is.inKernel(s.watched.name), func(st *store) error {
		return st.put(ctx, is.attrs(s.watched.name), is.subnet)
	})
}

func (s *scale) leave(ctx context.Context, i int) (time.Duration, error) {
	p := returned(i)
	return s.change(ctx, p.inKernel(s.watched.name), nil, func(st *store) error {
		return st.release(ctx, p.attrs(s.watched.name), p.subnet)
	})
}

func (s *scale) deleteKey(ctx context.Context, i int) (time.Duration, error) {
	p := numberedPeer(i)
	return s.change(ctx, p.inKernel(s.watched.name), nil, func(st *store) error { return st.delete(ctx, p.subnet) })
}

// change makes a change in etcd and returns the time from its first write until the kernel has the
// wanted objects.
func (s *scale) change(ctx context.Context, was, is objects, write func(*store) error) (time.Duration, error) {
	start := time.Now()
	s.watched.monitor.expect(false, was)
	s.watched.monitor.expect(true, is)
	st := &store{keys: s.etcd, dir: s.watched.prefix + "/subnets/"}
	if err := write(st); err != nil {
		return 0, err
	}
	at, err := s.watched.monitor.await(ctx, start, patience)
	return at.Sub(st.wrote), err
}

// A store writes leases and records when the first write was done.
type store struct {
	keys  etcdkeys.Store
	dir   string
	wrote time.Time
}

func (st *store) put(ctx context.Context, a lease.Attrs, subnet netip.Prefix) error {
	value, err := a.Encode()
	if err == nil {
		err = st.keys.Put(ctx, st.dir+lease.Key(lease.SubnetsOf(subnet)), string(value), 0)
	}
	st.markWritten()
	return err
}

func (st *store) markWritten() {
	if st.wrote.IsZero() {
		st.wrote = time.Now()
	}
}

// release gives up a lease as its owner does, but without a compare-and-swap.
func (st *store) release(ctx context.Context, a lease.Attrs, subnet netip.Prefix) error {
	a.Leaving = true
	if err := st.put(ctx, a, subnet); err != nil {
		return err
	}
	return st.delete(ctx, subnet)
}

func (st *store) delete(ctx context.Context, subnet netip.Prefix) error {
	err := st.keys.Delete(ctx, st.dir+lease.Key(lease.SubnetsOf(subnet)))
	st.markWritten()
	return err
}
