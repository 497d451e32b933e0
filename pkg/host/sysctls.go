package host

import (
	"fmt"
	"strconv"
)

// These are settings of the kernel that flanneld does not change, as paths below /proc/sys.
const (
	forwarding   = "net/ipv4/ip_forward"
	bridgeFilter = "net/bridge/bridge-nf-call-iptables"
	rpFilterAll  = "net/ipv4/conf/all/rp_filter"

	// These are the present and the maximum number of tracked connections
	// (nf_conntrack-sysctl.rst).
	tracked    = "net/netfilter/nf_conntrack_count"
	trackedMax = "net/netfilter/nf_conntrack_max"
)

// trackedShare is the percentage of the maximum number of tracked connections from which on there
// is a finding.
const trackedShare = 90

func rpFilterPath(iface string) string { return "net/ipv4/conf/" + iface + "/rp_filter" }

// CheckedSysctls returns the paths of the sysctls that CheckSysctls needs. The uplink need not be
// known.
func (o Overlay) CheckedSysctls(f Facts) []string {
	paths := []string{forwarding, bridgeFilter, rpFilterAll, tracked, trackedMax}
	if f.Uplink != "" {
		paths = append(paths, rpFilterPath(f.Uplink))
	}
	for _, d := range o.Devices {
		paths = append(paths, rpFilterPath(d))
	}
	return paths
}

// CheckSysctls returns problems in the values of sysctls. Sysctls that do not exist must be absent
// from values. Strict reverse path filtering (RFC 3704; rp_filter in the kernel's ip-sysctl.rst)
// works as long as routes are symmetric. So the uplink is checked for the routes to peers, and the
// overlay's devices for packets from outside that arrive through another host, unless hosts
// masquerade them.
func (o Overlay) CheckSysctls(f Facts, s Surroundings, values map[string]string) []Finding {
	var found []Finding
	if values[forwarding] == "0" {
		found = append(found, Finding{
			ID:      "ip-forward",
			Text:    "IP forwarding is off, so containers cannot reach other hosts; docker turns it on when it starts",
			Command: "sysctl -w net.ipv4.ip_forward=1",
		})
	}
	if _, ok := values[bridgeFilter]; !ok {
		found = append(found, Finding{
			ID:      "br-netfilter",
			Text:    "br_netfilter is not loaded, so packet filter rules do not see traffic between containers on one bridge",
			Command: "modprobe br_netfilter",
		})
	}
	found = append(found, conntrack(values)...)
	if strict(values, f.Uplink) {
		routes := s.index(f)
		for _, p := range o.Peers {
			if r, ok := routes.lookup(p.PublicIP); ok && r.Iface != "" && r.Iface != f.Uplink {
				found = append(found, looseRPFilter(f.Uplink, "strict reverse path filtering drops packets from a peer, because the route to it uses another interface",
					"public_ip", p.PublicIP, "iface", r.Iface))
				break
			}
		}
	}
	for _, d := range o.Devices {
		if strict(values, d) && !o.Masquerade {
			found = append(found, looseRPFilter(d, "strict reverse path filtering drops packets from outside the network that arrive through another host"))
		}
	}
	return found
}

// conntrack returns a finding if the conntrack table is nearly full. Each connection of a container
// has an entry, and where tunnels are tracked another one for its outer packets. If the table is
// full, the kernel drops the first packet of each new connection. Existing connections continue.
func conntrack(values map[string]string) []Finding {
	now, err := strconv.ParseUint(values[tracked], 10, 32)
	most, err2 := strconv.ParseUint(values[trackedMax], 10, 32)
	if err != nil || err2 != nil || most == 0 || 100*now < trackedShare*most { // 0 means no limit
		return nil
	}
	return []Finding{{
		ID:      "conntrack",
		Text:    "conntrack table is nearly full; once it is full, packets of new connections are dropped",
		Fields:  []any{"max", most},
		Command: fmt.Sprint("sysctl -w net.netfilter.nf_conntrack_max=", 2*most),
	}}
}

// strict reports whether reverse path filtering is strict. The kernel uses the greater of both
// values, and 2 is loose.
func strict(values map[string]string, iface string) bool {
	all, _ := strconv.Atoi(values[rpFilterAll])
	own, _ := strconv.Atoi(values[rpFilterPath(iface)])
	return max(all, own) == 1
}

func looseRPFilter(device, text string, fields ...any) Finding {
	return Finding{
		ID: "rp-filter/" + device, Text: text, Fields: append([]any{"device", device}, fields...),
		Command: "sysctl -w " + rpFilterPath(device) + "=2", // with slashes, because interface names may contain dots
	}
}
