// Package uplink watches the interface that carries the overlay, and other facts about this host.
// It chooses the uplink, reads the facts, and pushes changed facts to its subscribers, before it
// forwards the kernel event that has announced them.
//
// The subscribers decide what to do. Invariants: pushed facts are those of the uplink in use, and
// at most a minute old; while the uplink is unusable, an error is pushed, and a condition is set.
// Reading the latest facts has no side effects.
package uplink

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
	"flanneld/pkg/driver"
	"flanneld/pkg/host"
	"flanneld/pkg/kernel"
	"flanneld/pkg/needs"
	"flanneld/pkg/pace"
	"flanneld/pkg/probe"
)

const (
	// retry is the time between attempts while there are no facts.
	retry = time.Second
	// resync limits the age of the facts, for changes without an event, such as a route between two
	// underlay networks.
	resync = time.Minute
	// burst is the minimum time between two readings, so that a burst of changes can end.
	burst = 20 * time.Millisecond
	// quiet is the time from a change of another interface, or of a route, to a reading.
	quiet = 50 * time.Millisecond
)

// unusableCondition is the ID of the condition that the uplink is unusable.
const unusableCondition = "uplink"

// Kernel is the part of the kernel that the watcher reads.
type Kernel interface {
	Inventory(kernel.Wanted) (host.Inventory, error)
	RouteTo(netip.Addr) (iface string, src netip.Addr, err error)
	Surroundings(wanted func(dst netip.Prefix) bool, ours []string) (host.Surroundings, error)
	probe.Link
}

// Config configures a Watcher.
type Config struct {
	Kernel     Kernel
	Selectors  host.Selectors
	Had        []netip.Prefix // subnets of this host in earlier runs
	Conditions *condition.List
	Log        *slog.Logger
	Heartbeat  func() // called while the watcher makes progress, at least once a minute
	// Moved is called when the uplink's address has changed: packets from the old one get no answer.
	// It must not block.
	Moved func()
}

// Watcher watches the uplink. Make one with New, call Choose, and then Run.
type Watcher struct {
	Config
	wake chan struct{}

	// The following belong to Run's goroutine, and before that to the caller of Choose.
	tracker host.Tracker
	due     time.Time   // time of the next reading
	readAt  time.Time   // end of the last reading
	budget  pace.Budget // for readings because of candidates and routes, of which there may be many

	mu     sync.Mutex // guards the following
	uplink host.Uplink
	inputs inputs
	facts  host.Facts // the latest known facts
	err    error      // why facts are not current

	calls   sync.Mutex // guards the following, and is held while they are called
	onFacts []func(host.Facts, error)
}

// inputs are values that other rooms set and that facts depend on.
type inputs struct {
	network netip.Prefix
	device  string         // the network's device, if its name is fixed
	subnet  netip.Prefix   // this host's subnet
	leased  []netip.Prefix // smallest set of prefixes that contain all leasable subnets
	tun     string         // TUN device, if there is one
	etcd    func() []host.Need
	atStart []host.Need // addresses needed at the start, inside the network or not
}

// New returns a Watcher without an uplink.
func New(c Config) *Watcher {
	return &Watcher{
		Config: c, wake: make(chan struct{}, 1),
		tracker: host.Tracker{Selectors: c.Selectors, Reach: c.Kernel.RouteTo},
		inputs:  inputs{etcd: func() []host.Need { return nil }},
		budget:  pace.Budget{Clock: pace.ProcessTime, OneIn: 25, Burst: 500 * time.Millisecond, Max: 3 * time.Second},
		err:     condition.Reported{Err: errors.New("the state of this host is not known yet")},
	}
}

// SetNeeds sets the function that returns the addresses of etcd. inv is an Inventory at the start,
// which determines how other needed addresses were reached then.
func (w *Watcher) SetNeeds(etcd func() []host.Need, inv host.Inventory) {
	w.set(func(in *inputs) { in.etcd = etcd })
	atStart := inv.Needs(netip.PrefixFrom(netip.IPv4Unspecified(), 0), w.Needs())
	w.set(func(in *inputs) { in.atStart = atStart })
}

// SetNetwork sets the network, and reads the facts for it. It is called before each Run.
func (w *Watcher) SetNetwork(n backend.Network) {
	w.set(func(in *inputs) { in.network, in.device, in.leased = n.V4.Network, n.FixedDevice(), n.V4.Cover() })
	w.refresh(context.Background())
}

// SetSubnet sets this host's subnet.
func (w *Watcher) SetSubnet(subnet netip.Prefix) { w.set(func(in *inputs) { in.subnet = subnet }) }

// SetLeased sets the smallest set of prefixes that contain all leasable subnets, and pushes the
// facts.
func (w *Watcher) SetLeased(leased []netip.Prefix) {
	w.update(func(in *inputs) { in.leased = leased })
}

// SetTUN sets the name of the TUN device, and pushes the facts. It reports whether the name has
// changed.
func (w *Watcher) SetTUN(name string) (changed bool) {
	w.update(func(in *inputs) { changed, in.tun = in.tun != name, name })
	return changed
}

// set changes inputs.
func (w *Watcher) set(change func(*inputs)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(&w.inputs)
}

// update changes inputs, and pushes them with the last facts. A reading in progress is pushed after
// that, with the inputs at that time.
func (w *Watcher) update(change func(*inputs)) {
	w.calls.Lock()
	defer w.calls.Unlock()
	w.set(change)
	w.push(w.Facts())
}

// now returns the present inputs.
func (w *Watcher) now() inputs {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.inputs
}

