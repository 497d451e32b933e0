package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/driver"
	"flanneld/pkg/host"
	"flanneld/pkg/pace"
)

// Driver runs the wanted tunnels. It is a driver.Driver that creates TUN links, each with a socket,
// and manages the entries of their tables. Attributes that such a device shares with other links
// are left to the kernel's driver.
//
// Invariant: the entries that a Snapshot contains are in effect, or will be as soon as this host's
// subnet is known.
type Driver struct {
	ctx     context.Context // ends the tunnels
	network netip.Prefix
	log     *slog.Logger
	events  *driver.Mailbox
	open    func(name string, l dataplane.Link) (e Endpoints, close func(), err error)

	mu         sync.Mutex
	store      descriptorStore
	tunnels    map[string]*runningTunnel // by link
	endedStats Stats                     // of tunnels that were dropped

	pacing   sync.Mutex
	failures pace.Pace // of tunnels that have failed
}

var _ driver.Driver = (*Driver)(nil)

// runningTunnel is a tunnel with its endpoints.
type runningTunnel struct {
	name      string // of the link
	link      dataplane.Link
	entries   map[dataplane.TunnelKey]netip.AddrPort
	own       netip.Prefix // this host's subnet, from the entries; invalid if not known yet
	tunnel    *Tunnel      // nil until own is known
	endpoints Endpoints
	close     func()

	ctx    context.Context
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// NewDriver returns a Driver for the tunnels of a network, which run until ctx ends. fds keeps the
// descriptors of devices and sockets.
func NewDriver(ctx context.Context, network netip.Prefix, fds Descriptors, log *slog.Logger) *Driver {
	d := &Driver{
		ctx: ctx, network: network, log: log, events: driver.NewMailbox(), store: descriptorStore{fds}, tunnels: map[string]*runningTunnel{}, endedStats: new(counters).stats(),
		failures: pace.Pace{Initial: 100 * time.Millisecond, Max: time.Second},
	}
	d.open = d.openEndpoints
	return d
}

// Close ends all tunnels.
func (d *Driver) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for link := range d.tunnels {
		d.drop(link)
	}
}

// Stats returns the totals of all tunnels so far, with the peers of running ones. It may be called
// from any goroutine.
func (d *Driver) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := new(counters).stats()
	s.add(d.endedStats)
	for _, r := range d.tunnels {
		if r.tunnel != nil {
			s.add(r.tunnel.Stats())
		}
	}
	return s
}

// Choose opens the TUN device for the overlay of this host, and returns its name. former is the
// host's previous network.
func (d *Driver) Choose(inv host.Inventory, former netip.Prefix) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.store.chooseTUN(inv, d.network, former)
}

// Events implements driver.Driver.
func (d *Driver) Events() <-chan driver.Event { return d.events.Events() }

// Snapshot implements driver.Driver. It removes TUN devices without a running tunnel from s,
// because they do not work until they are opened again.
func (d *Driver) Snapshot(_ dataplane.Scope, s *dataplane.State) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, l := range s.Links {
		if l.Kind != dataplane.KindTUN {
			continue
		}
		r, ok := d.tunnels[name]
		if !ok || r.ctx.Err() != nil {
			delete(s.Links, name)
			continue
		}
		l.Local, l.Port, l.AnySource, l.NoOffload = r.link.Local, r.link.Port, r.link.AnySource, r.link.NoOffload
		s.Links[name] = l
		maps.Copy(s.Tunnel, r.entries)
	}
	return nil
}

// edit is a change of a tunnel by an operation.
type edit struct {
	op   int // index of the operation
	undo func()
}

// Apply implements driver.Driver. Changes of a table are in effect when it returns. If the new
// table is invalid, the previous one stays, and all operations on it fail.
func (d *Driver) Apply(ops []dataplane.Op) []error {
	d.mu.Lock()
	defer d.mu.Unlock()
	errs := make([]error, len(ops))
	edits := map[*runningTunnel][]edit{}
	for i, op := range ops {
		apply := d.applyEntry
		if op.Kind == dataplane.KindLink {
			apply = d.applyLink
		}
		r, undo, err := apply(op)
		if err != nil {
			errs[i] = fmt.Errorf("%s %s: %w", op.Verb, op.Object(), err)
		} else if r != nil {
			edits[r] = append(edits[r], edit{i, undo})
		}
	}
	for r, all := range edits {
		err := d.swap(r)
		if err == nil {
			continue
		}
		for _, e := range slices.Backward(all) {
			e.undo()
			errs[e.op] = fmt.Errorf("%s %s: %w", ops[e.op].Verb, ops[e.op].Object(), err)
		}
	}
	return errs
}

// applyLink opens a tunnel or changes it.
func (d *Driver) applyLink(op dataplane.Op) (*runningTunnel, func(), error) {
	name, link := dataplane.KindLink.Of(op)
	if op.Verb == dataplane.Put {
		return nil, nil, d.start(name, link)
	}
	r, ok := d.tunnels[name]
	if !ok {
		return nil, nil, nil
	}
	before := r.link
	r.link = link
	return r, func() { r.link = before }, nil
}

