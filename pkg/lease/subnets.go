package lease

import "net/netip"

// Subnets are the subnets of a lease, one per family. An invalid prefix means none. They identify a
// lease, both in the registry and on every host: leases that differ in the subnet of either family
// are different.
type Subnets struct{ V4, V6 netip.Prefix }

// IsValid reports whether there is a subnet of either family.
func (s Subnets) IsValid() bool { return s != Subnets{} }

// Compare orders by the IPv4 subnet, then by the IPv6 subnet. No subnet sorts first.
func (s Subnets) Compare(o Subnets) int { return compare(&s, &o) }

// compare takes pointers for speed, because views have many subnets to compare.
func compare(a, b *Subnets) int {
	if c := ComparePrefix(a.V4, b.V4); c != 0 {
		return c
	}
	return ComparePrefix(a.V6, b.V6)
}

// String returns the subnets in the form 10.42.7.0/24 or 10.42.7.0/24,fd42:0:0:7::/64.
func (s Subnets) String() string {
	switch {
	case !s.V6.IsValid():
		return s.V4.String()
	case !s.V4.IsValid():
		return s.V6.String()
	}
	return s.V4.String() + "," + s.V6.String()
}

// ComparePrefix orders prefixes by address, then by length.
func ComparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}
