package lab

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"

	"github.com/vishvananda/netlink"
)

// An Endpoint is a host or a container: an address in a namespace. Traffic runs between endpoints.
type Endpoint struct {
	Name string // h1 for a host, h1c1 for a container
	Addr netip.Addr
	NS   *Namespace
	lab  *Lab
}

// Do runs Go code inside the endpoint's namespace; see Namespace.Do.
func (e *Endpoint) Do(fn func() error) error { return e.NS.Do(fn) }

// A Host is a machine on the fabric with one uplink, a default route, forwarding, and no packet
// filter rules.
type Host struct {
	Endpoint
	Uplink     string // name of the device to the fabric
	SubnetFile string // path for -subnet-file
	Number     int    // number of a Site's host, from 2 on

	rack  int
	site  *Site
	cards []*card

	mu         sync.Mutex
	runs       int
	flanneld   *Process
	containers []*Container
}

// addHost adds host i, counted from 0.
func (l *Lab) addHost(i int) error {
	name := fmt.Sprintf("h%d", i+1)
	rack := i % l.opts.Racks
	router := l.rack(rack)
	addr := netip.PrefixFrom(offset(router.Addr(), 1+i/l.opts.Racks), router.Bits())
	ns, err := l.newNamespace(name)
	if err != nil {
		return err
	}
	h := &Host{
		Endpoint:   Endpoint{Name: name, Addr: addr.Addr(), NS: ns, lab: l},
		Uplink:     l.opts.Uplink,
		SubnetFile: filepath.Join(l.Dir, name, "subnet.env"),
		rack:       rack,
	}
	if l.opts.Unit != nil { // the unit makes only this directory writable
		h.SubnetFile = filepath.Join(l.Dir, name, "run", "subnet.env")
	}
	if err := ns.forward(); err != nil {
		return err
	}
	err = l.Fabric.configure(func(fabric *netlink.Handle) error {
		return addCable(fabric, cable{bridge: rackBridge(rack), port: name, peer: ns, device: h.Uplink, mtu: l.opts.MTU})
	})
	if err != nil {
		return err
	}
	if err := ns.connect(h.Uplink, addr, router.Addr()); err != nil {
		return err
	}
	l.Hosts = append(l.Hosts, h)
	l.progress("host %s: %s on %s", name, h.Addr, ns.Name)
	return nil
}

// Start starts flanneld with the lab's -etcd-endpoints and the host's -subnet-file, followed by
// args. It does not wait for it. Each run has its own log.
func (h *Host) Start(args ...string) (*Process, error) { return h.StartCommand(Command{Args: args}) }

// StartCommand is Start for a command with more than arguments.
func (h *Host) StartCommand(c Command) (*Process, error) {
	common := []string{"-etcd-endpoints=" + h.lab.Etcd.Endpoint(), "-subnet-file=" + h.SubnetFile}
	c.Args = append(common, c.Args...)
	p, err := h.Run(c)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.flanneld = p
	return p, nil
}

// Flanneld returns the process of the last Start, or nil.
func (h *Host) Flanneld() *Process {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.flanneld
}

// Run starts a program on the host with the command's arguments only. Each host has its own
// iptables lock file, as real machines have.
func (h *Host) Run(c Command) (*Process, error) {
	dir := filepath.Join(h.lab.Dir, h.Name)
	lock := filepath.Join(dir, "xtables.lock")
	if c.Path == "" {
		c.Path = h.lab.opts.Flanneld
		if unit := h.lab.opts.Unit; unit != nil {
			var err error
			if c.Unit, err = unit.here(filepath.Dir(h.SubnetFile), lock); err != nil {
				return nil, err
			}
		}
	}
	c.Env = append([]string{"XTABLES_LOCKFILE=" + lock}, c.Env...)
	h.mu.Lock()
	h.runs++
	log := filepath.Join(dir, fmt.Sprintf("%s-%d.log", filepath.Base(c.Path), h.runs))
	h.mu.Unlock()
	return h.lab.startProcess(h.NS, c, log)
}

// Unplug disconnects the host from the fabric without a change of its link: it stays up, and
// packets are lost.
func (h *Host) Unplug() error {
	return h.lab.Fabric.configure(func(fabric *netlink.Handle) error { return setMaster(fabric, h.Name, "") })
}

// Plug connects the host again after Unplug.
func (h *Host) Plug() error {
	return h.lab.Fabric.configure(func(fabric *netlink.Handle) error { return setMaster(fabric, h.Name, rackBridge(h.rack)) })
}

// StartAll starts flanneld on all hosts at the same time and waits until all are ready or one has
// failed.
func (l *Lab) StartAll(ctx context.Context, args ...string) error {
	for _, h := range l.Hosts {
		if _, err := h.Start(args...); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan error, len(l.Hosts))
	for _, h := range l.Hosts {
		go func() {
			err := h.Flanneld().WaitReady(ctx)
			if err != nil {
				err = fmt.Errorf("host %s: %w", h.Name, err)
				defer cancel() // do not wait for the others
			}
			results <- err
		}()
	}
	var first error
	for range l.Hosts {
		if err := <-results; err != nil && first == nil {
			first = err
		}
	}
	return first
}
