// Package checks finds problems of this host that keep the overlay from working: objects that the
// reconciler could not create, as conditions base/..., and, once the network is ready, the
// configuration of other programs, as conditions host/.... It also finds the bridge of this host's
// containers.
//
// Package host defines what is a problem; this package reads the state, and adds remedies that
// depend on more than the host. Invariant: it changes nothing, and nothing waits for it.
package checks

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
	"flanneld/pkg/host"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lease"
	"flanneld/pkg/pace"
	"flanneld/pkg/presence"
	"flanneld/pkg/reconcile"
)

const (
	// idle is the time between checks without an event, for example of sysctls, and wrong that
	// while something is wrong: who has just corrected it wants to see that.
	idle  = time.Minute
	wrong = 5 * time.Second
	// minPause is the delay after an event, so that a burst such as a restart of docker can end.
	minPause = 200 * time.Millisecond
)

// checksCondition is the ID of the condition that the checks fail.
const checksCondition = "checks"

// Kernel reads the state of the kernel.
type Kernel interface {
	Sysctls(paths []string) (map[string]string, error)
	Surroundings(wanted func(dst netip.Prefix) bool, ours []string) (host.Surroundings, error)
	Detour(dst netip.Addr) (d host.Detour, ok bool, err error)
	Holders(protocol string, local netip.AddrPort) ([]kernel.Holder, error)
	VXLANs() ([]kernel.VXLAN, error)
	ReadTUN(name string) (t kernel.TUN, ok bool, err error)
	Close() error
}

// Config configures Checks.
type Config struct {
	Open       func() (Kernel, error)
	Network    backend.Network
	Masquerade bool
	Conditions *condition.List
	// Bridge is called after each check of a host that is ready, with what serves this host's subnet,
	// or nil if that is unknown. It must not block.
	Bridge func(*host.Bridge)
	// Move returns commands that make this host lease other subnets than the given ones.
	Move func(lease.Subnets) string
}

// Checks runs the checks when triggered, and periodically. It has its own goroutine and socket.
// Make one with New.
type Checks struct {
	Config
	wake chan struct{}

	mu sync.Mutex // guards the following
	in inputs

	// The following belong to Run's goroutine.
	kernel   Kernel            // opened by the first check
	reported []reportedMissing // by the last check
	found    bool              // whether the last check found something
}

// inputs are the latest values that other rooms have set.
type inputs struct {
	facts   host.Facts
	unknown error // why facts are unknown
	view    lease.View
	missing []reconcile.Missing
	ready   bool // the host has its subnet
}

// reportedMissing is a missing object with its condition.
type reportedMissing struct {
	reconcile.Missing
	condition.Condition
}

// New returns Checks that have not run yet.
func New(c Config) *Checks { return &Checks{Config: c, wake: make(chan struct{}, 1)} }

// Trigger requests a check, because the configuration of other programs may have changed. Like the
// methods that follow, it never blocks.
func (c *Checks) Trigger() {
	pace.Wake(c.wake)
}

// Ready reports that the host has its subnet.
func (c *Checks) Ready() {
	c.set(func(in *inputs) bool { in.ready = true; return true })
}

// SetFacts sets the facts about this host, or why they are unknown.
func (c *Checks) SetFacts(f host.Facts, err error) {
	c.set(func(in *inputs) bool { in.facts, in.unknown = f, err; return true })
}

// SetView sets the view of the network.
func (c *Checks) SetView(v lease.View) {
	c.set(func(in *inputs) (moved bool) {
		moved, in.view = in.view.Own.Subnets != v.Own.Subnets, v
		return moved
	})
}

// SetMissing sets the objects that this host itself needs and that are missing after the last pass.
func (c *Checks) SetMissing(missing []reconcile.Missing) {
	c.set(func(in *inputs) (changed bool) {
		changed, in.missing = len(in.missing)+len(missing) > 0, missing
		return changed
	})
}

// set changes inputs, and requests a check if change returns true.
func (c *Checks) set(change func(*inputs) (look bool)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if change(&c.in) {
		c.Trigger()
	}
}

