package machine

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// bridge is the bridge in the lab's fabric that hosts are connected to.
const bridge = "rack1"

func namespacePath(name string) string { return "/run/netns/" + name }

// plug creates the host's network namespace, as at every boot, with a NIC that has no address and
// always the same MAC.
func (m *Machine) plug(ctx context.Context) error {
	// Remove the old NIC first: the kernel takes time to remove a namespace.
	exec.CommandContext(ctx, "ip", "-n", m.fabric, "link", "del", m.Name).Run()
	exec.CommandContext(ctx, "ip", "netns", "del", m.id).Run()
	for _, line := range []string{
		"netns add " + m.id,
		fmt.Sprintf("-n %s link add %s type veth peer name eth0 address %s netns %s", m.fabric, m.Name, m.mac(), m.id),
		fmt.Sprintf("-n %s link set %s master %s up", m.fabric, m.Name, bridge),
	} {
		if _, err := command(exec.CommandContext(ctx, "ip", strings.Fields(line)...)); err != nil {
			return err
		}
	}
	return nil
}

func (m *Machine) mac() string {
	a := m.Addr.Addr().As4()
	return fmt.Sprintf("02:00:%02x:%02x:%02x:%02x", a[0], a[1], a[2], a[3])
}

// networkd is the host's own configuration of its NIC.
func (m *Machine) networkd() string {
	return fmt.Sprintf("[Match]\nName=eth0\n[Network]\nAddress=%s\nGateway=%s\nIPv6AcceptRA=no\nLinkLocalAddressing=no\n",
		m.Addr, m.Addr.Masked().Addr().Next())
}
