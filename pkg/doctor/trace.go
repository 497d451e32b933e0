package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"flanneld/pkg/backend"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lease"
	"flanneld/pkg/status"
	"flanneld/pkg/trace"
)

// TraceOptions are what a trace is asked for.
type TraceOptions struct {
	Src, Dst netip.Addr
	Protocol string         // tcp, udp or icmp; empty for all
	Port     uint16         // to which the source sends; 0: unknown
	Peer     netip.AddrPort // where the peer serves its status; invalid: at its public IP, on the port of this host
}

// Trace follows a packet between two containers, one of which is on this host, and returns its way.
// It ends with ctx. Texts are redacted, and contain no control characters.
func Trace(ctx context.Context, in *Inputs, o TraceOptions) trace.Trace {
	c := collector{in: in, TraceOptions: o}
	t := trace.Walk(c.collect(ctx))
	clean := func(s *string) { *s = printable(in.Redact.String(clip(oneLine(*s)))) }
	for _, s := range []*string{&t.Daemon, &t.Reason, &t.Remedy} {
		clean(s)
	}
	for i := range t.Steps {
		s := &t.Steps[i]
		for _, text := range []*string{&s.Object, &s.Command, &s.Reason, &s.Remedy} {
			clean(text)
		}
	}
	return t
}

// collector collects the facts of a trace.
type collector struct {
	in *Inputs
	TraceOptions

	overlay Overlay
	f       trace.Facts
	network *backend.Network // nil if its config is not known
	peer    lease.Lease      // of the other host; zero if it is not known
}

// known returns the result of reading something.
func known[T any](v T, err error) trace.Known[T] {
	if err != nil {
		return trace.IsNot[T](err)
	}
	return trace.Is(v)
}

// collect collects everything. What depends on nothing is read first, all of it at the same time.
func (c *collector) collect(ctx context.Context) trace.Facts {
	in, f := c.in, &c.f
	for _, read := range []func(){
		func() { in.Endpoints.Get(ctx) }, func() { in.Legacy.Get(ctx) }, func() { in.Inventory.Get(ctx) },
	} {
		go read()
	}
	f.Src.Addr, f.Dst.Addr = c.Src, c.Dst
	c.readDaemon(ctx)
	o, err := in.Overlay.Get(ctx)
	if err != nil {
		f.Src.Owner, f.Dst.Owner = trace.IsNot[trace.Owner](err), trace.IsNot[trace.Owner](err)
		return *f
	}
	c.setOverlay(o)
	c.readLeases(ctx)
	if f.Role() == trace.Neither {
		return *f
	}
	c.readPeer(ctx)
	c.readKernel()
	packets := c.packets()
	var together sync.WaitGroup
	together.Go(func() { c.readRules(ctx, packets) })
	together.Go(func() { c.askPeer(ctx) })
	together.Go(func() {
		c.ping(ctx)
		c.readNeighbors() // which the pings have made the kernel look for
	})
	together.Wait()
	return *f
}

// setOverlay sets what is known of the network.
func (c *collector) setOverlay(o Overlay) {
	f := &c.f
	c.overlay, c.network = o, o.Config
	f.Network, f.Subnet, f.Backend, f.Device, f.Uplink, f.Port = o.Network, o.Subnet, o.Backend, o.Device, o.Uplink, o.Port
	f.PublicIP, f.Addr = o.PublicIP, o.PublicIP
	if o.Subnet.IsValid() {
		f.Src.Here, f.Dst.Here = o.Subnet.Contains(c.Src), o.Subnet.Contains(c.Dst)
		f.Gateway = o.Subnet.Addr().Next()
	}
}

// readLeases reads whose the two addresses are, and what this host should have.
func (c *collector) readLeases(ctx context.Context) {
	leases, err := c.in.leases(ctx)
	c.readWanted(ctx, leases)
	for _, side := range []*trace.Side{&c.f.Src, &c.f.Dst} {
		side.Owner = c.owner(ctx, side, leases, err)
	}
}

// readDaemon finds out how this host's flanneld is.
func (c *collector) readDaemon(ctx context.Context) {
	d := &c.f.Daemon
	d.Text = c.in.Options.Source
	all, err := c.in.Daemons.Get(ctx)
	at := slices.IndexFunc(all, func(d Daemon) bool { return d.serves(c.in.Options.SubnetFile) })
	if at >= 0 && all[at].Stopped { // nothing else waits for its answer either
		c.in.Status = Missing[status.Document](errStopped)
	}
	answer, asked := c.in.Status.Get(ctx)
	if asked == nil {
		d.PID = answer.Daemon.PID
		return
	}
	switch {
	case at < 0:
		d.Down = err == nil
		return
	case all[at].Stopped:
		d.Stopped = true
		d.Text += "; it is stopped by a signal"
	default:
		d.Text += "; it does not answer"
	}
	d.PID = all[at].PID
}

