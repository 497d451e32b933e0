package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"

	"flanneld/pkg/lab/relay"
)

// lanMTU is the MTU of a site's LANs. The MTU of a host's packets is limited by its own devices.
const lanMTU = 9216

// firstNumber is the number of a site's first host. The router is number 1.
const firstNumber = 2

// A NIC is a network card of a host of a Site.
type NIC struct {
	Name string // name of the device on the host
	LAN  string // bridge of the router that its cable leads to; empty: a line, with TUN devices
}

// A Site is a part of the lab with its own addresses: a router, and hosts that are connected to it
// by cables. Nothing has an address until commands set one. So a host can have any shape, and
// several sites can have the same addresses. etcd answers at every address of the router.
//
// The router's ends of the hosts' cables and lines are called h<number of the host>.<NIC>.
type Site struct {
	Router *Namespace
	Hosts  []*Host

	name string
	lab  *Lab
	etcd net.Listener

	mu    sync.Mutex
	lines []*line
}

// NewSite creates a router without LANs. The name is a part of the names of its namespaces.
func (l *Lab) NewSite(name string) (*Site, error) {
	router, err := l.newNamespace(name + "r")
	if err != nil {
		return nil, err
	}
	s := &Site{Router: router, name: name, lab: l}
	if err := router.forward(); err != nil {
		return nil, err
	}
	if s.etcd, err = router.Listen(context.Background(), "tcp", ":2379"); err != nil {
		return nil, fmt.Errorf("listen on router %s: %w", router.Name, err)
	}
	l.mu.Lock()
	l.sites = append(l.sites, s)
	l.mu.Unlock()
	go relay.Serve(s.etcd, l.Etcd.dial)
	return s, nil
}

// close closes what the site has open in this process.
func (s *Site) close() {
	s.etcd.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.lines {
		l.close()
	}
}

// A card is a NIC in its host. Its MAC address is the same after each PowerOn.
type card struct {
	NIC
	mac  net.HardwareAddr
	line *line // nil for a cable
}

// AddHost adds a host that is powered on. Its devices are down and have no addresses. The caller
// sets Addr.
func (s *Site) AddHost(nics ...NIC) (*Host, error) {
	number := firstNumber + len(s.Hosts)
	name := fmt.Sprintf("%sh%d", s.name, number)
	h := &Host{
		Endpoint:   Endpoint{Name: name, lab: s.lab},
		SubnetFile: filepath.Join(s.lab.Dir, name, "subnet.env"),
		Number:     number,
		site:       s,
	}
	if err := os.MkdirAll(filepath.Dir(h.SubnetFile), 0o755); err != nil {
		return nil, fmt.Errorf("make a directory for %s: %w", name, err)
	}
	for _, n := range nics {
		c := &card{NIC: n, mac: randomMAC()}
		var err error
		if n.LAN == "" {
			c.line, err = s.addLine(h.port(c))
		} else {
			err = s.addLAN(n.LAN)
		}
		if err != nil {
			return nil, err
		}
		h.cards = append(h.cards, c)
	}
	s.Hosts = append(s.Hosts, h)
	return h, h.PowerOn()
}

func (s *Site) addLAN(name string) error {
	return s.Router.configure(func(router *netlink.Handle) error {
		var missing netlink.LinkNotFoundError
		if _, err := router.LinkByName(name); !errors.As(err, &missing) {
			return err
		}
		return addBridge(router, name, lanMTU)
	})
}

// port returns the name of the router's end.
func (h *Host) port(c *card) string { return fmt.Sprintf("h%d.%s", h.Number, c.Name) }

// PowerOn gives a host of a site a new network namespace with its network cards.
func (h *Host) PowerOn() error {
	ns, err := h.lab.newNamespace(h.Name)
	if err != nil {
		return err
	}
	h.NS = ns
	if err := ns.forward(); err != nil {
		return err
	}
	for _, c := range h.cards {
		if err := h.plugIn(c); err != nil {
			return err
		}
	}
	return nil
}

// Replug removes a network card of a host of a site and adds it again, as a USB device that is
// reconnected or a PPP line that is redialled. The new device is down and has no address.
func (h *Host) Replug(name string) error {
	for _, c := range h.cards {
		if c.Name == name {
			return errors.Join(h.takeOut(c), h.plugIn(c))
		}
	}
	return fmt.Errorf("%s has no network card %s", h.Name, name)
}

func (h *Host) plugIn(c *card) error {
	if c.line != nil {
		return c.line.connect(h.NS, c.Name)
	}
	return h.site.Router.configure(func(router *netlink.Handle) error {
		port := h.port(c)
		if err := addPair(router, cable{bridge: c.LAN, port: port, peer: h.NS, device: c.Name, mtu: 1500, mac: c.mac}); err != nil {
			return err
		}
		return onLink(router, port, func(link netlink.Link) error {
			return errors.Join(router.LinkSetMTU(link, lanMTU), router.LinkSetUp(link))
		})
	})
}

// PowerOff removes the programs, the containers and the network namespace of a host of a site, and
// the directory of its subnet file, which stands for /run. Nothing else may use the host meanwhile.
func (h *Host) PowerOff(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	gone := []*Namespace{h.NS}
	for _, c := range h.containers {
		gone = append(gone, c.NS)
	}
	h.containers = nil
	paths := make([]string, len(gone))
	for i, n := range gone {
		paths[i] = n.Path()
	}
	errs := []error{killInside(ctx, paths)}
	// The kernel may free the namespace with its cables later.
	for _, c := range h.cards {
		errs = append(errs, h.takeOut(c))
	}
	for _, n := range gone {
		errs = append(errs, h.lab.removeNamespace(n))
	}
	files, err := filepath.Glob(filepath.Join(h.lab.Dir, h.Name, "*.env*"))
	for _, f := range files {
		err = errors.Join(err, os.Remove(f))
	}
	return errors.Join(append(errs, err)...)
}

func (h *Host) takeOut(c *card) error {
	if c.line != nil {
		c.line.disconnect()
		return nil
	}
	return h.site.Router.configure(func(router *netlink.Handle) error {
		return onLink(router, h.port(c), router.LinkDel)
	})
}

// Shell runs a shell script on a host of a site, until a command fails, with the host's number in
// N, and returns its output.
func (h *Host) Shell(ctx context.Context, script string) (string, error) {
	return h.NS.Shell(ctx, "set -e\n"+script, fmt.Sprintf("N=%d", h.Number), "XTABLES_LOCKFILE="+filepath.Join(h.lab.Dir, h.Name, "xtables.lock"))
}

// Shell runs a shell script on the router, as Host.Shell does, with the numbers of all hosts in
// HOSTS.
func (s *Site) Shell(ctx context.Context, script string) (string, error) {
	var numbers []string
	for _, h := range s.Hosts {
		numbers = append(numbers, fmt.Sprint(h.Number))
	}
	return s.Router.Shell(ctx, "set -e\n"+script, "HOSTS="+strings.Join(numbers, " "))
}

// Remove powers off all hosts and removes the router.
func (s *Site) Remove(ctx context.Context) error {
	var errs []error
	for _, h := range s.Hosts {
		errs = append(errs, h.PowerOff(ctx))
	}
	s.close()
	s.lab.mu.Lock()
	s.lab.sites = slices.DeleteFunc(s.lab.sites, func(o *Site) bool { return o == s })
	s.lab.mu.Unlock()
	return errors.Join(append(errs, s.lab.removeNamespace(s.Router))...)
}
