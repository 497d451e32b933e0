package lab

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
)

// Options are the options of a Lab. With the zero value, it has a fabric and an etcd and no hosts.
type Options struct {
	Hosts    int          // number of hosts, named h1, h2, …
	Flanneld string       // path of the flanneld binary
	Underlay netip.Prefix // network of the fabric; default 172.31.200.0/22
	Racks    int          // underlay subnets with a router between them; host i is in rack (i-1) mod Racks; default 1
	Uplink   string       // name of the hosts' device on the fabric; default eth0
	MTU      int          // of the fabric; default 1500
	TLS      *TLS         // etcd with TLS; nil is plain HTTP
	// EtcdCluster allows more members of etcd; see Etcd.AddMember.
	EtcdCluster bool
	Unit        *Unit        // restricts every flanneld; nil: as root
	Progress    func(string) // called with one line for each step; may be nil
}

// A Lab is a running set of hosts. Its methods and those of its parts may be called by several
// goroutines.
type Lab struct {
	Fabric *Namespace // holds the underlay bridges and etcd
	Etcd   *Etcd
	Hosts  []*Host
	Dir    string // logs, etcd data and subnet files; removed by Close

	opts    Options
	state   *state
	spawner *spawner

	mu         sync.Mutex
	namespaces []*Namespace
	processes  []*Process
	sites      []*Site
	listeners  []net.Listener // of etcd at additional addresses

	closing  sync.Once
	closeErr error
}

// New removes what dead labs have left, builds the fabric and the hosts, and starts etcd. It does
// not start flanneld. If it fails or the context ends, everything is removed again.
func New(ctx context.Context, opts Options) (*Lab, error) {
	if err := opts.complete(); err != nil {
		return nil, err
	}
	s, err := newState(ctx)
	if err != nil {
		return nil, err
	}
	l := &Lab{opts: opts, state: s, spawner: newSpawner()}
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (o *Options) complete() error {
	if os.Geteuid() != 0 {
		return errors.New("a lab needs root: it makes network namespaces")
	}
	if isEtcdProcess() {
		return errors.New("this process is a lab's etcd: main (or TestMain) must run through lab.Main")
	}
	if !o.Underlay.IsValid() {
		o.Underlay = netip.MustParsePrefix("172.31.200.0/22")
	}
	if o.Racks == 0 {
		o.Racks = 1
	}
	if o.Uplink == "" {
		o.Uplink = "eth0"
	}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	if o.Hosts < 0 || o.Racks < 0 || o.MTU < 0 {
		return errors.New("negative Hosts, Racks or MTU")
	}
	// Each rack needs a network address, a router's address and a broadcast address besides its
	// hosts'.
	o.Underlay = o.Underlay.Masked()
	room := 32 - o.rackBits()
	perRack := (o.Hosts + o.Racks - 1) / o.Racks
	if !o.Underlay.Addr().Is4() || room < 2 || perRack > 1<<min(room, 30)-3 {
		return fmt.Errorf("no room in Underlay %s for %d hosts in %d racks", o.Underlay, o.Hosts, o.Racks)
	}
	return nil
}

// rackBits returns the prefix length of each rack's part of the underlay.
func (o *Options) rackBits() int { return o.Underlay.Bits() + bits.Len(uint(o.Racks-1)) }

func (l *Lab) build(ctx context.Context) error {
	var err error
	if l.Dir, err = l.state.makeTemp(); err != nil {
		return err
	}
	if l.Fabric, err = l.newNamespace("fabric"); err != nil {
		return err
	}
	// The racks reach each other through the fabric.
	if err := l.Fabric.forward(); err != nil {
		return err
	}
	if err := l.Fabric.configure(l.addRacks); err != nil {
		return err
	}
	l.progress("fabric %s: underlay %s, MTU %d", l.Fabric.Name, l.opts.Underlay, l.opts.MTU)
	if l.Etcd, err = newEtcd(l, l.rack(0).Addr()); err != nil {
		return err
	}
	if err := l.Etcd.Start(ctx); err != nil {
		return err
	}
	l.progress("etcd %s", l.Etcd.Endpoint())
	for i := range l.opts.Hosts {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("add hosts: %w", err)
		}
		if err := l.addHost(i); err != nil {
			return fmt.Errorf("add host %d: %w", i+1, err)
		}
	}
	return nil
}

func (l *Lab) addRacks(h *netlink.Handle) error {
	for i := range l.opts.Racks {
		if err := addBridge(h, rackBridge(i), l.opts.MTU); err != nil {
			return err
		}
		if err := setAddr(h, rackBridge(i), l.rack(i)); err != nil {
			return err
		}
	}
	return nil
}

// rack returns the router's address in rack i, with the prefix length of the rack's network.
func (l *Lab) rack(i int) netip.Prefix {
	length := l.opts.rackBits()
	return netip.PrefixFrom(offset(l.opts.Underlay.Addr(), i<<(32-length)+1), length)
}

func rackBridge(i int) string { return fmt.Sprintf("rack%d", i+1) }

// Close kills the processes and removes the namespaces and the directory. Further calls return the
// same error.
func (l *Lab) Close() error {
	l.closing.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		l.mu.Lock()
		processes, namespaces, sites, listeners := l.processes, l.namespaces, l.sites, l.listeners
		l.mu.Unlock()
		var errs []error
		for _, p := range processes {
			if err := p.Signal(os.Kill); err != nil && !errors.Is(err, os.ErrProcessDone) {
				errs = append(errs, err)
			}
		}
		for _, p := range processes {
			if _, err := p.Wait(ctx); err != nil {
				errs = append(errs, err)
			}
		}
		l.spawner.close()
		for _, s := range sites {
			s.close()
		}
		for _, l := range listeners {
			l.Close()
		}
		if l.Etcd != nil {
			l.Etcd.V2.Close()
		}
		for _, n := range namespaces {
			n.Close()
		}
		errs = append(errs, l.state.remove(ctx))
		l.closeErr = errors.Join(errs...)
	})
	return l.closeErr
}

func (l *Lab) newNamespace(node string) (*Namespace, error) {
	n, err := createNamespace(l.state.netns(node))
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.namespaces = append(l.namespaces, n)
	return n, nil
}

func (l *Lab) removeNamespace(n *Namespace) error {
	l.mu.Lock()
	l.namespaces = slices.DeleteFunc(l.namespaces, func(o *Namespace) bool { return o == n })
	l.mu.Unlock()
	return n.remove()
}

func (l *Lab) track(p *Process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.processes = append(l.processes, p)
}

func (l *Lab) progress(format string, args ...any) {
	if l.opts.Progress != nil {
		l.opts.Progress(fmt.Sprintf(format, args...))
	}
}
