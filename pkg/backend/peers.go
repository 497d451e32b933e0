package backend

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
)

// peers gives the leases of a view that can be programmed, in order of their
// subnets, and why the others can't. Where two leases claim the same thing, the
// older one keeps it; a stale one gives way to all others, which is nothing to report.
// accepted is everything that nothing is wrong with by itself.
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
	bad = slices.DeleteFunc(slices.Concat(bad, overlapping, doubled, inside, shared), func(s Skipped) bool {
		return v.Peer(s.Subnet).Stale
	})
	return good, accepted, bad
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
	return s.needed(l.Subnet)
}

// needed says what of the underlay a subnet would take away. The longest prefix wins
// in the kernel: a wider route than the subnet's forbids nothing by itself.
func (s sieve) needed(subnet netip.Prefix) string {
	if subnet.Contains(s.host.Addr) {
		return fmt.Sprintf("the subnet contains this host's address %s", s.host.Addr)
	}
	for _, r := range s.host.Underlay {
		switch {
		case r.Iface != s.host.Uplink:
		case r.Gateway.IsValid() && subnet.Contains(r.Gateway):
			return fmt.Sprintf("the subnet contains the gateway %s dev %s", r.Gateway, r.Iface)
		case !r.Gateway.IsValid() && subnet.Bits() <= r.Dst.Bits() && subnet.Contains(r.Dst.Addr()):
			return fmt.Sprintf("the subnet covers the underlay network %s dev %s", r.Dst, r.Iface)
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
			if good[n].Precedes(l.Lease) {
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
		if o, taken := owner[key(l)]; !taken || l.Precedes(leases[o].Lease) {
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

// withoutOverlayIPs leaves no lease whose public IP lies in a leased subnet: its outer
// packets would go into the tunnel again. Where the subnet is another lease's, the older
// of the two stays. leases are sorted by subnet and free of overlaps.
func withoutOverlayIPs(network netip.Prefix, leases []Peer) (good []Peer, bad []Skipped) {
	clashes := map[int][]int{} // by index: with which leases each clashes, itself included
	for i, l := range leases {
		if !network.Contains(l.PublicIP) {
			continue
		}
		if in, ok := covering(leases, l.PublicIP); ok {
			clashes[i], clashes[in] = append(clashes[i], in), append(clashes[in], i)
		}
	}
	if len(clashes) == 0 {
		return leases, nil
	}
	byPrecedence := slices.SortedFunc(maps.Keys(clashes), func(i, j int) int {
		switch {
		case leases[i].Precedes(leases[j].Lease):
			return -1
		case leases[j].Precedes(leases[i].Lease):
			return 1
		}
		return 0
	})
	stays := map[int]bool{}
	for _, i := range byPrecedence {
		l := leases[i]
		if l.Subnet.Contains(l.PublicIP) {
			bad = append(bad, Skipped{l.Subnet, fmt.Sprintf("public IP %s lies in the leased subnet %s", l.PublicIP, l.Subnet)})
			continue
		}
		at := slices.IndexFunc(clashes[i], func(j int) bool { return stays[j] })
		if stays[i] = at < 0; stays[i] {
			continue
		}
		older := leases[clashes[i][at]]
		if older.Subnet.Contains(l.PublicIP) {
			bad = append(bad, Skipped{l.Subnet, fmt.Sprintf("public IP %s lies in the leased subnet %s", l.PublicIP, older.Subnet)})
		} else {
			bad = append(bad, Skipped{l.Subnet, fmt.Sprintf("the subnet contains the public IP %s of the older lease %s", older.PublicIP, older.Subnet)})
		}
	}
	good = make([]Peer, 0, len(leases)-len(bad))
	for i, l := range leases {
		if _, clash := clashes[i]; !clash || stays[i] {
			good = append(good, l)
		}
	}
	return good, bad
}

// covering finds the lease whose subnet contains ip among leases sorted by subnet and
// free of overlaps.
func covering(leases []Peer, ip netip.Addr) (int, bool) {
	i, _ := slices.BinarySearchFunc(leases, ip, func(l Peer, ip netip.Addr) int {
		if l.Subnet.Contains(ip) {
			return -1 // go on to the one after it
		}
		return l.Subnet.Addr().Compare(ip)
	})
	return i - 1, i > 0 && leases[i-1].Subnet.Contains(ip)
}
