package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"flanneld/pkg/lab"
)

// A Machine is a running host.
type Machine struct {
	Name string
	Addr netip.Prefix // address of eth0, with the prefix length of the fabric's network

	id     string // name of its network namespace and its cgroup; the lab removes both
	fabric string
	root   string // root file system, never written to
	dir    string // directory for what it writes
	holder *lab.Host
	boot   *lab.Process // systemd-nspawn
	init   int          // its PID 1, as a PID of this machine
}

// Options are the options of a Machine.
type Options struct {
	Name   string
	Addr   netip.Prefix // on the fabric; the first address of the network is the router
	Root   string       // a directory from Root or RootOf
	Lab    *lab.Lab     // closing the lab removes the machine
	Holder *lab.Host    // any host of the lab, on which the machine's process is started
}

// restart is the exit code of nspawn when the host reboots.
const restart = 133

// New boots a host and waits until all its services have started.
func New(ctx context.Context, o Options) (*Machine, error) {
	fabric := o.Lab.Fabric.Name
	m := &Machine{
		Name: o.Name, Addr: o.Addr, fabric: fabric, root: o.Root, holder: o.Holder,
		id:  strings.TrimSuffix(fabric, "fabric") + o.Name,
		dir: filepath.Join(o.Lab.Dir, o.Name),
	}
	if err := m.makeDisk(); err != nil {
		return nil, fmt.Errorf("make the disk of %s: %w", m.Name, err)
	}
	if err := sweep(ctx); err != nil {
		return nil, fmt.Errorf("remove what a dead lab left: %w", err)
	}
	return m, m.start(ctx)
}

// makeDisk creates the writable part of the disk as an installer leaves it: with a host name and a
// network config.
func (m *Machine) makeDisk() error {
	for _, dir := range []string{
		"work", "merged", "docker", "up/etc/systemd/network",
		"up/etc/systemd/system/multi-user.target.wants", "up/etc/systemd/system/network-online.target.wants",
	} {
		if err := os.MkdirAll(filepath.Join(m.dir, dir), 0o755); err != nil {
			return err
		}
	}
	etc := filepath.Join(m.dir, "up/etc")
	for name, text := range map[string]string{
		"systemd/network/eth0.network": m.networkd(),
		"hostname":                     m.Name + "\n",
		"machine-id":                   fmt.Sprintf("%032x\n", m.Addr.Addr().As4()),
	} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for wanted, service := range map[string]string{
		"multi-user.target.wants":     "systemd-networkd.service",
		"network-online.target.wants": "systemd-networkd-wait-online.service",
	} {
		if err := os.Symlink("/lib/systemd/system/"+service, filepath.Join(etc, "systemd/system", wanted, service)); err != nil {
			return err
		}
	}
	return nil
}

// script starts systemd-nspawn as PID 1 of a PID namespace, so that all processes end with their
// parent. Docker needs cgroup v2 with its own cgroup as the root; and since the kernel does not
// allow an overlay over an overlay, docker gets a bind mount.
const script = `
mkdir -p "$CGROUP"
echo $$ >"$CGROUP/cgroup.procs"
exec unshare --mount --propagation private --pid --fork --kill-child=KILL --mount-proc sh -euc '
	mount -t overlay overlay -o "lowerdir=$ROOT,upperdir=$DIR/up,workdir=$DIR/work" "$DIR/merged"
	exec systemd-nspawn --quiet --directory="$DIR/merged" --machine="$ID" --hostname="$NAME" --boot --notify-ready=yes \
		--register=no --keep-unit --network-namespace-path="$NETNS" \
		--capability=all --system-call-filter="@keyring bpf" --bind=/dev/net/tun --bind="$DIR/docker:/var/lib/docker" \
		--console=pipe --resolv-conf=off --timezone=off --link-journal=no'
`

func (m *Machine) start(ctx context.Context) error {
	if err := m.plug(ctx); err != nil {
		return err
	}
	cgroups, err := cgroups()
	if err != nil {
		return err
	}
	m.boot, err = m.holder.Run(lab.Command{Path: "/bin/sh", Args: []string{"-euc", script}, Env: []string{
		"CGROUP=" + filepath.Join(cgroups[0], m.id), "ID=" + m.id, "NAME=" + m.Name,
		"NETNS=" + namespacePath(m.id), "DIR=" + m.dir, "ROOT=" + m.root,
		"UNIFIED_CGROUP_HIERARCHY=1", "SYSTEMD_NSPAWN_API_VFS_WRITABLE=network",
	}})
	if err != nil {
		return err
	}
	if err := m.boot.WaitReady(ctx); err != nil {
		return fmt.Errorf("boot %s: %w", m.Name, err)
	}
	nspawn, err := child(m.boot.PID())
	if err == nil {
		m.init, err = child(nspawn)
	}
	if err != nil {
		return fmt.Errorf("find PID 1 of %s: %w", m.Name, err)
	}
	return nil
}

// child returns the only child of a process.
func child(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// Run runs a shell script on the host and returns its standard output.
func (m *Machine) Run(ctx context.Context, script string) (string, error) {
	return m.Feed(ctx, nil, script)
}

// Feed is Run with a standard input.
func (m *Machine) Feed(ctx context.Context, in io.Reader, script string) (string, error) {
	cmd := exec.CommandContext(ctx, "nsenter", "--all", "--target", strconv.Itoa(m.init), "env", "-i", "HOME=/root",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-euc", script)
	cmd.Stdin = in
	cmd.WaitDelay = time.Second // background processes of the script may keep its output open
	out, err := command(cmd)
	if err != nil {
		return out, fmt.Errorf("on %s: %w", m.Name, err)
	}
	return strings.TrimSpace(out), nil
}

// Reboot shuts the host down and boots it again with its disk and a new network namespace.
func (m *Machine) Reboot(ctx context.Context) error {
	if _, err := m.Run(ctx, "systemctl reboot"); err != nil {
		return err
	}
	switch code, err := m.boot.Wait(ctx); {
	case err != nil:
		return fmt.Errorf("reboot %s: %w", m.Name, err)
	case code != restart:
		return fmt.Errorf("reboot %s: it ended with code %d:\n%s", m.Name, code, m.boot.Logs())
	}
	return m.start(ctx)
}

// Close kills the host at once, as a loss of power does. The lab removes its files.
func (m *Machine) Close(ctx context.Context) error {
	var errs []error
	if m.boot != nil {
		errs = append(errs, m.boot.Kill(ctx))
	}
	return errors.Join(append(errs, removeCgroups(ctx, m.id), removePropagate(m.id))...)
}
