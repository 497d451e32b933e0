// Package needs knows which addresses this host must reach without the overlay, because the
// overlay depends on them: those of etcd, and, as far as that can be told, of name servers. At the
// start it has no route of an earlier run in the way to them.
//
// What a route would take away is for package host, and how to keep routes from that for package
// backend. Invariant: no answer of a name server makes it remember without bound.
package needs

import (
	"context"
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
	// lookupInterval is the time between two looks at which addresses the names of etcd have.
	lookupInterval = time.Minute
	lookupTimeout  = 5 * time.Second
	// addressTTL is how long an address counts that its name no longer has: a name may have
	// a few of many addresses in each answer, and connections outlive it.
	addressTTL = 10 * time.Minute
	// maxAddresses bounds what name servers can make this host remember.
	maxAddresses = 256
)

// Etcd are the addresses of etcd: all that its endpoints' names have, and those that were
// connected to, which may be a proxy's. Its methods may be called by several goroutines.
type Etcd struct {
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

// NewEtcd returns the addresses that are known from the options alone. changed is called, by
// whoever brings the news, when an address has come or gone later.
func NewEtcd(o etcd.Options, changed func()) *Etcd {
	n := &Etcd{what: "an address of etcd", names: map[string]string{}, changed: changed, seen: map[netip.Addr]seen{}}
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
func (n *Etcd) add(name, what string) {
	if a, err := netip.ParseAddr(name); err == nil {
		n.record(a, what, time.Time{})
	} else {
		n.names[name] = what
	}
}

// Connecting is told of an address that is about to be connected to.
func (n *Etcd) Connecting(a netip.Addr) {
	if n.record(a, n.what, time.Now()) {
		n.changed()
	}
}

// record notes an address and reports whether it is new. This host reaches itself whatever the
// routes say.
func (n *Etcd) record(a netip.Addr, what string, at time.Time) bool {
	a = a.Unmap().WithZone("")
	if a.IsLoopback() || a.IsUnspecified() {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	s, known := n.seen[a]
	switch {
	case !known && len(n.seen) < maxAddresses:
		n.seen[a] = seen{what, at}
		return true
	case known && !s.last.IsZero():
		n.seen[a] = seen{s.what, at}
	}
	return false
}

// Needs returns the addresses, in order.
func (n *Etcd) Needs() []host.Need {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make([]host.Need, 0, len(n.seen)+1)
	for a, s := range n.seen {
		all = append(all, host.Need{Addr: a, What: s.what})
	}
	slices.SortFunc(all, func(a, b host.Need) int { return a.Addr.Compare(b.Addr) })
	return all
}

// Named reports whether there are names to look up.
func (n *Etcd) Named() bool { return len(n.names) > 0 }

// Run looks the names up, now and then, until ctx ends.
func (n *Etcd) Run(ctx context.Context) {
	if !n.Named() {
		return
	}
	for {
		if n.lookup(ctx); pace.Sleep(ctx, lookupInterval) != nil {
			return
		}
	}
}

// lookup takes what the names have now. As long as one of them cannot be looked up, nothing
// is forgotten.
func (n *Etcd) lookup(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	changed, failed := false, false
	for name, what := range n.names {
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		failed = failed || err != nil
		for _, a := range addrs {
			changed = n.record(a, what, time.Now()) || changed
		}
	}
	if !failed {
		changed = n.expire(time.Now().Add(-addressTTL)) || changed
	}
	if changed {
		n.changed()
	}
}

// expire drops the addresses that were last seen before a time, and reports whether there were
// any.
func (n *Etcd) expire(before time.Time) (forgot bool) {
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

// Addrs returns the addresses of needs.
func Addrs(all []host.Need) []netip.Addr {
	addrs := make([]netip.Addr, 0, len(all))
	for _, n := range all {
		addrs = append(addrs, n.Addr)
	}
	return addrs
}

// NameServers returns the name servers of this host that may be other hosts. Where
// systemd-resolved asks them, it has a file of its own.
func NameServers() (servers []host.Need) {
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
