package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"flanneld/pkg/lab/netns"
)

// netnsDir is the directory in which ip(8) finds named network namespaces.
const netnsDir = "/run/netns"

// A Namespace is a network namespace with a name in /run/netns, so that "ip netns exec" and
// nsenter(1) find it too.
type Namespace struct {
	*netns.Namespace
	Name string
}

// shareNetnsDir makes /run/netns a shared mount point, as ip(8) does with its first namespace. If
// ip did it later, it would cover the namespaces of a lab, whose files could then not be removed.
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

// createNamespace creates a network namespace.
func createNamespace(name string) (*Namespace, error) {
	n := &Namespace{Name: name}
	mountpoint, err := os.OpenFile(n.Path(), os.O_RDONLY|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC, 0o444)
	if err != nil {
		return nil, fmt.Errorf("create network namespace %s: %w", name, err)
	}
	mountpoint.Close()
	if n.Namespace, err = netns.Make(); err == nil {
		err = n.WithFD(func(fd int) error {
			return unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), n.Path(), "none", unix.MS_BIND, "")
		})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create network namespace %s: %w", name, err), n.remove())
	}
	return n, nil
}

// Path returns the file of the namespace, for nsenter --net=.
func (n *Namespace) Path() string { return filepath.Join(netnsDir, n.Name) }

// forward turns on forwarding in the namespace.
func (n *Namespace) forward() error {
	return n.Do(func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
			return fmt.Errorf("enable forwarding in %s: %w", n.Name, err)
		}
		return nil
	})
}

// Shell runs a shell script inside the namespace with additional environment variables, and returns
// what it writes to stdout. An error has all output.
func (n *Namespace) Shell(ctx context.Context, script string, env ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "sh", "-c", script)
	cmd.Env = append(os.Environ(), env...)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	err := n.Do(cmd.Run)
	if err != nil {
		err = fmt.Errorf("run in %s: %w: %s%s\n%s", n.Name, err, &out, &complaints, script)
	}
	return out.String(), err
}

// configure calls fn with a netlink handle whose sockets are inside the namespace.
func (n *Namespace) configure(fn func(h *netlink.Handle) error) error {
	var handle *netlink.Handle
	err := n.Do(func() (err error) {
		handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return fmt.Errorf("open netlink in %s: %w", n.Name, err)
	}
	defer handle.Close()
	return fn(handle)
}

// remove closes the namespace and removes its name. The kernel frees it after its last socket and
// process.
func (n *Namespace) remove() error {
	if n.Namespace != nil {
		n.Close()
	}
	return removeNetnsFile(n.Path())
}

// removeNetnsFile removes every bind mount on path and deletes the file. A missing file is no
// error.
func removeNetnsFile(path string) error {
	for unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}

// netnsFiles returns the paths in /run/netns whose names start with prefix.
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
