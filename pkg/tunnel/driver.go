package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
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
	open    func(name string, l dataplane.Link) (Endpoints, error)

	counters *counters // of all tunnels so far

	mu      sync.Mutex
	store   descriptorStore
	tunnels map[string]*runningTunnel // by link

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

	ctx    context.Context
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// NewDriver returns a Driver for the tunnels of a network, which run until ctx ends. fds keeps the
// descriptors of devices and sockets.
func NewDriver(ctx context.Context, network netip.Prefix, fds Descriptors, log *slog.Logger) *Driver {
	d := &Driver{
		ctx: ctx, network: network, log: log, events: driver.NewMailbox(), counters: new(counters),
		store: descriptorStore{fds}, tunnels: map[string]*runningTunnel{},
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
	var running []*Tunnel
	d.mu.Lock()
	for _, r := range d.tunnels {
		if r.tunnel != nil {
			running = append(running, r.tunnel)
		}
	}
	d.mu.Unlock() // a pass must not wait for the copies of thousands of peers
	s := d.counters.stats()
	for _, t := range running {
		s.Peers = append(s.Peers, t.Stats().Peers...)
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

// Assume adds to have what only a process with a tunnel knows, as wanted: the kernel shows neither the
// socket nor the table of a TUN device.
func Assume(want, have dataplane.State) {
	for name, w := range want.Links {
		if h, ok := have.Links[name]; ok && w.Kind == dataplane.KindTUN && h.Kind == w.Kind {
			h.Local, h.Port, h.AnySource, h.NoOffload = w.Local, w.Port, w.AnySource, w.NoOffload
			have.Links[name] = h
		}
	}
	maps.Copy(have.Tunnel, want.Tunnel)
}

// Apply implements driver.Driver. Changes of a table are in effect when it returns, if this host's
// subnet is known.
func (d *Driver) Apply(ops []dataplane.Op) []error {
	d.mu.Lock()
	defer d.mu.Unlock()
	errs := make([]error, len(ops))
	changed := map[*runningTunnel]bool{}
	for i, op := range ops {
		apply := d.applyEntry
		if op.Kind == dataplane.KindLink {
			apply = d.applyLink
		}
		r, err := apply(op)
		if err != nil {
			errs[i] = fmt.Errorf("%s %s: %w", op.Verb, op.Object(), err)
		}
		changed[r] = true
	}
	delete(changed, nil)
	for r := range changed {
		d.swap(r)
	}
	return errs
}

// applyLink opens a tunnel, or changes it and returns it.
func (d *Driver) applyLink(op dataplane.Op) (*runningTunnel, error) {
	name, link := dataplane.KindLink.Of(op)
	if link.MTU < minMTU || link.MTU > maxPacket {
		return nil, fmt.Errorf("MTU: %d: must be %d to %d", link.MTU, minMTU, maxPacket)
	}
	if op.Verb == dataplane.Put {
		return nil, d.start(name, link)
	}
	r := d.tunnels[name]
	if r != nil {
		r.link = link
	}
	return r, nil
}

// applyEntry changes an entry of a tunnel, which it returns. The change takes effect with the next
// swap.
func (d *Driver) applyEntry(op dataplane.Op) (*runningTunnel, error) {
	k, peer := dataplane.KindTunnel.Of(op)
	r, own := d.tunnels[k.Link], !peer.IsValid()
	switch {
	case op.Verb == dataplane.Del:
		if r == nil {
			return nil, nil
		}
		delete(r.entries, k)
	case r == nil:
		return nil, errors.New("the tunnel is not open")
	case !k.Subnet.Addr().Is4() || !own && (!peer.Addr().Is4() || peer.Port() == 0):
		return nil, fmt.Errorf("peer %s at %s must have IPv4 addresses and a port", k.Subnet, peer)
	default:
		r.entries[k] = peer
	}
	switch {
	case op.Verb != dataplane.Del && own:
		r.own = k.Subnet
	case k.Subnet == r.own:
		r.own = netip.Prefix{}
	}
	return r, nil
}

// start opens or creates a TUN device, and its socket.
func (d *Driver) start(name string, l dataplane.Link) error {
	d.drop(name) // the device is gone, even if the tunnel has not noticed yet
	endpoints, err := d.open(name, l)
	if errors.Is(err, unix.EBUSY) {
		d.events.Report(driver.DeviceTaken)
	}
	if err != nil {
		return err
	}
	r := &runningTunnel{name: name, link: l, entries: map[dataplane.TunnelKey]netip.AddrPort{}, endpoints: endpoints}
	r.ctx, r.cancel = context.WithCancel(d.ctx)
	d.tunnels[name] = r
	return nil
}

// openEndpoints opens a device, its socket, and another socket for ICMP errors.
func (d *Driver) openEndpoints(name string, l dataplane.Link) (e Endpoints, err error) {
	offloads := AllOffloads()
	if l.NoOffload {
		offloads = Offloads{}
	}
	tun, udp, err := d.store.open(name, netip.AddrPortFrom(l.Local, uint16(l.Port)), offloads)
	if err != nil {
		return e, err
	}
	e = Endpoints{Device: tun, Socket: udp}
	icmp, err := OpenICMP()
	switch {
	case pace.IsResourceError(err): // retry
		e.Close()
		return e, err
	case err != nil:
		d.log.Warn("tunnel cannot send ICMP errors", "err", err)
	default:
		e.ICMP = icmp
	}
	tcp, uso := tun.SuperPackets()
	d.log.Info("opened tunnel", "device", name, "addr", l.Local, "port", l.Port,
		"tso", tcp, "uso", uso, "udp_segment", udp.MaxSegments() > 1, "udp_gro", udp.GRO())
	return e, nil
}

// swap builds a table from the entries, and starts the tunnel with the first table. While this
// host's subnet is unknown, the tunnel keeps its table.
func (d *Driver) swap(r *runningTunnel) {
	if !r.own.IsValid() {
		return
	}
	o := Overlay{Network: d.network, Own: r.own, MTU: r.link.MTU, AllowUnknownSources: r.link.AnySource, Peers: make([]Peer, 0, len(r.entries))}
	for k, peer := range r.entries {
		if peer.IsValid() {
			o.Peers = append(o.Peers, Peer{Subnet: k.Subnet, Addr: peer})
		}
	}
	if r.tunnel != nil {
		r.tunnel.Swap(NewTable(o))
		return
	}
	r.tunnel = newTunnel(NewTable(o), d.counters)
	r.done.Go(func() { d.run(r) })
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
	r.endpoints.Close()
}
