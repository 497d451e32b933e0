package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where ip(8) looks for named network namespaces.
const netnsDir = "/run/netns"

// A Namespace is a network namespace with a name under /run/netns, so that "ip netns exec" and nsenter(1) find it too.
type Namespace struct {
	Name string
	file *os.File
}

// shareNetnsDir makes /run/netns a mount point of its own, as ip(8) does with its first namespace. Were ip to do it later, it
// would cover the namespaces of a lab, whose files could then not be removed.
func shareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("create %s: %w", netnsDir, err)
	}
	err := unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) {
		err = errors.Join(
			unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""),
			unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, ""))
	}
	if err != nil {
		return fmt.Errorf("mount %s: %w", netnsDir, err)
	}
	return nil
}

// createNamespace makes a network namespace with its loopback device up.
func createNamespace(name string) (*Namespace, error) {
	n := &Namespace{Name: name}
	mountpoint, err := os.OpenFile(n.Path(), os.O_RDONLY|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC, 0o444)
	if err != nil {
		return nil, fmt.Errorf("create network namespace %s: %w", name, err)
	}
	mountpoint.Close()

	made := make(chan error)
	go func() {
		// Never unlocked: the thread has left its namespace and ends with this goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- err
			return
		}
		made <- unix.Mount("/proc/thread-self/ns/net", n.Path(), "none", unix.MS_BIND, "")
	}()
	if err = <-made; err == nil {
		n.file, err = os.Open(n.Path())
	}
	if err == nil {
		err = n.configure(func(h *netlink.Handle) error { return setUp(h, "lo") })
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create network namespace %s: %w", name, err), n.remove())
	}
	return n, nil
}

// Path is the file that stands for the namespace, for nsenter --net=.
func (n *Namespace) Path() string { return filepath.Join(netnsDir, n.Name) }

// Do runs fn on a thread that is inside the namespace and brings the thread back afterwards, also when fn ends the
// goroutine (as t.Fatal does). Goroutines that fn starts are outside the namespace. A socket stays in the namespace it
// was created in: create it in fn, use it anywhere.
func (n *Namespace) Do(fn func() error) (err error) {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open the network namespace of this thread: %w", err)
	}
	defer unix.Close(home)
	if err := n.withFD(func(fd int) error { return unix.Setns(fd, unix.CLONE_NEWNET) }); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", n.Name, err)
	}
	defer func() {
		if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
			// Not unlocked: no other goroutine may get this thread, it ends with the present one.
			err = errors.Join(err, fmt.Errorf("leave network namespace %s: %w", n.Name, back))
			return
		}
		runtime.UnlockOSThread()
	}()
	return fn()
}

// DialContext connects from inside the namespace. The host part of address must be an IP literal: a name would be
// looked up by goroutines outside the namespace.
func (n *Namespace) DialContext(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = n.Do(func() error {
		var dialer net.Dialer
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens inside the namespace. The host part of address must be an IP literal.
func (n *Namespace) Listen(ctx context.Context, network, address string) (listener net.Listener, err error) {
	err = n.Do(func() error {
		var config net.ListenConfig
		config.SetMultipathTCP(false) // plain TCP: throughput is compared between runs
		listener, err = config.Listen(ctx, network, address)
		return err
	})
	return listener, err
}

// forward makes the namespace a router.
func (n *Namespace) forward() error {
	return n.Do(func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
			return fmt.Errorf("enable forwarding in %s: %w", n.Name, err)
		}
		return nil
	})
}

// shell runs a shell script inside the namespace, with further variables in its environment.
func (n *Namespace) shell(ctx context.Context, script string, env ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "sh", "-ec", script)
	cmd.Env = append(os.Environ(), env...)
	var out []byte
	err := n.Do(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		return "", fmt.Errorf("run in %s: %w: %s\n%s", n.Name, err, out, script)
	}
	return string(out), nil
}

// configure runs fn with a netlink handle whose sockets are inside the namespace.
func (n *Namespace) configure(fn func(h *netlink.Handle) error) error {
	var handle *netlink.Handle
	err := n.withFD(func(fd int) (err error) {
		handle, err = netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return fmt.Errorf("open netlink in %s: %w", n.Name, err)
	}
	defer handle.Close()
	return fn(handle)
}

// withFD runs fn with the namespace's descriptor, which cannot be closed (and its number reused) meanwhile.
func (n *Namespace) withFD(fn func(fd int) error) error {
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

// remove closes the namespace and takes its name away. The kernel frees it when the last socket and process in it end.
func (n *Namespace) remove() error {
	if n.file != nil {
		n.file.Close()
	}
	return removeNetnsFile(n.Path())
}

// removeNetnsFile undoes every bind mount on path and deletes the file; a missing file is no error.
func removeNetnsFile(path string) error {
	for unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}

// netnsFiles lists the paths under /run/netns whose names start with prefix.
func netnsFiles(prefix string) ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var paths []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			paths = append(paths, filepath.Join(netnsDir, e.Name()))
		}
	}
	return paths, nil
}
