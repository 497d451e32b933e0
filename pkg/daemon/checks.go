package daemon

import (
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
	"flanneld/pkg/host"
	"flanneld/pkg/kernel"
	"flanneld/pkg/presence"
	"flanneld/pkg/reconcile"
)

const (
	// checkEvery is for what no event tells of, such as sysctls.
	checkEvery = time.Minute
	// checkLull lets a burst of changes end, such as a restart of docker.
	checkLull = 200 * time.Millisecond
	// checkShare bounds what checks cost on a host where much changes: one part in so many
	// of a processor, and checkPause what that delays them if the processor is busy.
	checkShare = 50
	checkPause = 3 * time.Second
)

// checks looks for what of this host keeps the overlay from working: what the reconciler
// could not put, as conditions base/..., and from READY on what others have set up, as
// conditions host/....
//
// It changes nothing. It has a goroutine and a socket of its own, so that nothing waits for it.
type checks struct {
	daemon  *daemon
	kernel  *kernel.Kernel // opened for the first look
	wake    chan struct{}
	missing atomic.Pointer[[]reconcile.Missing] // as the last pass left it
	ready   atomic.Bool                         // the host has its subnet

	said []lacking // by the last look
}

// lacking is a condition with what it is about.
type lacking struct {
	reconcile.Missing
	condition.Condition
}

func newChecks(d *daemon) *checks {
	c := &checks{daemon: d, wake: make(chan struct{}, 1)}
	c.missing.Store(new([]reconcile.Missing))
	return c
}

// trigger asks for a look soon. It never blocks.
func (c *checks) trigger() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// begin says that the host has its subnet.
func (c *checks) begin() {
	c.ready.Store(true)
	c.trigger()
}

// lacks takes what this host needs for itself and lacks. It is the reconciler's to call.
func (c *checks) lacks(missing []reconcile.Missing) {
	if before := c.missing.Swap(&missing); len(*before)+len(missing) > 0 {
		c.trigger()
	}
}

// run looks until ctx ends: when triggered and the burst is over, and once a minute.
func (c *checks) run(ctx context.Context) {
	defer func() {
		if c.kernel != nil {
			c.kernel.Close()
		}
	}()
	pause := time.Duration(0) // that the last look has cost
	for {
		timer := time.NewTimer(checkEvery)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-c.wake:
			timer.Reset(max(checkLull, pause))
			select {
			case <-ctx.Done():
			case <-timer.C:
			}
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
		select { // what the look will see
		case <-c.wake:
		default:
		}
		begun := time.Now()
		c.look()
		pause = min(checkShare*time.Since(begun), checkPause)
	}
}

// look replaces the conditions by what is found now. What cannot be read leaves them.
func (c *checks) look() {
	d := c.daemon
	if c.kernel == nil {
		k, err := kernel.New()
		if err != nil {
			c.failed(err)
			return
		}
		c.kernel = k
	}
	d.conditions.Replace("base/", c.base())
	if !c.ready.Load() {
		return
	}
	found, err := c.findings()
	if err != nil {
		c.failed(err)
		return
	}
	d.conditions.End(uncheckedCondition)
	now := make([]condition.Condition, 0, len(found))
	for _, f := range found {
		now = append(now, condition.Condition{ID: "host/" + f.ID, Text: f.Text, Fields: f.Fields, Command: f.Command})
	}
	d.conditions.Replace("host/", now)
}

// uncheckedCondition is there while this host cannot be looked at.
const uncheckedCondition = "checks"

func (c *checks) failed(err error) {
	c.daemon.conditions.Set(condition.Condition{
		ID: uncheckedCondition, Text: "cannot check this host for what keeps the overlay from working, will retry", Fields: []any{"err", err},
	})
}

// base returns the conditions of what this host needs for itself and lacks. Of one attempt
// the reasons are read once: later, they may be gone before the next one.
func (c *checks) base() []condition.Condition {
	var said []lacking
	var now []condition.Condition
	for _, m := range *c.missing.Load() {
		i := slices.IndexFunc(c.said, func(l lacking) bool { return l.Same(m) })
		if i >= 0 {
			said = append(said, c.said[i])
		} else {
			said = append(said, lacking{m, lack(m, c.reasons(m))})
		}
		now = append(now, said[len(said)-1].Condition)
	}
	c.said = said
	return now
}

func (c *checks) findings() ([]host.Finding, error) {
	f, err := c.daemon.facts.latest()
	if err != nil {
		return nil, err
	}
	o := c.overlay(f)
	daemons, err := presence.Holders()
	if err != nil {
		return nil, err
	}
	for _, d := range daemons {
		if d.Network != o.Network {
			o.Others = append(o.Others, d.Network)
		}
	}
	values, err := c.kernel.Sysctls(o.CheckedSysctls(f))
	if err != nil {
		return nil, err
	}
	s, err := c.kernel.Surroundings(o.Concerns(), o.Devices)
	if err != nil {
		return nil, err
	}
	if d, ok, err := c.kernel.Detour(o.Container()); err != nil {
		return nil, err
	} else if ok {
		s.Detour = &d
	}
	found := append(o.CheckSysctls(f, s, values), o.Check(f, s)...)
	for i := range found {
		found[i] = c.daemon.remedy(found[i], o.Subnet)
	}
	return found, nil
}

// overlay is what this host is compared with. With alloc, who routes knows to where.
func (c *checks) overlay(f host.Facts) host.Overlay {
	d := c.daemon
	view := *d.view.Load()
	base := backend.Foundation(d.net.Backend, d.net.Network, f, view)
	o := host.Overlay{
		Network: d.net.Network, Subnet: view.Own.Subnet,
		Devices:    slices.Sorted(maps.Keys(base.Links)),
		Masquerade: d.options.Rules.Masquerade,
	}
	for k := range base.Routes {
		if slices.Contains(o.Devices, k.Link) {
			o.Routed = append(o.Routed, k.Dst)
		}
	}
	if d.net.BackendType == "alloc" {
		return o
	}
	o.Peers = make([]host.Peer, 0, len(view.Peers))
	for _, p := range view.Peers {
		if d.net.Network.Contains(p.Subnet.Addr()) && !p.Subnet.Overlaps(o.Subnet) {
			o.Peers = append(o.Peers, host.Peer{Subnet: p.Subnet, PublicIP: p.PublicIP})
		}
	}
	return o
}
