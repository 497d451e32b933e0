package backend

import (
	"fmt"
	"net/netip"
	"slices"

	"flanneld/pkg/host"
	"flanneld/pkg/lease"
)

// peers gives the leases of a view that can be programmed, in order of their
// subnets, and why the others can't. accept is the backend's own check. Where two
// leases claim the same thing, the older one keeps it.
func peers(network netip.Prefix, h host.Facts, v lease.View, accept func(lease.Lease) error) (good []lease.Lease, bad []Skipped) {
	s := sieve{network: network, host: h, own: v.Own}
	for _, l := range v.Peers {
		if reason := s.alone(l); reason != "" {
			bad = append(bad, Skipped{l.Subnet, reason})
		} else if err := accept(l); err != nil {
			bad = append(bad, Skipped{l.Subnet, err.Error()})
		} else {
			good = append(good, l)
		}
	}
	good, overlapping := withoutOverlaps(good)
	good, doubled := withoutDoubles(good, "public IP", func(l lease.Lease) netip.Addr { return l.PublicIP })
	good, inside := withoutOverlayIPs(network, good)
	return good, slices.Concat(bad, overlapping, doubled, inside)
}

// sameType refuses leases of another backend.
func sameType(l lease.Lease, backendType string) error {
	if l.BackendType != backendType {
		return fmt.Errorf("its backend type is %q, ours is %q", lease.Clip(l.BackendType), backendType)
	}
	return nil
}

type sieve struct {
	network netip.Prefix
	host    host.Facts
	own     lease.Lease
}

// alone says what is wrong with a lease regardless of the other peers.
func (s sieve) alone(l lease.Lease) string {
	ip := l.PublicIP
	switch {
	case l.Subnet.Bits() <= s.network.Bits() || !s.network.Contains(l.Subnet.Addr()):
		return fmt.Sprintf("the subnet is not a part of the network %s", s.network)
	case l.Subnet.Overlaps(s.own.Subnet):
		return fmt.Sprintf("the subnet overlaps our own, %s", s.own.Subnet)
	case !ip.IsValid() || ip.IsUnspecified() || ip.IsLoopback() || ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Sprintf("public IP %s is not an address of a host", ip)
	case ip == s.host.PublicIP || ip == s.host.Addr:
		return fmt.Sprintf("public IP %s is our own", ip)
	case s.own.Subnet.Contains(ip):
		return fmt.Sprintf("public IP %s lies in our own subnet", ip)
	}
	for _, r := range s.host.Underlay {
		if r.Iface == s.host.Uplink && !r.Gateway.IsValid() && r.Dst.Bits() > 0 && r.Dst.Overlaps(l.Subnet) {
			return fmt.Sprintf("the subnet overlaps the underlay network %s dev %s", r.Dst, r.Iface)
		}
	}
	return ""
}

// withoutOverlaps expects leases sorted by subnet, so that whatever lies inside
// a prefix follows it directly.
func withoutOverlaps(leases []lease.Lease) (good []lease.Lease, bad []Skipped) {
	for _, l := range leases {
		keep := true
		for n := len(good) - 1; n >= 0 && good[n].Subnet.Overlaps(l.Subnet); n-- {
			if good[n].Created <= l.Created {
				bad = append(bad, overlap(l, good[n]))
				keep = false
				break
			}
			bad = append(bad, overlap(good[n], l))
			good = good[:n]
		}
		if keep {
			good = append(good, l)
		}
	}
	return good, bad
}

func overlap(l, older lease.Lease) Skipped {
	return Skipped{l.Subnet, fmt.Sprintf("the subnet overlaps the older lease %s", older.Subnet)}
}

// withoutDoubles leaves one lease for each key, which no two hosts can share.
func withoutDoubles[K comparable](leases []lease.Lease, what string, key func(lease.Lease) K) (good []lease.Lease, bad []Skipped) {
	owner := make(map[K]lease.Lease, len(leases))
	for _, l := range leases {
		if o, taken := owner[key(l)]; !taken || l.Created < o.Created {
			owner[key(l)] = l
		}
	}
	for _, l := range leases {
		if o := owner[key(l)]; o.Subnet != l.Subnet {
			bad = append(bad, Skipped{l.Subnet, fmt.Sprintf("%s %v belongs to the older lease %s", what, key(l), o.Subnet)})
		} else {
			good = append(good, l)
		}
	}
	return good, bad
}

// withoutOverlayIPs drops leases whose public IP lies in a leased subnet: their
// outer packets would go into the tunnel again.
func withoutOverlayIPs(network netip.Prefix, leases []lease.Lease) (good []lease.Lease, bad []Skipped) {
	for _, l := range leases {
		if network.Contains(l.PublicIP) {
			if in, ok := covering(leases, l.PublicIP); ok {
				bad = append(bad, Skipped{l.Subnet, fmt.Sprintf("public IP %s lies in the leased subnet %s", l.PublicIP, in)})
				continue
			}
		}
		good = append(good, l)
	}
	return good, bad
}

// covering finds the subnet that contains ip among leases sorted by subnet and
// free of overlaps.
func covering(leases []lease.Lease, ip netip.Addr) (netip.Prefix, bool) {
	i, _ := slices.BinarySearchFunc(leases, ip, func(l lease.Lease, ip netip.Addr) int {
		if l.Subnet.Contains(ip) {
			return -1 // go on to the one after it
		}
		return l.Subnet.Addr().Compare(ip)
	})
	if i > 0 && leases[i-1].Subnet.Contains(ip) {
		return leases[i-1].Subnet, true
	}
	return netip.Prefix{}, false
}
