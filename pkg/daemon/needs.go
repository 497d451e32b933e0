package daemon

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"flanneld/pkg/host"
	"flanneld/pkg/pace"
	"flanneld/pkg/registry/etcd"
)

const (
	// lookupEvery is the time between two looks at which addresses the names of etcd have.
	lookupEvery   = time.Minute
	lookupTimeout = 5 * time.Second
	// addressKept is how long an address counts that its name no longer has: a name may have
	// a few of many addresses in each answer, and connections outlive it.
	addressKept = 10 * time.Minute
	// mostAddresses bounds what name servers can make this host remember.
	mostAddresses = 256
)

// needs are the addresses of etcd, which this host must reach without the overlay: all that
// its endpoints' names have, and those that were connected to, which may be a proxy's.
type needs struct {
	what    string            // of an address that was connected to
	names   map[string]string // host names to look up, with what is there
	changed func()            // called when an address has come or gone

	mu   sync.Mutex
	seen map[netip.Addr]seen
}

type seen struct {
	what string
	last time.Time // zero: it was given as an address
}

func newNeeds(o etcd.Options, changed func()) *needs {
	n := &needs{what: "an address of etcd", names: map[string]string{}, changed: changed, seen: map[netip.Addr]seen{}}
	endpoints, err := o.ParseEndpoints()
	if err != nil {
		return n // whoever opens the store says so
	}
	for _, e := range endpoints.All {
		if e.Socket() != "" {
			continue
		}
		what := "etcd endpoint " + e.String()
		if len(endpoints.All) == 1 {
			n.what = what
		}
		n.add(e.Hostname(), what)
		if req, err := http.NewRequest(http.MethodGet, e.String(), nil); err == nil {
			if proxy, err := http.ProxyFromEnvironment(req); err == nil && proxy != nil {
				n.add(proxy.Hostname(), "the proxy to etcd "+proxy.Host)
			}
		}
	}
	return n
}

// add adds a host by its name or address.
func (n *needs) add(name, what string) {
	if a, err := netip.ParseAddr(name); err == nil {
		n.saw(a, what, time.Time{})
	} else {
		n.names[name] = what
	}
}

// connecting is told of an address that is about to be connected to.
func (n *needs) connecting(a netip.Addr) {
	if n.saw(a, n.what, time.Now()) {
		n.changed()
	}
}

// saw notes an address and reports whether it is new. This host reaches itself whatever the
// routes say.
func (n *needs) saw(a netip.Addr, what string, at time.Time) bool {
	a = a.Unmap().WithZone("")
	if a.IsLoopback() || a.IsUnspecified() {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	s, known := n.seen[a]
	switch {
	case !known && len(n.seen) < mostAddresses:
		n.seen[a] = seen{what, at}
		return true
	case known && !s.last.IsZero():
		n.seen[a] = seen{s.what, at}
	}
	return false
}

// wanted returns the addresses, in order.
func (n *needs) wanted() []host.Need {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make([]host.Need, 0, len(n.seen)+1)
	for a, s := range n.seen {
		all = append(all, host.Need{Addr: a, What: s.what})
	}
	slices.SortFunc(all, func(a, b host.Need) int { return a.Addr.Compare(b.Addr) })
	return all
}

// run looks the names up, now and then, until ctx ends.
func (n *needs) run(ctx context.Context) {
	if len(n.names) == 0 {
		return
	}
	for {
		if n.lookUp(ctx); pace.Sleep(ctx, lookupEvery) != nil {
			return
		}
	}
}

// lookUp takes what the names have now. As long as one of them cannot be looked up, nothing
// is forgotten.
func (n *needs) lookUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	changed, failed := false, false
	for name, what := range n.names {
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		failed = failed || err != nil
		for _, a := range addrs {
			changed = n.saw(a, what, time.Now()) || changed
		}
	}
	if !failed {
		changed = n.forget(time.Now().Add(-addressKept)) || changed
	}
	if changed {
		n.changed()
	}
}

// forget drops the addresses that were last seen before a time, and reports whether there were
// any.
func (n *needs) forget(before time.Time) (forgot bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for a, s := range n.seen {
		if !s.last.IsZero() && s.last.Before(before) {
			delete(n.seen, a)
			forgot = true
		}
	}
	return forgot
}

func addrsOf(all []host.Need) []netip.Addr {
	addrs := make([]netip.Addr, 0, len(all))
	for _, n := range all {
		addrs = append(addrs, n.Addr)
	}
	return addrs
}

// wanted returns the addresses that this host needs, wherever they lie.
func (d *daemon) wanted() []host.Need {
	return append(d.needs.wanted(), host.Need{Addr: d.publicIP(), What: "this host's public IP"})
}

// needed is a subnet.Options.Needed.
func (d *daemon) needed(subnet netip.Prefix) string {
	contains := func(n host.Need) bool { return subnet.Contains(n.Addr) }
	if !slices.ContainsFunc(d.atStart, contains) && !slices.ContainsFunc(d.wanted(), contains) {
		return "" // which spares nearly everybody reading the facts
	}
	f, err := d.readFacts()
	if err != nil {
		return "" // whoever needs them says so
	}
	for _, n := range f.Needs {
		if n.TakenBy(subnet) {
			return fmt.Sprintf("%s is %s", n.Addr, n.What)
		}
	}
	return ""
}

// nameServers returns the name servers of this host that may be other hosts. Where
// systemd-resolved asks them, it has a file of its own.
func nameServers() (servers []host.Need) {
	for _, path := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if servers = parseNameServers(string(text)); len(servers) > 0 {
			break
		}
	}
	return servers
}

// parseNameServers reads a file in the form of resolv.conf(5).
func parseNameServers(text string) (servers []host.Need) {
	for line := range strings.Lines(text) {
		w := strings.Fields(line)
		if len(w) < 2 || w[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(w[1]); err == nil && !a.IsLoopback() && !a.IsUnspecified() {
			servers = append(servers, host.Need{Addr: a.Unmap().WithZone(""), What: "a name server"})
		}
	}
	return servers
}
