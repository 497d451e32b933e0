// Package kernel reads, changes and watches the kernel's network objects over
// rtnetlink(7): links, addresses, FDB entries, neighbours, nexthops, routes, and sysctls
// below /proc/sys/net.
//
// It decides nothing: what is wanted and what is ours is for package dataplane.
// It does not log, retry or poll. Everything happens in the network namespace
// of the thread that called New, whichever goroutine calls later. Invariants:
// Snapshot tells nothing that a complete reading did not contain; Apply does to
// the kernel what its operations say and nothing else; Watch may report too
// much, never too little: there is no lasting difference between the kernel and
// what its reader knows that no event tells of.
package kernel

import (
	"errors"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"flanneld/pkg/netlink"
)

// Kernel is the network stack of one network namespace. Its methods may be
// called from any goroutine.
type Kernel struct {
	ns   *netlink.Namespace
	conn *netlink.Conn

	noNextHops  atomic.Bool // the kernel has said that it has none
	onlyOwnHops atomic.Bool // in the last Snapshot, no route went through a nexthop out of the scope's range
	fdbCache    fdbCache
}

// New gives access to the network namespace of the calling thread.
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
	return &Kernel{ns: ns, conn: c}, nil
}

// Close frees the sockets. A Watch ends with its context.
func (k *Kernel) Close() error {
	return errors.Join(k.conn.Close(), k.ns.Close())
}
