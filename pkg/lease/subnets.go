package lease

import (
	"bytes"
	"net/netip"
)

// Subnets are the subnets of a lease, at most one per family. They identify a lease, both in the
// registry and on every host: leases that differ in the subnet of either family are different.
//
// They are the IPv4 address, the prefix length plus one, and the same for IPv6, with zeros for no
// subnet. So they sort as bytes, and are compact map keys without pointers. The zero value has no
// subnets.
type Subnets [lenV4 + lenV6]byte

const lenV4, lenV6 = 4 + 1, 16 + 1

// SubnetsOf returns the given subnets, each of which is that of its family. Invalid prefixes are
// left out.
func SubnetsOf(subnets ...netip.Prefix) (s Subnets) {
	for _, p := range subnets {
		switch addr := p.Addr(); {
		case !p.IsValid():
		case addr.Is4():
			ip := addr.As4()
			copy(s[:], append(ip[:], byte(p.Bits()+1)))
		default:
			ip := addr.As16()
			copy(s[lenV4:], append(ip[:], byte(p.Bits()+1)))
		}
	}
	return s
}

// V4 returns the IPv4 subnet, or an invalid prefix if there is none.
func (s Subnets) V4() netip.Prefix {
	if s[lenV4-1] == 0 {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte(s[:])), int(s[lenV4-1])-1)
}

// V6 returns the IPv6 subnet, likewise.
func (s Subnets) V6() netip.Prefix {
	if s[lenV4+lenV6-1] == 0 {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte(s[lenV4:])), int(s[lenV4+lenV6-1])-1)
}

// IsValid reports whether there is a subnet of either family.
func (s Subnets) IsValid() bool { return s != Subnets{} }

// Compare orders by the IPv4 subnet, then by the IPv6 subnet. No subnet sorts first.
func (s Subnets) Compare(o Subnets) int { return bytes.Compare(s[:], o[:]) }

// String returns the subnets in the form 10.42.7.0/24 or 10.42.7.0/24,fd42:0:0:7::/64.
func (s Subnets) String() string {
	switch v4, v6 := s.V4(), s.V6(); {
	case !v6.IsValid():
		return v4.String()
	case !v4.IsValid():
		return v6.String()
	default:
		return v4.String() + "," + v6.String()
	}
}