// errStopped is why a daemon that is stopped has no status.
var errStopped = errors.New("flanneld is stopped by a signal")

// readWanted computes what this host should have for its peers, and which it leaves out.
func (c *collector) readWanted(ctx context.Context, s *Store) {
	in, f := c.in, &c.f
	switch {
	case s == nil:
		f.Want = trace.IsNot[dataplane.State](errors.New("the leases are not known"))
		return
	case c.network == nil:
		f.Want = trace.IsNot[dataplane.State](errors.New("the network config is not known"))
		return
	}
	u, inv, err := in.uplink(ctx)
	if err != nil {
		f.Want = trace.IsNot[dataplane.State](err)
		return
	}
	facts, err := host.Uplink{Iface: u.iface, Addr: u.addr}.Facts(inv, in.Options.Uplink.PublicIP, f.Network)
	if err != nil {
		f.Want = trace.IsNot[dataplane.State](err)
		return
	}
	f.Uplink, f.Addr, f.PublicIP = facts.Uplink, facts.Addr, facts.PublicIP
	if c.network.UsesTUN() {
		facts.TUN = f.Device // it can have any name
	}
	own, found := find(s, f.Subnet)
	if !found {
		claim, _ := in.Claim.Get(ctx) // without it, only the subnet matters
		own = lease.Lease{Subnets: lease.SubnetsOf(f.Subnet), Attrs: claim.Held}
	}
	if f.Device == "" {
		name, link := c.network.Link(facts, own)
		f.Device, f.Port = name, uint16(link.Port)
	} else if _, link := c.network.Link(facts, own); f.Port == 0 {
		f.Port = uint16(link.Port)
	}
	all := make([]*lease.Lease, 0, len(s.Leases))
	for i := range s.Leases {
		all = append(all, &s.Leases[i])
	}
	plan := backend.NewPlan(c.network.Backend, f.Network)
	plan.Update(facts, lease.NewView(own, all, true))
	f.Want = trace.Is(plan.Want())
	for _, skipped := range plan.Skipped() {
		if v4 := skipped.Subnets.V4(); v4.IsValid() && (v4.Contains(c.Src) || v4.Contains(c.Dst)) && !v4.Contains(own.Subnets.V4().Addr()) {
			f.Skipped = skipped.Error()
		}
	}
}

// owner returns the host with the subnet of an address: as etcd knows it, else the daemon.
func (c *collector) owner(ctx context.Context, side *trace.Side, s *Store, err error) trace.Known[trace.Owner] {
	if err != nil {
		o, ok := c.ownerByStatus(ctx, side)
		if !ok {
			return trace.IsNot[trace.Owner](err)
		}
		return trace.Is(o)
	}
	var o trace.Owner
	for _, l := range s.Leases {
		if v4 := l.Subnets.V4(); v4.IsValid() && v4.Contains(side.Addr) && (!side.Here || v4 == c.f.Subnet) && !o.Found {
			o.Lease, o.Found = l, true
		}
	}
	key := ""
	if o.Found {
		key = lease.Key(o.Subnets)
	} else {
		for _, e := range s.Invalid {
			if v4 := e.Subnets.V4(); v4.IsValid() && v4.Contains(side.Addr) {
				o.Damaged, key = e.Err, e.Key
			}
		}
	}
	switch {
	case key != "":
		o.Command = c.in.command(s.API, "get", dirOf(s)+"/"+key)
	case string(s.API) == "v2":
		o.Command = c.in.command(s.API, "ls", dirOf(s))
	default:
		o.Command = c.in.command(s.API, "get", "--prefix", dirOf(s)+"/")
	}
	return trace.Is(o)
}

// ownerByStatus returns the host with the subnet of an address as the daemon knows it.
func (c *collector) ownerByStatus(ctx context.Context, side *trace.Side) (o trace.Owner, ok bool) {
	d, err := c.in.Status.Get(ctx)
	if err != nil {
		return o, false
	}
	o.Found, o.Command = true, "flanneld status --all"
	if side.Here {
		if !d.Lease.Subnet.IsValid() || d.Lease.Lost {
			return o, false
		}
		o.Subnets, o.PublicIP, o.BackendType = lease.SubnetsOf(d.Lease.Subnet), d.Uplink.PublicIP, d.Backend.Type
		return o, true
	}
	for i := range d.Peers {
		if p := &d.Peers[i]; p.Subnet.Contains(side.Addr) {
			o.Subnets, o.PublicIP = lease.SubnetsOf(p.Subnet), p.PublicIP
			return o, true
		}
	}
	return o, false
}

