// Package uplink watches the interface that carries the overlay, and other facts about this host.
// It chooses the uplink, reads the facts, and pushes changed facts to its subscribers, before it
// forwards the kernel event that has announced them.
//
// The subscribers decide what to do. Invariants: pushed facts are those of the uplink in use, and
// at most a minute old; while the uplink is unusable, an error is pushed, and a condition is set.
// Reading the latest facts has no side effects.
package uplink

import (
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
)

// readShare limits the share of time of readings that events cause: there may be many routes to
// read.
func readShare() pace.Share {
	return pace.Share{OneIn: 20, Min: 50 * time.Millisecond, Max: 3 * time.Second}
}

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
}

// Watcher watches the uplink. Make one with New, call Choose, and then Run.
type Watcher struct {
	Config
	wake chan struct{}

	// The following belong to Run's goroutine, and before that to the caller of Choose.
	tracker  host.Tracker
	due      time.Time     // time of the next reading
	readAt   time.Time     // end of the last reading
	minPause time.Duration // from readAt to a reading that an event causes

	mu     sync.Mutex // guards the following
	uplink host.Uplink
	inputs inputs
	facts  host.Facts // the latest known facts
	err    error      // why facts are not current

	calls   sync.Mutex // guards the following, and is held for a call of the first two
	onFacts []func(host.Facts, error)
	onMove  []func()
	onEvent []func(driver.Event)
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
		err:     condition.Reported{Err: errors.New("the state of this host is not known yet")},
	}
}

// Choose chooses the first uplink from an Inventory. It returns an error if there is none.
func (w *Watcher) Choose(inv host.Inventory) error { return w.choose(inv) }

// SetNeeds sets the function that returns the addresses of etcd. inv is an Inventory at the start,
// which determines how other needed addresses were reached then.
func (w *Watcher) SetNeeds(etcd func() []host.Need, inv host.Inventory) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inputs.etcd = etcd
	w.inputs.atStart = inv.Needs(netip.PrefixFrom(netip.IPv4Unspecified(), 0), w.needs())
}

// SetNetwork sets the network, and reads the facts for it. It is called before each Run.
func (w *Watcher) SetNetwork(n backend.Network) {
	w.mu.Lock()
	w.inputs.network, w.inputs.device, w.inputs.leased = n.V4.Network, n.FixedDevice(), n.V4.Cover()
	w.mu.Unlock()
	w.refresh(context.Background())
}

// SetSubnet sets this host's subnet.
func (w *Watcher) SetSubnet(subnet netip.Prefix) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inputs.subnet = subnet
}

// SetLeased sets the smallest set of prefixes that contain all leasable subnets, and pushes the
// facts.
func (w *Watcher) SetLeased(leased []netip.Prefix) {
	w.update(func(a *inputs) { a.leased = leased })
}

// SetTUN sets the name of the TUN device, and pushes the facts. It reports whether the name has
// changed.
func (w *Watcher) SetTUN(name string) (changed bool) {
	w.update(func(a *inputs) { changed, a.tun = a.tun != name, name })
	return changed
}

// update changes inputs, and pushes them with the last facts. A reading in progress is pushed after
// that, with the inputs at that time.
func (w *Watcher) update(change func(*inputs)) {
	w.calls.Lock()
	defer w.calls.Unlock()
	w.mu.Lock()
	change(&w.inputs)
	facts, err := w.inputs.complete(w.facts), w.err
	w.mu.Unlock()
	w.push(facts, err)
}

func (a inputs) complete(f host.Facts) host.Facts {
	f.TUN, f.Leased = a.tun, a.leased
	return f
}

// OnFacts subscribes f to the facts: it is called now and whenever they change, or with the error
// if they are unknown; in the order of the calls of OnFacts. f must not block or call the watcher.
func (w *Watcher) OnFacts(f func(host.Facts, error)) {
	w.calls.Lock()
	defer w.calls.Unlock()
	w.onFacts = append(w.onFacts, f)
	f(w.Facts())
}

// OnMove subscribes f to changes of the uplink's address, after which packets from the old one get
// no answer. f must not block or call the watcher.
func (w *Watcher) OnMove(f func()) {
	w.calls.Lock()
	defer w.calls.Unlock()
	w.onMove = append(w.onMove, f)
}

