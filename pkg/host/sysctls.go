package host

import (
	"fmt"
	"net/netip"
	"strconv"
)

// Settings of the kernel that others are in charge of, as paths below /proc/sys.
const (
	forwarding   = "net/ipv4/ip_forward"
	bridgeFilter = "net/bridge/bridge-nf-call-iptables"
	strictAll    = "net/ipv4/conf/all/rp_filter"
)

func strictOf(iface string) string { return "net/ipv4/conf/" + iface + "/rp_filter" }

// Obstacle is a setting of this host by which traffic of the overlay would be
// lost, and the command that changes it. Nobody but the operator does.
type Obstacle struct {
	What    string
	Command string
}

// ObstacleSysctls are the paths whose values Obstacles wants. devices are the
// overlay's own.
func ObstacleSysctls(f Facts, devices []string) []string {
	paths := []string{forwarding, bridgeFilter, strictAll, strictOf(f.Uplink)}
	for _, d := range devices {
		paths = append(paths, strictOf(d))
	}
	return paths
}

// Obstacles judges the values of sysctls, of which those that do not exist are
// absent. peers are the public IPs of the other hosts. Strict reverse path
// filtering (RFC 3704; rp_filter in the kernel's ip-sysctl.rst) is in order as
// long as routes are symmetric: so the uplink is asked about the peers, and the
// overlay's devices about packets of the outside that reach us by way of another
// host, which that host masquerades if hosts masquerade.
func Obstacles(values map[string]string, f Facts, devices []string, peers []netip.Addr, masquerade bool) []Obstacle {
	var found []Obstacle
	if values[forwarding] == "0" {
		found = append(found, Obstacle{
			"this host forwards no packets, so containers reach nobody; docker turns it on when it starts",
			"sysctl -w net.ipv4.ip_forward=1",
		})
	}
	if _, ok := values[bridgeFilter]; !ok {
		found = append(found, Obstacle{
			"br_netfilter is not loaded: rules do not see what containers of this host send each other by way of the bridge",
			"modprobe br_netfilter",
		})
	}
	if strict(values, f.Uplink) {
		for _, p := range peers {
			if r, ok := Lookup(f.Underlay, p); ok && r.Iface != "" && r.Iface != f.Uplink {
				found = append(found, loosen(f.Uplink, fmt.Sprintf("strict reverse path filtering drops what the peer at %s sends to %s, for the route to it leaves by %s", p, f.Uplink, r.Iface)))
				break
			}
		}
	}
	for _, d := range devices {
		if strict(values, d) && !masquerade {
			found = append(found, loosen(d, "strict reverse path filtering drops what comes from outside the network by way of another host"))
		}
	}
	return found
}

// strict: the kernel takes the greater of the two values; 2 is loose.
func strict(values map[string]string, iface string) bool {
	all, _ := strconv.Atoi(values[strictAll])
	own, _ := strconv.Atoi(values[strictOf(iface)])
	return max(all, own) == 1
}

func loosen(iface, what string) Obstacle {
	// With slashes, since names of interfaces may have dots.
	return Obstacle{what, "sysctl -w " + strictOf(iface) + "=2"}
}
