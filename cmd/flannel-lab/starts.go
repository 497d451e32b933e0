package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lease"
)

// A watchedHost is a host that runs flanneld with many peers and is observed from outside.
type watchedHost struct {
	overlay
	host    *lab.Host
	process *lab.Process
	begun   time.Time // just before exec
	monitor *monitor
}

// A launch is the result of a start of flanneld on an unused host. All times are from just before
// exec.
type launch struct {
	leased   time.Duration // until it has logged its subnet, after it has written its lease
	complete time.Duration // until the kernel has all objects of all peers
	ready    time.Duration // until READY
	lab.Usage
}

// limit is the time limit for everything with many peers.
const limit = time.Minute

// launch starts flanneld on a host with the peers of an overlay.
func (s *scale) launch(ctx context.Context, o overlay, h *lab.Host) (c watchedHost, l launch, err error) {
	c = watchedHost{overlay: o, host: h}
	if c.monitor, err = openMonitor(h, o.network, deviceOf(o, h)); err != nil {
		return c, l, err
	}
	for i := range o.etcdPeers {
		c.monitor.expect(true, numberedPeer(i).inKernel(o.name))
	}
	c.monitor.setDelay(time.Millisecond)
	if err := c.start(ctx); err != nil {
		return c, l, err
	}
	at, err := c.monitor.await(ctx, c.begun, limit)
	if err != nil {
		return c, l, err
	}
	leased, err := loggedAt(c.process, leaseTexts...)
	if err != nil {
		return c, l, err
	}
	l.leased, l.complete, l.ready = leased.Sub(c.begun), at.Sub(c.begun), c.process.ReadyAfter()
	// Include what it does right after the start.
	if err := window(ctx, s.plan.background/2); err != nil {
		return c, l, err
	}
	if l.Usage, err = c.process.Usage(); err != nil {
		return c, l, err
	}
	return c, l, c.check()
}

// leaseTexts are the beginnings of the messages with which flanneld logs its subnet.
var leaseTexts = []string{"allocated lease", "reused own lease"}

// start starts flanneld and waits until it is ready.
func (c *watchedHost) start(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c.begun = time.Now()
	if c.process, err = c.host.Start("-etcd-prefix=" + c.prefix); err != nil {
		return err
	}
	if err = c.process.WaitReady(ctx); err != nil {
		return fmt.Errorf("host %s: %w", c.host.Name, err)
	}
	return nil
}

// check compares the wanted objects with a list of the kernel's, to make sure that no notification
// was lost.
func (c *watchedHost) check() error {
	k, err := openKernel(c.host)
	if err != nil {
		return err
	}
	defer k.Close()
	have, err := listObjects(k, c.network, deviceOf(c.overlay, c.host))
	if want := c.monitor.wanted(); err == nil && !maps.Equal(have, want) {
		err = fmt.Errorf("the kernel of %s holds %d objects, which are not the %d wanted", c.host.Name, len(have), len(want))
	}
	return err
}

// starts compares starts with increasing numbers of peers with the baseline.
func (s *scale) starts(ctx context.Context) ([][]string, error) {
	rows := [][]string{{"", "EXEC TO COMPLETE", "BASELINE", "RATIO", "LEASE TO COMPLETE", "A PEER", "× AT FEWEST", "READY", "CPU", "PEAK MEMORY"}}
	if err := reportBackgroundLoad(ctx, s.plan.background, s.progress); err != nil {
		return rows, err
	}
	for _, backend := range []string{"vxlan", "host-gw"} {
		least := 0.0
		for _, n := range s.plan.sizes {
			o := manyOverlay(backend, n)
			if err := s.writeMany(ctx, o); err != nil {
				return rows, err
			}
			launches, baselines, err := s.alternate(ctx, o)
			if err != nil {
				return rows, fmt.Errorf("%s, %s: %w", backend, plural(n, "peer"), err)
			}
			s.baselines[o.prefix] = medianBaseline(baselines)
			row, each := startRow(launches, s.baselines[o.prefix].all(), n)
			if least == 0 {
				least = each
			}
			row[0], row[6] = backend+", "+plural(n, "peer"), fmt.Sprintf("%.2f", each/least)
			rows = append(rows, row)
		}
	}
	return append(rows, []string{"wanted at 20,000", "", "", "≤ 2", "", "", "≤ 1.3", "", "", "≤ 80 MB"}), nil
}

// alternate starts flanneld and measures the baseline in turn, each time on another host. With most
// peers, the last flanneld keeps running for the next sections.
func (s *scale) alternate(ctx context.Context, o overlay) (launches []launch, baselines []baseline, err error) {
	for i := range s.plan.launches {
		s.progress("%s, %s: start and baseline, %d of %d", o.name, plural(o.etcdPeers, "peer"), i+1, s.plan.launches)
		f, err := s.baseline(ctx, o, s.next())
		if err != nil {
			return nil, nil, err
		}
		c, l, err := s.launch(ctx, o, s.next())
		if err != nil {
			return nil, nil, errors.Join(err, c.leave(ctx, s))
		}
		launches, baselines = append(launches, l), append(baselines, f)
		s.progress("%s, %s: complete after %s, baseline %s", o.name, plural(o.etcdPeers, "peer"), milliseconds(l.complete), milliseconds(f.all()))
		if last := i == s.plan.launches-1; last && o.name == "vxlan" && o.etcdPeers == s.plan.sizes[len(s.plan.sizes)-1] {
			s.watched = c
		} else if err := c.leave(ctx, s); err != nil {
			return nil, nil, err
		}
	}
	return launches, baselines, nil
}

// leave stops flanneld and removes what it has programmed, and its lease.
func (c *watchedHost) leave(ctx context.Context, s *scale) error {
	if c.monitor != nil {
		c.monitor.close()
	}
	if c.process == nil {
		return nil
	}
	if err := stop(ctx, c.overlay, c.host); err != nil {
		return err
	}
	env, err := c.host.ReadSubnet()
	if err != nil {
		return err
	}
	key := c.prefix + "/subnets/" + lease.Key(lease.SubnetsOf(env.Subnet.Masked()))
	return errors.Join(s.etcd.Delete(ctx, key), s.clear(ctx, c.overlay, c.host))
}

func startRow(launches []launch, baseline time.Duration, peers int) (row []string, each float64) {
	complete := medianOf(launches, func(l launch) time.Duration { return l.complete })
	var peak int64
	for _, l := range launches {
		peak = max(peak, l.HWM)
	}
	each = float64(complete) / float64(peers)
	return []string{
		"", milliseconds(complete), milliseconds(baseline), fmt.Sprintf("%.2f", float64(complete)/float64(baseline)),
		milliseconds(medianOf(launches, func(l launch) time.Duration { return l.complete - l.leased })), strconv.FormatFloat(each/1e3, 'f', 1, 64) + " µs", "",
		milliseconds(medianOf(launches, func(l launch) time.Duration { return l.ready })),
		milliseconds(medianOf(launches, func(l launch) time.Duration { return l.CPU })), megabytes(peak),
	}, each
}