// applyEntry changes an entry. The change takes effect with the next swap.
func (d *Driver) applyEntry(op dataplane.Op) (*runningTunnel, func(), error) {
	k, peer := dataplane.KindTunnel.Of(op)
	r, ok := d.tunnels[k.Link]
	if !ok && op.Verb == dataplane.Del {
		return nil, nil, nil
	}
	if !ok {
		return nil, nil, errors.New("the tunnel is not open")
	}
	if err := (Peer{k.Subnet, peer}).validate(); err != nil && op.Verb != dataplane.Del && peer.IsValid() {
		return nil, nil, err
	}
	before, had := r.entries[k]
	own := r.own
	undo := func() {
		if r.own = own; had {
			r.entries[k] = before
		} else {
			delete(r.entries, k)
		}
	}
	if k.Subnet == r.own {
		r.own = netip.Prefix{}
	}
	if op.Verb == dataplane.Del {
		delete(r.entries, k)
		return r, undo, nil
	}
	if r.entries[k] = peer; !peer.IsValid() {
		r.own = k.Subnet
	}
	return r, undo, nil
}

// start opens or creates a TUN device, and its socket.
func (d *Driver) start(name string, l dataplane.Link) error {
	d.drop(name) // the device is gone, even if the tunnel has not noticed yet
	ends, closeEndpoints, err := d.open(name, l)
	if errors.Is(err, unix.EBUSY) {
		d.events.Report(driver.DeviceTaken)
	}
	if err != nil {
		return err
	}
	r := &runningTunnel{name: name, link: l, entries: map[dataplane.TunnelKey]netip.AddrPort{}, endpoints: ends, close: closeEndpoints}
	r.ctx, r.cancel = context.WithCancel(d.ctx)
	d.tunnels[name] = r
	return nil
}

// openEndpoints opens a device, its socket, and another socket for ICMP errors.
func (d *Driver) openEndpoints(name string, l dataplane.Link) (e Endpoints, closeEndpoints func(), err error) {
	offloads := AllOffloads()
	if l.NoOffload {
		offloads = Offloads{}
	}
	tun, udp, err := d.store.open(name, netip.AddrPortFrom(l.Local, uint16(l.Port)), offloads)
	if err != nil {
		return e, nil, err
	}
	closeEndpoints = func() {
		tun.Close()
		udp.Close()
	}
	e = Endpoints{Device: tun, Socket: udp}
	icmp, err := OpenICMP()
	switch {
	case pace.IsResourceError(err): // retry
		closeEndpoints()
		return e, nil, err
	case err != nil:
		d.log.Warn("tunnel cannot send ICMP errors", "err", err)
	default:
		e.ICMP = icmp
		both := closeEndpoints
		closeEndpoints = func() {
			both()
			icmp.Close()
		}
	}
	tcp, uso := tun.SuperPackets()
	d.log.Info("opened tunnel", "device", name, "addr", l.Local, "port", l.Port,
		"tso", tcp, "uso", uso, "udp_segment", udp.MaxSegments() > 1, "udp_gro", udp.GRO())
	return e, closeEndpoints, nil
}

// swap builds a table from the entries, and starts the tunnel with the first table.
func (d *Driver) swap(r *runningTunnel) error {
	if len(r.entries) == 0 || r.tunnel == nil && !r.own.IsValid() {
		return nil
	}
	o := Overlay{Network: d.network, Own: r.own, MTU: r.link.MTU, AllowUnknownSources: r.link.AnySource, Peers: make([]Peer, 0, len(r.entries))}
	for k, peer := range r.entries {
		if peer.IsValid() {
			o.Peers = append(o.Peers, Peer{Subnet: k.Subnet, Addr: peer})
		}
	}
	table, err := NewTable(o)
	if err != nil {
		return err
	}
	if r.tunnel != nil {
		r.tunnel.Swap(table)
		return nil
	}
	r.tunnel = New(table)
	r.done.Go(func() { d.run(r) })
	return nil
}

// run forwards packets until the tunnel is dropped or an endpoint fails. In that case, the next
// Snapshot omits the link, so that it is opened again.
func (d *Driver) run(r *runningTunnel) {
	err := r.tunnel.Run(r.ctx, r.endpoints)
	if r.ctx.Err() != nil {
		return
	}
	d.log.Warn("tunnel failed, reopening it", "device", r.name, "err", err)
	r.cancel()
	d.pacing.Lock()
	wait := d.failures.Next(time.Now())
	d.pacing.Unlock()
	time.AfterFunc(wait, func() { d.events.Report(driver.Links) }) // asynchronous, because drop waits for run
}

// drop ends a tunnel and closes its endpoints. Descriptors in the store remain open.
func (d *Driver) drop(name string) {
	r, ok := d.tunnels[name]
	if !ok {
		return
	}
	delete(d.tunnels, name)
	r.cancel()
	r.done.Wait()
	if r.tunnel != nil {
		d.endedStats.add(r.tunnel.counters.stats())
	}
	r.close()
}
