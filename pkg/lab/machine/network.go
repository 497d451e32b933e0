package machine

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// bridge is the lab's, in its fabric, that hosts are plugged into.
const bridge = "rack1"

func namespacePath(name string) string { return "/run/netns/" + name }

// plug makes the host's network namespace anew, as at every boot: nothing but the NIC, without an address, which keeps
// its MAC.
func (m *Machine) plug(ctx context.Context) error {
	// The old NIC goes first: the kernel takes its time to end a namespace.
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
