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

// SubnetEnv is the part of flanneld's subnet file that a container runtime uses.
type SubnetEnv struct {
	Subnet netip.Prefix // FLANNEL_SUBNET: the bridge's address with the subnet's length
	MTU    int          // FLANNEL_MTU
}

// ReadSubnet reads the host's subnet file.
func (h *Host) ReadSubnet() (SubnetEnv, error) { return ReadSubnet(h.SubnetFile) }

// ReadSubnet reads a subnet file.
func ReadSubnet(path string) (SubnetEnv, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return SubnetEnv{}, fmt.Errorf("read subnet file: %w", err)
	}
	values := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[key] = value
	}
	subnet, err1 := netip.ParsePrefix(values["FLANNEL_SUBNET"])
	mtu, err2 := strconv.Atoi(values["FLANNEL_MTU"])
	if err := errors.Join(err1, err2); err != nil {
		return SubnetEnv{}, fmt.Errorf("parse subnet file %s: %w", path, err)
	}
	return SubnetEnv{Subnet: subnet, MTU: mtu}, nil
}

// AddContainer adds a container with the subnet and MTU in the host's subnet file, and the next
// free address after the bridge's. If the file has changed since the last call, the bridge is
// changed too, as by a restart of docker.
func (h *Host) AddContainer() (*Container, error) {
	return h.AddContainerTo(dockerBridge, h.SubnetFile)
}

// AddContainerTo is AddContainer for another bridge and its subnet file, on a host with several
// networks.
func (h *Host) AddContainerTo(bridge, subnetFile string) (*Container, error) {
	env, err := ReadSubnet(subnetFile)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	n, gateway := len(h.containers)+1, env.Subnet.Addr()
	addr := netip.PrefixFrom(offset(gateway, n), env.Subnet.Bits())
	if !env.Subnet.Contains(offset(addr.Addr(), 1)) { // the last address is for broadcast
		return nil, fmt.Errorf("add container %d: %s is full", n, env.Subnet.Masked())
	}
	if err := h.NS.configure(func(host *netlink.Handle) error { return setDocker(host, bridge, env) }); err != nil {
		return nil, err
	}
	c := &Container{Endpoint: Endpoint{Name: fmt.Sprintf("%sc%d", h.Name, n), Addr: addr.Addr(), lab: h.lab}, Host: h, MTU: env.MTU}
	if c.NS, err = h.lab.newNamespace(c.Name); err != nil {
		return nil, err
	}
	h.containers = append(h.containers, c) // its name is taken, even if a later step fails
	err = h.NS.configure(func(host *netlink.Handle) error {
		port := fmt.Sprintf("c%d", n)
		return addCable(host, cable{bridge: bridge, port: port, peer: c.NS, device: "eth0", mtu: env.MTU})
	})
	if err != nil {
		return nil, err
	}
	return c, c.NS.connect("eth0", addr, gateway)
}

// setDocker creates the bridge if it does not exist, and sets its address and MTU.
func setDocker(host *netlink.Handle, bridge string, env SubnetEnv) error {
	var missing netlink.LinkNotFoundError
	link, err := host.LinkByName(bridge)
	switch {
	case errors.As(err, &missing):
		if err := addBridge(host, bridge, env.MTU); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("find bridge %s: %w", bridge, err)
	case link.Attrs().MTU != env.MTU:
		if err := host.LinkSetMTU(link, env.MTU); err != nil {
			return fmt.Errorf("set MTU of %s: %w", bridge, err)
		}
	}
	return setAddr(host, bridge, env.Subnet)
}
