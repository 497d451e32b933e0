package netlink

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace (network_namespaces(7)). It exists at least until it is closed.
type Namespace struct{ file *os.File }

// CurrentNamespace opens the network namespace of the calling thread.
func CurrentNamespace() (*Namespace, error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	return &Namespace{f}, nil
}

// Close releases the namespace. Sockets that were opened in it stay there.
func (n *Namespace) Close() error { return n.file.Close() }

// Dial opens a socket of a protocol (unix.NETLINK_ROUTE, …) in the namespace, with a receive buffer
// of the given size in bytes.
func (n *Namespace) Dial(protocol, receiveBuffer int) (c *Conn, err error) {
	err = n.Do(func() (err error) {
		c, err = dial(protocol, receiveBuffer)
		return err
	})
	return c, err
}

// Do runs f on a thread in the namespace, on which new sockets and /proc/sys/net depend. (An open
// descriptor of /proc/sys/net does not refer to the namespace it was opened in.)
func (n *Namespace) Do(f func() error) error {
	runtime.LockOSThread()
	here, err := n.isCurrent()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	if here { // setns needs CAP_SYS_ADMIN, which a daemon may lack
		defer runtime.UnlockOSThread()
		return f()
	}
	runtime.UnlockOSThread()
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine, so that no other goroutine runs in
		// the namespace.
		runtime.LockOSThread()
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// isCurrent reports whether the calling thread is in the namespace.
func (n *Namespace) isCurrent() (bool, error) {
	current, err := CurrentNamespace()
	if err != nil {
		return false, err
	}
	defer current.Close()
	a, errA := current.file.Stat()
	b, errB := n.file.Stat()
	if err := errors.Join(errA, errB); err != nil {
		return false, fmt.Errorf("compare network namespaces: %w", err)
	}
	return os.SameFile(a, b), nil
}
