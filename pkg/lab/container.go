package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
)

const dockerBridge = "docker0"

// A Container is a namespace behind the docker0 bridge of its host.
type Container struct {
	Endpoint
	Host *Host
	MTU  int
}

// SubnetEnv is what a container runtime reads from flanneld's subnet file.
type SubnetEnv struct {
	Network netip.Prefix // FLANNEL_NETWORK
	Subnet  netip.Prefix // FLANNEL_SUBNET: the bridge's address with the subnet's length
	MTU     int          // FLANNEL_MTU
	IPMasq  bool         // FLANNEL_IPMASQ
}

// ReadSubnet reads the host's subnet file.
func (h *Host) ReadSubnet() (SubnetEnv, error) {
	text, err := os.ReadFile(h.SubnetFile)
	if err != nil {
		return SubnetEnv{}, fmt.Errorf("read subnet file: %w", err)
	}
	values := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[key] = value
	}
	var env SubnetEnv
	var errs [4]error
	env.Network, errs[0] = netip.ParsePrefix(values["FLANNEL_NETWORK"])
	env.Subnet, errs[1] = netip.ParsePrefix(values["FLANNEL_SUBNET"])
	env.MTU, errs[2] = strconv.Atoi(values["FLANNEL_MTU"])
	env.IPMasq, errs[3] = strconv.ParseBool(values["FLANNEL_IPMASQ"])
	if err := errors.Join(errs[:]...); err != nil {
		return env, fmt.Errorf("parse subnet file %s: %w", h.SubnetFile, err)
	}
	return env, nil
}

// AddContainer adds a container with the subnet and MTU that the host's subnet file tells.
func (h *Host) AddContainer() (*Container, error) {
	env, err := h.ReadSubnet()
	if err != nil {
		return nil, err
	}
	return h.AddContainerIn(env.Subnet, env.MTU)
}

// AddContainerIn adds a container with the next free address after bridge's, which is given to docker0 with the length
// of the subnet. When the subnet is not that of the last call, the bridge is renumbered, as by a restart of docker.
func (h *Host) AddContainerIn(bridge netip.Prefix, mtu int) (*Container, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := len(h.containers) + 1
	addr := netip.PrefixFrom(offset(bridge.Addr(), n), bridge.Bits())
	if !bridge.Masked().Contains(offset(addr.Addr(), 1)) {
		return nil, fmt.Errorf("add container %d: %s is full", n, bridge.Masked())
	}
	if err := h.NS.configure(func(host *netlink.Handle) error { return ensureDocker(host, bridge, mtu) }); err != nil {
		return nil, err
	}
	c := &Container{Endpoint: Endpoint{Name: fmt.Sprintf("%sc%d", h.Name, n), Addr: addr.Addr(), lab: h.lab}, Host: h, MTU: mtu}
	var err error
	if c.NS, err = h.lab.newNamespace(c.Name); err != nil {
		return nil, err
	}
	h.containers = append(h.containers, c) // its name is taken, whatever happens now
	err = h.NS.configure(func(host *netlink.Handle) error {
		port := fmt.Sprintf("c%d", n)
		return addCable(host, cable{bridge: dockerBridge, port: port, peer: c.NS, device: "eth0", mtu: mtu})
	})
	if err != nil {
		return nil, err
	}
	err = c.NS.configure(func(own *netlink.Handle) error {
		if err := setAddr(own, "eth0", addr); err != nil {
			return err
		}
		return addDefaultRoute(own, "eth0", bridge.Addr())
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

func ensureDocker(host *netlink.Handle, addr netip.Prefix, mtu int) error {
	var missing netlink.LinkNotFoundError
	link, err := host.LinkByName(dockerBridge)
	switch {
	case errors.As(err, &missing):
		if err := addBridge(host, dockerBridge, mtu); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("find bridge %s: %w", dockerBridge, err)
	case link.Attrs().MTU != mtu:
		if err := host.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("set MTU of %s: %w", dockerBridge, err)
		}
	}
	return setAddr(host, dockerBridge, addr)
}
