package daemon

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
	"flanneld/pkg/kernel"
	"flanneld/pkg/pace"
	"flanneld/pkg/systemd"
	"flanneld/pkg/tunnel"
)

// plane is all that the reconciler makes right: the kernel, and the tunnels
// that carry packets in this process. It also has the kernel report changes of
// whatever was read last.
type plane struct {
	kernel  *kernel.Kernel
	events  *kernel.Watch
	uplink  func() string
	network netip.Prefix
	log     *slog.Logger
	store   *fdStore
	life    *systemd.Pulse  // beats with each chunk of operations
	ctx     context.Context // ends the tunnels
	lost    func()          // called when one has ended before
	taken   func()          // called when another program has the device of one
	admit   func()          // called before operations: peers may be among them that are new

	mu      sync.Mutex
	tunnels map[string]*carrier // by link; only those that carry packets
	ends    pace.Pace           // of tunnels that ended by themselves
}

// carrier is a running tunnel with its ends.
type carrier struct {
	link    dataplane.Link
	entries map[dataplane.TunnelKey]netip.AddrPort
	tunnel  *tunnel.Tunnel // nil until the table says which subnet is ours
	ends    tunnel.Ends
	close   func()

	ctx    context.Context
	cancel context.CancelFunc
	ended  sync.WaitGroup
}

// Snapshot implements reconcile.Kernel. A TUN device without somebody behind it
// is as good as none, so it is left out until it is taken up.
func (p *plane) Snapshot(scope dataplane.Scope) (dataplane.State, error) {
	p.events.Focus(kernel.Interest{Scope: scope, Uplinks: append([]string{p.uplink()}, scope.Carriers...)})
	s, err := p.kernel.Snapshot(scope)
	if err != nil {
		return s, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, l := range s.Links {
		if l.Kind != dataplane.KindTUN {
			continue
		}
		c, ok := p.tunnels[name]
		if !ok || c.ctx.Err() != nil {
			delete(s.Links, name)
			continue
		}
		l.Local, l.Port, l.Open, l.Plain = c.link.Local, c.link.Port, c.link.Open, c.link.Plain
		s.Links[name] = l
		maps.Copy(s.Tunnel, c.entries)
	}
	return s, nil
}

// Apply implements reconcile.Kernel. What is not about tunnels goes to the
// kernel in as large batches as the order allows.
func (p *plane) Apply(ops []dataplane.Op) []error {
	p.life.Beat()
	p.admit()
	errs := make([]error, len(ops))
	changed := map[string]bool{}   // links whose table is another now
	unopened := map[string]error{} // links that could not be taken up: nothing is done on them
	for i := 0; i < len(ops); {
		if err := unopened[ops[i].Device()]; err != nil {
			errs[i] = err
			i++
			continue
		}
		n := i
		for n < len(ops) && !tunnelOp(ops[n]) && unopened[ops[n].Device()] == nil {
			n++
		}
		if n > i {
			copy(errs[i:], p.kernel.Apply(ops[i:n]))
			i = n
			continue
		}
		errs[i] = p.apply(ops[i])
		if changed[ops[i].Device()] = true; errs[i] != nil && ops[i].Kind == dataplane.KindLink {
			unopened[ops[i].Device()] = errs[i]
		}
		i++
	}
	for link := range changed {
		if err := p.swap(link); err != nil {
			errs[len(errs)-1] = errors.Join(errs[len(errs)-1], err)
		}
	}
	return errs
}

func tunnelOp(op dataplane.Op) bool {
	_, link := dataplane.KindLink.Of(op)
	return op.Kind == dataplane.KindTunnel || link.Kind == dataplane.KindTUN && op.Verb != dataplane.Del
}

// apply carries out one operation on a tunnel.
func (p *plane) apply(op dataplane.Op) error {
	if op.Kind == dataplane.KindTunnel {
		return p.enter(op)
	}
	if op.Verb == dataplane.Put {
		if err := p.open(op); err != nil {
			return fmt.Errorf("replace %s: %w", op.Object(), err)
		}
		op.Verb = dataplane.Set
	}
	if err := p.kernel.Apply([]dataplane.Op{op})[0]; err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c, ok := p.tunnels[op.Device()]; ok {
		_, c.link = dataplane.KindLink.Of(op)
	}
	return nil
}

// open takes up a TUN device, or makes it, and the socket behind it.
func (p *plane) open(op dataplane.Op) error {
	name, link := dataplane.KindLink.Of(op)
	p.drop(name) // its device is gone, if it did not notice yet
	offloads := tunnel.AllOffloads()
	if link.Plain {
		offloads = tunnel.Offloads{}
	}
	tun, udp, err := p.store.open(name, netip.AddrPortFrom(link.Local, uint16(link.Port)), offloads)
	if errors.Is(err, unix.EBUSY) {
		p.taken()
	}
	if err != nil {
		return err
	}
	ends := tunnel.Ends{Device: tun, Socket: udp}
	icmp, err := tunnel.OpenICMP()
	if pace.Scarce(err) { // another attempt will have one
		tun.Close()
		udp.Close()
		return err
	}
	if err != nil {
		p.log.Warn("the tunnel sends no ICMP errors", "err", err)
	} else {
		ends.ICMP = icmp
	}
	c := &carrier{link: link, ends: ends, entries: map[dataplane.TunnelKey]netip.AddrPort{}, close: func() {
		tun.Close()
		udp.Close()
		if icmp != nil {
			icmp.Close()
		}
	}}
	c.ctx, c.cancel = context.WithCancel(p.ctx)
	p.mu.Lock()
	p.tunnels[name] = c
	p.mu.Unlock()
	tcp, uso := tun.SuperPackets()
	p.log.Info("tunnel is open", "link", name, "local", link.Local, "port", link.Port,
		"tso", tcp, "uso", uso, "udp_segment", udp.MaxSegments() > 1, "udp_gro", udp.GRO())
	return nil
}

// enter changes an entry of a tunnel's table, which counts from the next swap.
func (p *plane) enter(op dataplane.Op) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	k, peer := dataplane.KindTunnel.Of(op)
	c, ok := p.tunnels[k.Link]
	switch {
	case op.Verb == dataplane.Del && ok:
		delete(c.entries, k)
	case ok:
		c.entries[k] = peer
	case op.Verb != dataplane.Del:
		return fmt.Errorf("replace %s: the tunnel is not open", op.Object())
	}
	return nil
}