// Facts returns the latest facts. If they are not current, it also returns the reason.
func (w *Watcher) Facts() (host.Facts, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.facts, w.err
}

// Uplink returns the uplink in use.
func (w *Watcher) Uplink() host.Uplink {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.uplink
}

// PublicIP returns the address that peers send to.
func (w *Watcher) PublicIP() netip.Addr {
	return cmp.Or(w.Selectors.PublicIP, w.Uplink().Addr)
}

// Refresh requests a reading, because the needed addresses may have changed. It never blocks.
func (w *Watcher) Refresh() {
	pace.Wake(w.wake)
}

// subscribe replaces the subscribers, and pushes the latest facts to them.
func (w *Watcher) subscribe(all ...func(host.Facts, error)) {
	w.calls.Lock()
	defer w.calls.Unlock()
	w.onFacts = all
	for _, f := range all {
		f(w.Facts())
	}
}

// Run watches until ctx ends or events is closed. Meanwhile it calls onFacts in their order with the
// facts or, if they are unknown, the error: now, and whenever these change. They must not block or
// call the watcher. It calls onEvent with each event, after facts that follow from it were pushed.
func (w *Watcher) Run(ctx context.Context, events <-chan driver.Event, onEvent func(driver.Event), onFacts ...func(host.Facts, error)) {
	w.subscribe(onFacts...)
	defer w.subscribe()
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-events:
			if !ok {
				return
			}
			w.handleEvent(ctx, e)
			onEvent(e)
		case <-w.wake:
			w.refresh(ctx)
		case <-time.After(time.Until(w.due)):
			w.refresh(ctx)
		}
	}
}

// handleEvent reads the facts if an event concerns them.
func (w *Watcher) handleEvent(ctx context.Context, e driver.Event) {
	w.Log.Debug("kernel events", "events", e)
	switch {
	case e&(driver.Uplink|driver.Overflow) != 0:
		w.refresh(ctx)
	case e&(driver.Candidates|driver.Routes) != 0:
		// Another uplink may be better, a needed address may have another route, or a route of
		// the underlay may lead into the overlay's network.
		w.schedule(max(quiet, w.budget.Rest(time.Now())))
	}
}

// schedule schedules a reading after d at the latest.
func (w *Watcher) schedule(d time.Duration) {
	if at := time.Now().Add(d); at.Before(w.due) {
		w.due = at
	}
}

// refresh chooses the uplink, reads the facts, and pushes them.
func (w *Watcher) refresh(ctx context.Context) {
	w.Heartbeat()
	if pace.Sleep(ctx, time.Until(w.readAt.Add(burst))) != nil {
		return
	}
	select { // requests up to now are served by this reading
	case <-w.wake:
	default:
	}
	w.due = time.Now().Add(resync)
	w.budget.Begin()
	facts, err := w.read()
	w.readAt = time.Now()
	w.budget.Spend(w.readAt)
	if err != nil {
		w.schedule(retry)
	}
	w.calls.Lock()
	defer w.calls.Unlock()
	w.push(facts, err)
}

// read chooses the uplink and reads the facts.
func (w *Watcher) read() (host.Facts, error) {
	inv, err := w.Inventory(true)
	if err != nil {
		return host.Facts{}, err
	}
	if err := w.Choose(inv); err != nil {
		return host.Facts{}, err
	}
	network := w.now().network
	f, err := w.Uplink().Facts(inv, w.PublicIP(), network)
	f.Needs, f.NameServers = inv.Needs(network, w.Needs()), inv.Inside(network, needs.NameServers())
	return f, err
}

// push stores the facts and pushes them if they have changed. The caller holds w.calls.
func (w *Watcher) push(facts host.Facts, err error) {
	w.mu.Lock()
	if err != nil {
		facts = w.facts
	}
	facts.TUN, facts.Leased = w.inputs.tun, w.inputs.leased
	same := err == nil && w.err == nil && facts.Equal(w.facts) || err != nil && w.err != nil && err.Error() == w.err.Error()
	w.facts, w.err = facts, err
	w.mu.Unlock()
	if same {
		return
	}
	for _, f := range w.onFacts {
		f(facts, err)
	}
}

// Choose chooses the uplink from an Inventory, or keeps it. It returns why the uplink is unusable,
// which is a condition unless there was no uplink before.
func (w *Watcher) Choose(inv host.Inventory) error {
	before := w.Uplink()
	choice := w.tracker.Update(inv, append(slices.Clone(w.Had), w.now().subnet), time.Now())
	if choice.RetryAfter > 0 {
		w.schedule(choice.RetryAfter)
	}
	u := choice.Uplink
	switch {
	case u.Iface == "" || before == u:
	case before.Iface == "":
		w.Log.Info("chose uplink", "iface", u.Iface, "addr", u.Addr, "reason", u.Reason)
	default:
		w.Log.Warn("uplink changed", "iface", u.Iface, "addr", u.Addr, "reason", u.Reason, "before", before.Iface+" "+before.Addr.String())
	}
	w.mu.Lock()
	w.uplink = u
	w.mu.Unlock()
	if before.Iface != "" && before.Addr != u.Addr {
		w.Moved()
	}
	switch {
	case choice.Err == nil:
		w.Conditions.End(unusableCondition)
		return nil
	case before.Iface == "":
		return choice.Err
	}
	w.Conditions.Begin(condition.Condition{
		ID: unusableCondition, Text: "uplink is unusable, leaving the kernel as it is until it returns",
		Fields: []any{"iface", u.Iface, "addr", u.Addr, "err", choice.Err},
	})
	return condition.Reported{Err: choice.Err}
}
