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
	"fmt"
	"os"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Kernel is the network stack of one network namespace. Its methods may be
// called from any goroutine.
type Kernel struct {
	ns   *os.File
	conn *conn

	noNextHops atomic.Bool // the kernel has said that it has none
	ownHops    atomic.Bool // in the last Snapshot, no route went through a nexthop out of the scope's range
	forwarding forwarding
}

// New gives access to the network namespace of the calling thread.
func New() (*Kernel, error) {
	ns, err := namespace()
	if err != nil {
		return nil, err
	}
	c, err := dial(requestBuffer)
	if err != nil {
		ns.Close()
		return nil, err
	}
	return &Kernel{ns: ns, conn: c}, nil
}

// Close frees the sockets. A Watch ends with its context.
func (k *Kernel) Close() error {
	return errors.Join(k.conn.close(), k.ns.Close())
}

// namespace opens the network namespace of the calling thread
// (network_namespaces(7)).
func namespace() (*os.File, error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	return f, nil
}

func sameFile(a, b *os.File) bool {
	x, errX := a.Stat()
	y, errY := b.Stat()
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// within runs f on a thread that is in the namespace of k: new sockets and
// /proc/sys/net follow the calling thread. (A descriptor of /proc/sys/net does
// not keep the namespace that it was opened in.)
func (k *Kernel) within(f func() error) error {
	runtime.LockOSThread()
	here, err := namespace()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	same := sameFile(here, k.ns)
	here.Close()
	if same {
		defer runtime.UnlockOSThread()
		return f()
	}
	runtime.UnlockOSThread()
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine, so that nothing
		// else ever runs in a namespace it does not expect.
		runtime.LockOSThread()
		if err := unix.Setns(int(k.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
