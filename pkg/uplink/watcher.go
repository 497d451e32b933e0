// Package uplink watches the interface that carries the overlay, and what else is true of this
// host. It chooses the uplink, reads the facts, and pushes them to whoever wants them when they
// change, before it passes on the event of the kernel's that said so.
//
// What to do about them is for others. Invariants: facts that are pushed are those of the uplink
// that is in use, and the reading of them is at most a minute old; while it cannot be used, that is
// pushed, and a condition says why. To get the latest facts does nothing else.
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
	// resync bounds the age of a reading, for what no event tells of, such as a route between two
	// underlay networks.
	resync = time.Minute
	// burst is the least time between two readings: it lets what others do at once end.
	burst = 20 * time.Millisecond
)

// readShare are those that others cause, and may cause all the time: there may be many routes to
// read.
func readShare() pace.Share {
	return pace.Share{OneIn: 20, Min: 50 * time.Millisecond, Max: 3 * time.Second}
}

// unusableCondition is the ID of the condition that the uplink cannot be used.
const unusableCondition = "uplink"

// Kernel is what the watcher asks.
type Kernel interface {
	Inventory(kernel.Wanted) (host.Inventory, error)
	RouteTo(netip.Addr) (iface string, src netip.Addr, err error)
	Surroundings(wanted func(dst netip.Prefix) bool, ours []string) (host.Surroundings, error)
	probe.Link
}

// Config of a Watcher.
type Config struct {
	Kernel     Kernel
	Selectors  host.Selectors
	Had        []netip.Prefix // subnets of this host in earlier runs
	Conditions *condition.List
	Log        *slog.Logger
	Heartbeat  func() // called whenever the watcher is at work, at least once a minute
}

// Watcher watches the uplink. Make one with New, have it choose with Choose, and then Run it.
type Watcher struct {
	Config
	wake chan struct{}

	// Of Run's goroutine, and of Choose's caller before that.
	tracker  host.Tracker
	due      time.Time     // when to read next
	readAt   time.Time     // when the last reading ended
	minPause time.Duration // from then to one that others cause

	mu     sync.Mutex // guards what follows
	uplink host.Uplink
	inputs inputs
	facts  host.Facts // the latest that there were
	err    error      // why there are none now

	calls   sync.Mutex // guards the following, and is held for a call of the first two
	onFacts []func(host.Facts, error)
	onMove  []func()
	onEvent []func(driver.Event)
}

// inputs is what others know and the facts depend on.
type inputs struct {
	network netip.Prefix
	device  string         // of the network, where its name cannot be chosen
	subnet  netip.Prefix   // this host's
	leased  []netip.Prefix // the fewest that hold all subnets that are leased
	tun     string         // the TUN device, where there is one
	etcd    func() []host.Need
	atStart []host.Need // what this host needed then, wherever it lies
}

// New returns a Watcher that has chosen nothing yet.
func New(c Config) *Watcher {
	return &Watcher{
		Config: c, wake: make(chan struct{}, 1),
		tracker: host.Tracker{Selectors: c.Selectors, Reach: c.Kernel.RouteTo},
		inputs:  inputs{etcd: func() []host.Need { return nil }},
		err:     condition.Reported{Err: errors.New("the state of this host is not known yet")},
	}
}

// Choose chooses the uplink for the first time, by what Inventory returned. Its error says why
// there is none.
func (w *Watcher) Choose(inv host.Inventory) error { return w.choose(inv) }

// SetNeeds says which addresses of etcd there are, by a function that knows them now. What the host
// needs besides, and how it reached all that at the start, is in inv.
func (w *Watcher) SetNeeds(etcd func() []host.Need, inv host.Inventory) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inputs.etcd = etcd
	w.inputs.atStart = inv.Needs(netip.PrefixFrom(netip.IPv4Unspecified(), 0), w.needs())
}

// SetNetwork says which network the facts are for, and reads them. It is called before each Run.
func (w *Watcher) SetNetwork(n backend.Network) {
	w.mu.Lock()
	w.inputs.network, w.inputs.device, w.inputs.leased = n.V4.Network, n.FixedDevice(), n.V4.Cover()
	w.mu.Unlock()
	w.refresh(context.Background())
}

// SetSubnet says which subnet this host has.
func (w *Watcher) SetSubnet(subnet netip.Prefix) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inputs.subnet = subnet
}

// SetLeased says which are the fewest prefixes that hold all subnets that are leased, and pushes
// facts that say so.
func (w *Watcher) SetLeased(leased []netip.Prefix) {
	w.update(func(a *inputs) { a.leased = leased })
}

