// Package needs determines which addresses this host must reach without the overlay, because the
// overlay depends on them: those of etcd and, as far as known, of name servers. At the start it
// removes stale routes to them.
//
// Which routes would hide an address is defined by package host, and how to avoid such routes by
// package backend. Invariant: it remembers a limited number of addresses, whatever name servers
// answer.
package needs

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"flanneld/pkg/host"
	"flanneld/pkg/pace"
	"flanneld/pkg/registry/etcd"
)

const (
	// lookupInterval is the time between two lookups of etcd's names.
	lookupInterval = time.Minute
	lookupTimeout  = 5 * time.Second
	// addressTTL is how long an address is kept that its name no longer has: an answer may contain
	// a few of many addresses, and connections outlive it.
	addressTTL = 10 * time.Minute
	// maxAddresses limits the number of addresses that are remembered.
	maxAddresses = 256
)

// Etcd tracks the addresses of etcd: those of its endpoints' names, and those of connections, which
// may lead to a proxy. Its methods may be called by several goroutines.
type Etcd struct {
	what    string            // description of addresses of connections
	names   map[string]string // descriptions of host names to look up
	changed func()            // called when an address is added or removed

	mu   sync.Mutex
	seen map[netip.Addr]seen
}

type seen struct {
	what string
	last time.Time // zero if the endpoint is an address
}

// NewEtcd returns an Etcd with the addresses in the options. changed is called whenever an address
// is added or removed later. It must not block or call the Etcd.
func NewEtcd(o etcd.Options, changed func()) *Etcd {
	n := &Etcd{what: "an address of etcd", names: map[string]string{}, changed: func() {}, seen: map[netip.Addr]seen{}}
	defer func() { n.changed = changed }()
	endpoints, err := o.ParseEndpoints()
	if err != nil {
		return n // opening the store reports the error
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

// add adds a host by name or address.
func (n *Etcd) add(name, what string) {
	if a, err := netip.ParseAddr(name); err == nil {
		n.record(a, what, time.Time{})
	} else {
		n.names[name] = what
	}
}

// Connecting records an address before a connection to it.
func (n *Etcd) Connecting(a netip.Addr) { n.record(a, n.what, time.Now()) }

// record records an address. It ignores addresses of this host itself, which do not depend on
// routes.
func (n *Etcd) record(a netip.Addr, what string, at time.Time) {
	a = a.Unmap().WithZone("")
	if a.IsLoopback() || a.IsUnspecified() {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	s, known := n.seen[a]
	switch {
	case !known && len(n.seen) < maxAddresses:
		n.seen[a] = seen{what, at}
		n.changed()
	case known && !s.last.IsZero():
		n.seen[a] = seen{s.what, at}
	}
}

// Needs returns the addresses, sorted.
func (n *Etcd) Needs() []host.Need {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make([]host.Need, 0, len(n.seen)+1)
	for a, s := range n.seen {
		all = append(all, host.Need{Addr: a, What: s.what})
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Addr.Less(all[j].Addr) })
	return all
}

// Named reports whether there are names to look up.
func (n *Etcd) Named() bool { return len(n.names) > 0 }

// Run looks up the names periodically until ctx ends.
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

// lookup looks up the names. If one of the lookups fails, no address expires.
func (n *Etcd) lookup(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	failed := false
	for name, what := range n.names {
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		failed = failed || err != nil
		for _, a := range addrs {
			n.record(a, what, time.Now())
		}
	}
	if !failed {
		n.expire(time.Now().Add(-addressTTL))
	}
}

// expire removes addresses that were last seen before a time.
func (n *Etcd) expire(before time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for a, s := range n.seen {
		if !s.last.IsZero() && s.last.Before(before) {
			delete(n.seen, a)
			n.changed()
		}
	}
}

// Addrs returns the addresses of needs.
func Addrs(all []host.Need) []netip.Addr {
	addrs := make([]netip.Addr, 0, len(all))
	for _, n := range all {
		addrs = append(addrs, n.Addr)
	}
	return addrs
}

// NameServers returns the name servers of this host that may be other hosts. systemd-resolved lists
// its upstream servers in a separate file.
func NameServers() (servers []host.Need) {
	for _, path := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		text, _ := os.ReadFile(path)
		if servers = parseNameServers(string(text)); len(servers) > 0 {
			break
		}
	}
	return servers
}

// parseNameServers parses a file in the format of resolv.conf(5).
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
