// Package kernel reads, changes and watches the kernel's network objects over rtnetlink(7): links,
// addresses, FDB entries, neighbours, nexthops, routes, and sysctls below /proc/sys/net.
//
// It makes no decisions: package dataplane defines what is wanted and what is ours. It does not
// log, retry or poll. Everything happens in the network namespace of the thread that called New,
// for calls from any goroutine. Invariants: a Snapshot contains only the result of a complete
// reading; Apply makes only the changes of its operations; Watch may report too much but never too
// little: every lasting difference between the kernel and what its reader has read is announced by
// an event.
package kernel

import (
	"errors"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/netlink"
)

// Kernel accesses the network stack of one network namespace. Its methods may be called from any
// goroutine.
type Kernel struct {
	ns   *netlink.Namespace
	conn *netlink.Conn

	noNextHops  atomic.Bool // the kernel does not support nexthop objects
	onlyOwnHops atomic.Bool // in the last Snapshot, all nexthops of routes were in the scope's range
	fdbCache    fdbCache
}

// New opens the network namespace of the calling thread.
func New() (*Kernel, error) {
	ns, err := netlink.CurrentNamespace()
	if err != nil {
		return nil, err
	}
	c, err := ns.Dial(unix.NETLINK_ROUTE, netlink.RequestBuffer)
	if err != nil {
		ns.Close()
		return nil, err
	}
	return &Kernel{ns: ns, conn: c, fdbCache: fdbCache{links: map[int]map[dataplane.MAC]netip.Addr{}}}, nil
}

// Close closes the sockets. A Watch ends with its context.
func (k *Kernel) Close() error {
	return errors.Join(k.conn.Close(), k.ns.Close())
}
