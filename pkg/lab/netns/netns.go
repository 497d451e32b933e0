// Package netns creates network namespaces for tests and runs code in them. Only single threads
// leave the namespace of the process; they return or end.
package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// A Namespace is a network namespace that exists until it is closed and nothing is left in it.
type Namespace struct{ file *os.File }

// Make creates a network namespace with its loopback device up.
func Make() (*Namespace, error) {
	type result struct {
		n   *Namespace
		err error
	}
	made := make(chan result)
	go func() {
		// Not unlocked: the thread is in the new namespace and must end with this goroutine.
		runtime.LockOSThread()
		n, err := leave()
		made <- result{n, err}
	}()
	r := <-made
	if r.err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", r.err)
	}
	return r.n, nil
}

// First returns the network namespace of the machine's first process.
func First() (*Namespace, error) {
	file, err := os.Open("/proc/1/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open the first network namespace: %w", err)
	}
	return &Namespace{file}, nil
}

// leave moves the calling thread to a new namespace.
func leave() (*Namespace, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	if err := loopbackUp(); err != nil {
		return nil, fmt.Errorf("set lo up: %w", err)
	}
	file, err := os.Open("/proc/thread-self/ns/net")
	return &Namespace{file}, err
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, lo); err != nil {
		return err
	}
	lo.SetUint16(lo.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// New creates a namespace for one test. It skips the test if that is not possible.
func New(t testing.TB) *Namespace {
	t.Helper()
	needRoot(t)
	n, err := Make()
	if err != nil {
		t.Skipf("needs root: %v", err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
}

// Enter creates a namespace and moves the calling goroutine to it. Its thread ends with the
// goroutine.
func Enter(t testing.TB) *Namespace {
	t.Helper()
	needRoot(t)
	runtime.LockOSThread() // never unlocked
	n, err := leave()
	if err != nil {
		t.Skipf("needs root: cannot make a network namespace: %v", err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// Do runs fn on a thread that is inside the namespace and moves the thread back afterwards, also if
// fn ends the goroutine (as t.Fatal does). Goroutines that fn starts are outside the namespace. A
// socket stays in the namespace in which it was created: create it in fn, use it anywhere.
func (n *Namespace) Do(fn func() error) (err error) {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open the network namespace of this thread: %w", err)
	}
	defer unix.Close(home)
	if err := n.WithFD(func(fd int) error { return unix.Setns(fd, unix.CLONE_NEWNET) }); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", n.file.Name(), err)
	}
	defer func() {
		if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
			// Not unlocked: no other goroutine may use this thread. It ends with the present one.
			err = errors.Join(err, fmt.Errorf("leave network namespace %s: %w", n.file.Name(), back))
			return
		}
		runtime.UnlockOSThread()
	}()
	return fn()
}

// WithFD calls fn with the namespace's descriptor, which cannot be closed (and its number reused)
// meanwhile.
func (n *Namespace) WithFD(fn func(fd int) error) error {
	raw, err := n.file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = fn(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// Close closes the namespace.
func (n *Namespace) Close() error { return n.file.Close() }

// DialContext connects from inside the namespace. The host in address must be an IP literal: a name
// would be resolved by goroutines outside the namespace.
func (n *Namespace) DialContext(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = n.Do(func() error {
		var dialer net.Dialer
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens inside the namespace. The host in address must be an IP literal.
func (n *Namespace) Listen(ctx context.Context, network, address string) (listener net.Listener, err error) {
	err = n.Do(func() error {
		var config net.ListenConfig
		config.SetMultipathTCP(false) // plain TCP: throughput is compared between runs
		listener, err = config.Listen(ctx, network, address)
		return err
	})
	return listener, err
}