// SetTUN says what the TUN device is called, and pushes facts that say so. It reports whether that
// is another one than before.
func (w *Watcher) SetTUN(name string) (changed bool) {
	w.update(func(a *inputs) { changed, a.tun = a.tun != name, name })
	return changed
}

// update changes what others know, and pushes it with the facts that were read last. A reading that
// is under way is pushed after it, with what others know by then.
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

// OnFacts has f called with the facts, now and whenever there are others, or with the error why
// there are none; in the order of the calls of OnFacts. f must not block, nor say anything to the
// watcher.
func (w *Watcher) OnFacts(f func(host.Facts, error)) {
	w.calls.Lock()
	defer w.calls.Unlock()
	w.onFacts = append(w.onFacts, f)
	f(w.Facts())
}

// OnMove has f called when the uplink has another address: what was sent from the old one gets no
// answer. f must not block, nor say anything to the watcher.
func (w *Watcher) OnMove(f func()) {
	w.calls.Lock()
	defer w.calls.Unlock()
	w.onMove = append(w.onMove, f)
}

// OnEvent has f called with the drivers' events from now on, each once the facts that follow from
// it were pushed; by Run's goroutine.
func (w *Watcher) OnEvent(f func(driver.Event)) {
	w.calls.Lock()
	defer w.calls.Unlock()
	w.onEvent = append(w.onEvent, f)
}

// Facts returns the latest facts, and why there are none now; then the facts are those that there
// were last.
func (w *Watcher) Facts() (host.Facts, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.facts, w.err
}

// Uplink returns the uplink that is in use.
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

// Refresh asks for a reading soon, for the host may need other addresses. It never blocks.
func (w *Watcher) Refresh() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Run watches until ctx ends or there are no more events. After it, nobody is called any more.
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

// handleEvent takes an event, looks if it is about the uplink, and passes it on.
func (w *Watcher) handleEvent(ctx context.Context, e driver.Event) {
	w.Log.Debug("kernel events", "events", e)
	switch {
	case e&(driver.Uplink|driver.Overflow) != 0:
		w.refresh(ctx)
	case e&driver.Candidates != 0, e&driver.Routes != 0 && w.hasNeeds():
		w.schedule(w.minPause) // another uplink may be better, or what is needed be reached in another way
	}
	w.calls.Lock()
	onEvent := w.onEvent
	w.calls.Unlock()
	for _, f := range onEvent { // which may have something to say to the watcher
		f(e)
	}
}

// hasNeeds reports whether the host needs an address that a route of the overlay could take.
func (w *Watcher) hasNeeds() bool {
	f, _ := w.Facts()
	return len(f.Needs)+len(f.NameServers) > 0
}

// schedule has a reading made after d, if not before.
func (w *Watcher) schedule(d time.Duration) {
	if at := time.Now().Add(d); at.Before(w.due) {
		w.due = at
	}
}

// refresh reads the facts, with the choice of the uplink that follows from them, and pushes them.
func (w *Watcher) refresh(ctx context.Context) {
	w.Heartbeat()
	if pace.Sleep(ctx, time.Until(w.readAt.Add(burst))) != nil {
		return
	}
	select { // what this reading sees
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

// read reads the facts.
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

// push takes what was read and, if that is something else than before, has it pushed. w.calls is
// locked.
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

// choose finds the interface that carries the overlay, or keeps it. It returns why that cannot be
// used now, which is a condition if there was one before.
func (w *Watcher) choose(inv host.Inventory) error {
	w.mu.Lock()
	before, own := w.uplink, slices.Clone(w.Had)
	if w.inputs.subnet.IsValid() {
		own = append(own, w.inputs.subnet)
	}
	w.mu.Unlock()
	choice := w.tracker.Update(inv, own, time.Now())
	if choice.Again > 0 {
		w.schedule(choice.Again)
	}
	u := choice.Uplink
	switch {
	case u.Iface == "" || before == u:
	case before.Iface == "":
		w.Log.Info("chose uplink", "iface", u.Iface, "addr", u.Addr, "reason", u.Why)
	default:
		w.Log.Warn("uplink changed", "iface", u.Iface, "addr", u.Addr, "reason", u.Why, "before", before.Iface+" "+before.Addr.String())
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
	case !w.Conditions.Has(unusableCondition): // why it began, not all that happens meanwhile
		w.Conditions.Set(condition.Condition{
			ID: unusableCondition, Text: "uplink is unusable, leaving the kernel as it is until it returns",
			Fields: []any{"iface", u.Iface, "addr", u.Addr, "err", choice.Err},
		})
	}
	return condition.Reported{Err: choice.Err}
}