// readKernel asks the kernel for its decisions, and for the overlay's objects.
func (c *collector) readKernel() {
	f := &c.f
	err := withKernel(func(k *kernel.Kernel) error {
		for _, side := range []*trace.Side{&f.Src, &f.Dst} {
			if side.Here {
				side.Delivery = known(k.Decide(host.Query{Dst: side.Addr}))
			}
		}
		_, err := net.InterfaceByName("docker0")
		f.Docker = err == nil
		if f.Role() == trace.Both {
			c.readInside(k)
			return nil
		}
		scope := dataplane.Scope{Networks: []netip.Prefix{f.Network}}
		if f.Device != "" {
			scope.Links = []string{f.Device}
		}
		f.Have = known(k.Snapshot(scope))
		local, remote := f.Near().Addr, f.Far().Addr
		bridge := f.Bridge(f.Near())
		out := host.Query{Dst: remote}
		if bridge != "" {
			out.Src, out.In = local, bridge
			f.OutForwards = forwards(k, bridge)
		}
		f.Out = known(k.Decide(out))
		if by := f.LeavesBy(); by != "" { // it may depend on Out
			f.In = known(k.Decide(host.Query{Dst: local, Src: remote, In: by}))
			f.InForwards = forwards(k, by)
		}
		if c.peer.PublicIP.IsValid() {
			f.Outer = known(k.Decide(host.Query{Dst: c.peer.PublicIP}))
		}
		return nil
	})
	if err != nil {
		f.Have = trace.IsNot[dataplane.State](err)
	}
}

// readInside asks the kernel about packets between two containers of this host.
func (c *collector) readInside(k *kernel.Kernel) {
	f := &c.f
	if a := f.Bridge(f.Src); a != "" {
		f.Out, f.OutForwards = known(k.Decide(host.Query{Dst: f.Dst.Addr, Src: f.Src.Addr, In: a})), forwards(k, a)
	}
	if b := f.Bridge(f.Dst); b != "" {
		f.In, f.InForwards = known(k.Decide(host.Query{Dst: f.Src.Addr, Src: f.Dst.Addr, In: b})), forwards(k, b)
	}
}

// forwards returns whether the kernel forwards packets that arrive by a device.
func forwards(k *kernel.Kernel, device string) trace.Known[bool] {
	path := "net/ipv4/conf/" + device + "/forwarding"
	values, err := k.Sysctls([]string{path})
	if v, exists := values[path]; err == nil && exists {
		return trace.Is(v != "0")
	}
	if err == nil {
		err = fmt.Errorf("there is no device %s", device)
	}
	return trace.IsNot[bool](err)
}

// readPeer collects what is known of the other host: its lease, what the daemon knows of it, and
// this host's device.
func (c *collector) readPeer(ctx context.Context) {
	in, f := c.in, &c.f
	if f.Role() == trace.Both {
		return
	}
	if o := f.Far().Owner; o.Is && o.Value.Found {
		c.peer = o.Value.Lease
	}
	d, err := in.Status.Get(ctx)
	f.Peer.Entry.Err = err
	for i := range d.Peers {
		p := d.Peers[i]
		if p.Subnet != c.peer.Subnets.V4() || !p.Subnet.IsValid() {
			continue
		}
		f.Peer.Entry = trace.Is(p)
		if p.State == "skipped" && f.Skipped == "" {
			f.Skipped = p.Reason
		}
	}
	have, err := in.Device.Get(ctx)
	env, _ := in.Env.Get(ctx)
	claim, _ := in.Claim.Get(ctx)
	held := claim.Held
	if own := f.Near().Owner.Value; own.Found && own.BackendData != "" {
		held = own.Attrs // what the peers know
	}
	o := c.overlay
	if o.Device = f.Device; o.Device == "" {
		return
	}
	if err == nil && env.MTU == 0 {
		err = errors.New("the subnet file has no MTU")
	}
	f.DeviceFaults = trace.IsNot[[]string](err)
	if err == nil {
		f.DeviceFaults = trace.Is(differences(have, o, env.MTU, held))
	}
	if _, exists := have.Links[f.Device]; err != nil && have.Links != nil && !exists {
		f.DeviceFaults = trace.Is([]string{"it does not exist"})
	}
}
