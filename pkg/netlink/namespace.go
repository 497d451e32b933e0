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

const currentNamespace = "/proc/thread-self/ns/net" // of the calling thread

// CurrentNamespace opens the network namespace of the calling thread.
func CurrentNamespace() (*Namespace, error) {
	f, err := os.Open(currentNamespace)
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
	err = n.Do(func() error {
		s, size, err := openSocket(protocol, receiveBuffer)
		if err != nil {
			return fmt.Errorf("open netlink socket: %w", err)
		}
		c = &Conn{socket: s, transport: s, batch: min(max(size/ackSize, 1), maxBatch)}
		return nil
	})
	return c, err
}

// Do runs f on a thread in the namespace, on which new sockets and /proc/sys/net depend. (An open
// descriptor of /proc/sys/net does not refer to the namespace it was opened in.)
func (n *Namespace) Do(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	current, errA := os.Stat(currentNamespace)
	own, errB := n.file.Stat()
	if err := errors.Join(errA, errB); err != nil {
		return fmt.Errorf("compare network namespaces: %w", err)
	}
	if os.SameFile(current, own) { // setns needs CAP_SYS_ADMIN, which a daemon may lack
		return f()
	}
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