// swap makes a table of the entries, and starts the tunnel with its first one.
func (p *plane) swap(link string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	c, ok := p.tunnels[link]
	if !ok || len(c.entries) == 0 {
		return nil
	}
	o := tunnel.Overlay{Network: p.network, MTU: c.link.MTU, AllowUnknownSources: c.link.Open}
	for k, peer := range c.entries {
		if peer.IsValid() {
			o.Peers = append(o.Peers, tunnel.Peer{Subnet: k.Subnet, Addr: peer})
		} else {
			o.Own = k.Subnet
		}
	}
	table, err := tunnel.NewTable(o)
	if err != nil {
		return err
	}
	if c.tunnel != nil {
		c.tunnel.Swap(table)
		return nil
	}
	c.tunnel = tunnel.New(table)
	c.ended.Go(func() { p.carry(link, c) })
	return nil
}

// carry runs a tunnel until it is dropped or one of its ends fails. Then the
// next pass opens another.
func (p *plane) carry(link string, c *carrier) {
	err := c.tunnel.Run(c.ctx, c.ends)
	if c.ctx.Err() != nil {
		return
	}
	p.log.Warn("tunnel has ended, opening it again", "link", link, "err", err)
	c.cancel()
	p.mu.Lock()
	wait := p.ends.Next(time.Now())
	p.mu.Unlock()
	time.AfterFunc(wait, p.lost) // whoever drops it meanwhile does not wait
}

// drop ends a tunnel and gives up its ends. The store keeps them open.
func (p *plane) drop(link string) {
	p.mu.Lock()
	c, ok := p.tunnels[link]
	delete(p.tunnels, link)
	p.mu.Unlock()
	if ok {
		c.cancel()
		c.ended.Wait()
		c.close()
	}
}

// close drops all tunnels.
func (p *plane) close() {
	for link := range p.tunnels {
		p.drop(link)
	}
}
