package lease

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Key returns the last element of a lease's key: 10.42.7.0-24, or 10.42.7.0-24&fd42:0:0:7::-64 with
// an IPv6 subnet. The IPv4 subnet is required.
func Key(s Subnets) string {
	key := appendKey(nil, s.V4())
	if v6 := s.V6(); v6.IsValid() {
		key = appendKey(append(key, '&'), v6)
	}
	return string(key)
}

func appendKey(b []byte, p netip.Prefix) []byte {
	return strconv.AppendInt(append(p.Addr().AppendTo(b), '-'), int64(p.Bits()), 10)
}

// ParseKey parses the last element of a lease's key. It accepts only what Key returns, so that no
// two keys have the same subnets. The subnets must have no host bits and a length of 1 to 31 bits,
// or 1 to 127 for IPv6.
func ParseKey(key string) (Subnets, error) {
	part4, part6, both := strings.Cut(key, "&")
	var v4, v6 netip.Prefix
	kind, detail := parsePart(&v4, part4, "a.b.c.d-len", "IPv4", 32)
	if kind == "" && both {
		kind, detail = parsePart(&v6, part6, "a.b.c.d-len&ipv6-len", "IPv6", 128)
	}
	switch {
	case kind == "":
		return SubnetsOf(v4, v6), nil
	case detail != "":
		return Subnets{}, Fault{kind, strconv.Quote(Clip(key)) + "; " + detail}
	}
	return Subnets{}, Fault{kind, strconv.Quote(Clip(key))}
}

// parsePart parses the part of a key with the subnet of one family, or returns what is wrong with
// it. form is the form of the whole key.
func parsePart(p *netip.Prefix, part, form, family string, addrBits int) (kind, detail string) {
	ip, bits, ok := strings.Cut(part, "-")
	if !ok {
		return "key is not of the form " + form, ""
	}
	addr, err := netip.ParseAddr(ip)
	if err != nil || addr.BitLen() != addrBits || addr.Is4In6() || addr.Zone() != "" {
		return "key has no " + family + " address", ""
	}
	n, err := strconv.Atoi(bits)
	if err != nil || n < 1 || n >= addrBits {
		return fmt.Sprintf("prefix length of the key is not in 1..%d", addrBits-1), ""
	}
	*p = netip.PrefixFrom(addr, n)
	if p.Masked() != *p {
		return "key has host bits set", "the subnet would be " + p.Masked().String()
	}
	if is := appendKey(make([]byte, 0, 64), *p); string(is) != part {
		return "key is not in canonical form", "that would be " + string(is)
	}
	return "", ""
}