// OnEvent subscribes f to the drivers' events from now on. It is called by Run's goroutine, after
// facts that follow from the event were pushed.
func (w *Watcher) OnEvent(f func(driver.Event)) {
	w.calls.Lock()
	defer w.calls.Unlock()
	w.onEvent = append(w.onEvent, f)
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
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.publicIP()
}

func (w *Watcher) publicIP() netip.Addr {
	if ip := w.Selectors.PublicIP; ip.IsValid() {
		return ip
	}
	return w.uplink.Addr
}

// Refresh requests a reading, because the needed addresses may have changed. It never blocks.
func (w *Watcher) Refresh() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Run watches until ctx ends or events is closed. After it, subscribers are not called any more.
func (w *Watcher) Run(ctx context.Context, events <-chan driver.Event) {
	defer func() {
		w.calls.Lock()
		defer w.calls.Unlock()
		w.onFacts, w.onMove, w.onEvent = nil, nil, nil
	}()
	for {
		timer := time.NewTimer(time.Until(w.due))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case e, ok := <-events:
			timer.Stop()
			if !ok {
				return
			}
			w.handleEvent(ctx, e)
		case <-w.wake:
			timer.Stop()
			w.refresh(ctx)
		case <-timer.C:
			w.refresh(ctx)
		}
	}
}

// handleEvent reads the facts if an event concerns them, and forwards it.
func (w *Watcher) handleEvent(ctx context.Context, e driver.Event) {
	w.Log.Debug("kernel events", "events", e)
	switch {
	case e&(driver.Uplink|driver.Overflow) != 0:
		w.refresh(ctx)
	case e&driver.Candidates != 0, e&driver.Routes != 0 && w.hasNeeds():
		w.schedule(w.minPause) // another uplink may be better, or a needed address may have another route
	}
	w.calls.Lock()
	onEvent := w.onEvent
	w.calls.Unlock()
	for _, f := range onEvent { // without a lock, because they may call the watcher
		f(e)
	}
}

// hasNeeds reports whether the host needs an address that a route of the overlay could hide.
func (w *Watcher) hasNeeds() bool {
	f, _ := w.Facts()
	return len(f.Needs)+len(f.NameServers) > 0
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
	begun := time.Now()
	w.due = begun.Add(resync)
	facts, err := w.read()
	w.readAt = time.Now()
	w.minPause = readShare().Rest(w.readAt.Sub(begun))
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
	if err := w.choose(inv); err != nil {
		return host.Facts{}, err
	}
	w.mu.Lock()
	network, uplink, publicIP, wanted := w.inputs.network, w.uplink, w.publicIP(), w.needs()
	w.mu.Unlock()
	f, err := uplink.Facts(inv, publicIP, network)
	f.Needs, f.NameServers = inv.Needs(network, wanted), inv.Inside(network, needs.NameServers())
	return f, err
}

// push stores the facts and pushes them if they have changed. The caller holds w.calls.
func (w *Watcher) push(facts host.Facts, err error) {
	w.mu.Lock()
	same := err == nil && w.err == nil && w.inputs.complete(facts).Equal(w.facts) || err != nil && w.err != nil && err.Error() == w.err.Error()
	if w.err = err; err == nil {
		w.facts = w.inputs.complete(facts)
	}
	facts = w.facts
	w.mu.Unlock()
	if same {
		return
	}
	for _, f := range w.onFacts {
		f(facts, err)
	}
}

// choose chooses the uplink or keeps it. It returns why the uplink is unusable, which is a
// condition unless there was no uplink before.
func (w *Watcher) choose(inv host.Inventory) error {
	w.mu.Lock()
	before, own := w.uplink, slices.Clone(w.Had)
	if w.inputs.subnet.IsValid() {
		own = append(own, w.inputs.subnet)
	}
	w.mu.Unlock()
	choice := w.tracker.Update(inv, own, time.Now())
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
		w.calls.Lock()
		for _, f := range w.onMove {
			f()
		}
		w.calls.Unlock()
	}
	switch {
	case choice.Err == nil:
		w.Conditions.End(unusableCondition)
		return nil
	case before.Iface == "":
		return choice.Err
	case !w.Conditions.Has(unusableCondition): // keep the first reason
		w.Conditions.Set(condition.Condition{
			ID: unusableCondition, Text: "uplink is unusable, leaving the kernel as it is until it returns",
			Fields: []any{"iface", u.Iface, "addr", u.Addr, "err", choice.Err},
		})
	}
	return condition.Reported{Err: choice.Err}
}