// Run runs the checks until ctx ends: after a burst of triggers, and once a minute, or more often
// while something is wrong.
func (c *Checks) Run(ctx context.Context) {
	defer func() {
		if c.kernel != nil {
			c.kernel.Close()
		}
	}()
	// The share of time of checks is limited on a host with many changes, and so is their delay if
	// the processor is busy.
	share, rest := pace.Share{OneIn: 50, Min: minPause, Max: 3 * time.Second}, minPause
	again, next := pace.Share{OneIn: 500, Min: wrong, Max: idle}, idle
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		case <-c.wake:
			if pace.Sleep(ctx, rest) != nil {
				return
			}
		}
		select { // triggers up to now are served by this check
		case <-c.wake:
		default:
		}
		begun := time.Now()
		c.Conditions.SetError(condition.Condition{ID: checksCondition, Severity: condition.Notice, Text: "host checks failed, will retry"}, c.check())
		rest, next = share.Rest(time.Since(begun)), idle
		if c.found {
			next = again.Rest(time.Since(begun))
		}
	}
}

// check replaces the conditions by the present findings. If the state cannot be read, they are
// kept.
func (c *Checks) check() error {
	if c.kernel == nil {
		k, err := c.Open()
		if err != nil {
			return err
		}
		c.kernel = k
	}
	c.mu.Lock()
	in := c.in
	c.mu.Unlock()
	c.Conditions.Replace("base/", c.baseConditions(in.missing))
	if !in.ready {
		return nil
	}
	found, bridge, err := c.findings(in)
	c.Bridge(bridge)
	if err != nil {
		return err
	}
	now := make([]condition.Condition, 0, len(found))
	for _, f := range found {
		now = append(now, condition.Condition{
			ID: "host/" + f.ID, Text: f.Text, Fields: f.Fields, Command: f.Command,
		})
	}
	c.Conditions.Replace("host/", now)
	c.found = len(found) > 0
	return nil
}

// baseConditions returns the conditions of missing objects that this host itself needs. The reasons
// for one failed attempt are read once, because they may be gone before the next one.
func (c *Checks) baseConditions(missing []reconcile.Missing) (now []condition.Condition) {
	var said []reportedMissing
	for _, m := range missing {
		i := slices.IndexFunc(c.reported, func(l reportedMissing) bool { return l.Same(m) })
		if i >= 0 {
			said = append(said, c.reported[i])
		} else {
			said = append(said, reportedMissing{m, missingCondition(m, c.reasons(m))})
		}
		now = append(now, said[len(said)-1].Condition)
	}
	c.reported = said
	return now
}

// findings returns the problems of this host, and what serves its subnet. The latter is nil if it
// could not be read.
func (c *Checks) findings(in inputs) ([]host.Finding, *host.Bridge, error) {
	if in.unknown != nil {
		return nil, nil, in.unknown
	}
	f := in.facts
	o := c.overlay(f, in.view)
	daemons, err := presence.Daemons()
	if err != nil {
		return nil, nil, err
	}
	for _, d := range daemons {
		if d.Network != o.Network {
			o.Others = append(o.Others, d.Network)
		}
	}
	values, err := c.kernel.Sysctls(o.CheckedSysctls(f))
	if err != nil {
		return nil, nil, err
	}
	s, err := c.kernel.Surroundings(o.Relevant(), o.Devices)
	if err != nil {
		return nil, nil, err
	}
	bridge := s.Bridge(o.Subnet, slices.Concat(o.Devices, []string{f.Uplink})...)
	if d, ok, err := c.kernel.Detour(o.Container()); err != nil {
		return nil, nil, err
	} else if ok {
		s.Detour = &d
	}
	found := append(o.CheckSysctls(f, s, values), o.Check(f, s)...)
	for i := range found {
		if id := found[i].ID; id == host.SubnetInside || id == host.LANInside || id == host.NeedInside {
			found[i].Command = c.Move(in.view.Own.Subnets)
		}
	}
	return found, &bridge, nil
}

// overlay returns the overlay that the host's state is compared with. With backend alloc, the
// routes are not flanneld's.
func (c *Checks) overlay(f host.Facts, view lease.View) host.Overlay {
	network := c.Network.V4.Network
	base := backend.SafeBase(c.Network.Backend, network, f, view)
	o := host.Overlay{
		Network: network, Subnet: view.Own.Subnets.V4(),
		Devices:    slices.Sorted(maps.Keys(base.Links)),
		Masquerade: c.Masquerade,
	}
	for k := range base.Routes {
		if slices.Contains(o.Devices, k.Link) {
			o.Routed = append(o.Routed, k.Dst)
		}
	}
	if c.Network.BackendType == "alloc" {
		return o
	}
	o.Peers = make([]host.Peer, 0, len(view.Peers))
	for _, p := range view.Peers {
		if network.Contains(p.Subnets.V4().Addr()) && !p.Subnets.V4().Overlaps(o.Subnet) {
			o.Peers = append(o.Peers, host.Peer{Subnet: p.Subnets.V4(), PublicIP: p.PublicIP})
		}
	}
	return o
}
