// Package checks looks for what of this host keeps the overlay from working: what the reconciler
// could not put, as conditions base/..., and, once the network is ready, what others have set up,
// as conditions host/....
//
// What is wrong is for package host to say; this one reads, and knows the remedies that take more
// than the host. Invariant: it changes nothing, and nothing waits for it.
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
	// idle is the time between looks for what no event tells of, such as sysctls.
	idle = time.Minute
	// minPause lets a burst of changes end, such as a restart of docker.
	minPause = 200 * time.Millisecond
)

// checkShare bounds what looks cost on a host where much changes, and what that delays them if the
// processor is busy.
func checkShare() pace.Share { return pace.Share{OneIn: 50, Min: minPause, Max: 3 * time.Second} }

// checksCondition is the ID of the condition that this host cannot be looked at.
const checksCondition = "checks"

// Kernel is what is asked.
type Kernel interface {
	Sysctls(paths []string) (map[string]string, error)
	Surroundings(wanted func(dst netip.Prefix) bool, ours []string) (host.Surroundings, error)
	Detour(dst netip.Addr) (d host.Detour, ok bool, err error)
	Holders(protocol string, local netip.AddrPort) ([]kernel.Holder, error)
	VXLANs() ([]kernel.VXLAN, error)
	ReadTUN(name string) (t kernel.TUN, ok bool, err error)
	Close() error
}

// Config of Checks.
type Config struct {
	Open       func() (Kernel, error)
	Network    backend.Network
	Masquerade bool
	Conditions *condition.List
	// Move returns the commands that have this host lease other subnets than some.
	Move func(lease.Subnets) string
}

// Checks looks when told, and now and then. It has a goroutine and a socket of its own, so that
// nothing waits for it. Make one with New.
type Checks struct {
	Config
	wake chan struct{}

	mu      sync.Mutex // guards what follows, the latest of each
	facts   host.Facts
	unknown error // why there are no facts
	view    lease.View
	missing []reconcile.Missing
	ready   bool // the host has its subnet

	// Of Run's goroutine.
	kernel   Kernel            // opened for the first look
	reported []reportedMissing // by the last look
}

// reportedMissing is a condition with what it is about.
type reportedMissing struct {
	reconcile.Missing
	condition.Condition
}

// New returns checks that have found nothing yet.
func New(c Config) *Checks { return &Checks{Config: c, wake: make(chan struct{}, 1)} }

// Trigger asks for a look soon, because something of others may have changed. It never blocks, nor
// does what follows.
func (c *Checks) Trigger() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Ready says that the host has its subnet.
func (c *Checks) Ready() {
	c.set(func() bool { c.ready = true; return true })
}

// SetFacts says what is true of this host now, or why that is not known.
func (c *Checks) SetFacts(f host.Facts, err error) {
	c.set(func() bool { c.facts, c.unknown = f, err; return true })
}

// SetView says which hosts there are now.
func (c *Checks) SetView(v lease.View) {
	c.set(func() bool {
		moved := c.view.Own.Subnets != v.Own.Subnets
		c.view = v
		return moved
	})
}

// SetMissing says what this host needs for itself and lacks, as the last pass left it.
func (c *Checks) SetMissing(missing []reconcile.Missing) {
	c.set(func() bool {
		before := c.missing
		c.missing = missing
		return len(before)+len(missing) > 0
	})
}

// set changes something, and asks for a look if change says so.
func (c *Checks) set(change func() (look bool)) {
	c.mu.Lock()
	look := change()
	c.mu.Unlock()
	if look {
		c.Trigger()
	}
}

// Run looks until ctx ends: when triggered and the burst is over, and once a minute.
func (c *Checks) Run(ctx context.Context) {
	defer func() {
		if c.kernel != nil {
			c.kernel.Close()
		}
	}()
	rest := minPause
	for {
		timer := time.NewTimer(idle)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-c.wake:
			timer.Reset(rest)
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
		c.check()
		rest = checkShare().Rest(time.Since(begun))
	}
}

// check replaces the conditions by what is found now. What cannot be read leaves them.
func (c *Checks) check() {
	if c.kernel == nil {
		k, err := c.Open()
		if err != nil {
			c.failed(err)
			return
		}
		c.kernel = k
	}
	c.Conditions.Replace("base/", c.baseConditions())
	c.mu.Lock()
	ready := c.ready
	c.mu.Unlock()
	if !ready {
		return
	}
	found, err := c.findings()
	if err != nil {
		c.failed(err)
		return
	}
	c.Conditions.End(checksCondition)
	now := make([]condition.Condition, 0, len(found))
	for _, f := range found {
		now = append(now, condition.Condition{
			ID: "host/" + f.ID, Text: f.Text, Fields: f.Fields, Command: f.Command,
		})
	}
	c.Conditions.Replace("host/", now)
}

func (c *Checks) failed(err error) {
	c.Conditions.Set(condition.Condition{
		ID: checksCondition, Text: "host checks failed, will retry",
		Fields: []any{"err", err},
	})
}

// baseConditions returns the conditions of what this host needs for itself and lacks. Of one attempt
// the reasons are read once: later, they may be gone before the next one.
func (c *Checks) baseConditions() []condition.Condition {
	var said []reportedMissing
	var now []condition.Condition
	c.mu.Lock()
	missing := c.missing
	c.mu.Unlock()
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

func (c *Checks) findings() ([]host.Finding, error) {
	c.mu.Lock()
	f, view, err := c.facts, c.view, c.unknown
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	o := c.overlay(f, view)
	daemons, err := presence.Daemons()
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
		if id := found[i].ID; id == host.SubnetInside || id == host.LANInside || id == host.NeedInside {
			found[i].Command = c.Move(view.Own.Subnets)
		}
	}
	return found, nil
}

// overlay is what this host is compared with. With alloc, who routes knows to where.
func (c *Checks) overlay(f host.Facts, view lease.View) host.Overlay {
	network := c.Network.V4.Network
	base := backend.Foundation(c.Network.Backend, network, f, view)
	o := host.Overlay{
		Network: network, Subnet: view.Own.Subnets.V4,
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
		if network.Contains(p.Subnets.V4.Addr()) && !p.Subnets.V4.Overlaps(o.Subnet) {
			o.Peers = append(o.Peers, host.Peer{Subnet: p.Subnets.V4, PublicIP: p.PublicIP})
		}
	}
	return o
}
