package backend

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
)

// peers gives the leases of a view that can be programmed, in order of their
// subnets, and why the others can't. Where two leases claim the same thing, the
// older one keeps it. accepted is everything that nothing is wrong with by itself.
func peers(b Backend, network netip.Prefix, h host.Facts, v lease.View) (good, accepted []Peer, bad []Skipped) {
	s := newSieve(b, network, h, v.Own)
	accepted = make([]Peer, 0, len(v.Peers))
	for _, l := range v.Peers {
		if p, err := s.alone(*l); err == nil {
			accepted = append(accepted, p)
		} else if err != errNoPeer {
			bad = append(bad, Skipped{l.Subnet, err.Error()})
		}
	}
	good, overlapping := withoutOverlaps(accepted)
	good, doubled := withoutDoubles(good, "public IP", func(p Peer) netip.Addr { return p.PublicIP })
	good, inside := withoutOverlayIPs(network, good)
	good, shared := withoutDoubles(good, "VTEP MAC", func(p Peer) dataplane.MAC { return p.MAC })
	return good, accepted, slices.Concat(bad, overlapping, doubled, inside, shared)
}

// sameType refuses leases of another backend.
func sameType(l lease.Lease, backendType string) error {
	if l.BackendType != backendType {
		return fmt.Errorf("its backend type is %q, ours is %q", lease.Clip(l.BackendType), backendType)
	}
	return nil
}

type sieve struct {
	backend Backend
	network netip.Prefix
	host    host.Facts
	own     Peer
}

func newSieve(b Backend, network netip.Prefix, h host.Facts, own lease.Lease) sieve {
	// An own lease that was damaged has no MAC; nobody else can have that one.
	mac, _ := b.Accept(h, own)
	return sieve{b, network, h, Peer{own, mac}}
}

// alone accepts a lease, or says what is wrong with it regardless of the other
// peers.
func (s sieve) alone(l lease.Lease) (Peer, error) {
	mac, err := s.backend.Accept(s.host, l)
	if err == errNoPeer {
		return Peer{}, err
	}
	if reason := s.senseless(l); reason != "" {
		return Peer{}, errors.New(reason)
	}
	if err == nil && mac == s.own.MAC && mac != (dataplane.MAC{}) {
		err = fmt.Errorf("VTEP MAC %s is our own", mac)
	}
	return Peer{l, mac}, err
}

func (s sieve) senseless(l lease.Lease) string {
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
func withoutOverlaps(leases []Peer) (good []Peer, bad []Skipped) {
	good = make([]Peer, 0, len(leases))
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

func overlap(l, older Peer) Skipped {
	return Skipped{l.Subnet, fmt.Sprintf("the subnet overlaps the older lease %s", older.Subnet)}
}

// withoutDoubles leaves one lease for each key, which no two hosts can share;
// zero is none.
func withoutDoubles[K comparable](leases []Peer, what string, key func(Peer) K) (good []Peer, bad []Skipped) {
	var none K
	owner := make(map[K]int, len(leases))
	for i, l := range leases {
		if o, taken := owner[key(l)]; !taken || l.Created < leases[o].Created {
			owner[key(l)] = i
		}
	}
	if len(owner) == len(leases) {
		return leases, nil
	}
	for i, l := range leases {
		if o := owner[key(l)]; o != i && key(l) != none {
			bad = append(bad, Skipped{l.Subnet, fmt.Sprintf("%s %v belongs to the older lease %s", what, key(l), leases[o].Subnet)})
		} else {
			good = append(good, l)
		}
	}
	return good, bad
}

// withoutOverlayIPs drops leases whose public IP lies in a leased subnet: their
// outer packets would go into the tunnel again.
func withoutOverlayIPs(network netip.Prefix, leases []Peer) (good []Peer, bad []Skipped) {
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
func covering(leases []Peer, ip netip.Addr) (netip.Prefix, bool) {
	i, _ := slices.BinarySearchFunc(leases, ip, func(l Peer, ip netip.Addr) int {
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
