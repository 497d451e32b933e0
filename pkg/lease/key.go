package lease

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Key gives the last element of a lease's key: 10.42.7.0-24.
func Key(subnet netip.Prefix) string {
	return subnet.Addr().String() + "-" + strconv.Itoa(subnet.Bits())
}

// ParseKey reads the last element of a lease's key. A dual-stack key
// (10.42.7.0-24&fd42:0:0:7::-64) is read by its IPv4 part. The subnet must be
// 1 to 31 bits long and without host bits.
func ParseKey(key string) (netip.Prefix, error) {
	v4, _, _ := strings.Cut(key, "&")
	ip, bits, ok := strings.Cut(v4, "-")
	if !ok {
		return netip.Prefix{}, Fault{"the key is not of the form a.b.c.d-len", strconv.Quote(Clip(key))}
	}
	addr, err := netip.ParseAddr(ip)
	if err != nil || !addr.Is4() {
		return netip.Prefix{}, Fault{"the key has no IPv4 address", strconv.Quote(Clip(key))}
	}
	n, err := strconv.ParseUint(bits, 10, 8)
	if err != nil || n < 1 || n > 31 {
		return netip.Prefix{}, Fault{"the prefix length of the key is not in 1..31", strconv.Quote(Clip(key))}
	}
	p := netip.PrefixFrom(addr, int(n))
	if p.Masked() != p {
		return netip.Prefix{}, Fault{"the key has host bits set", fmt.Sprintf("%q; the subnet would be %s", Clip(key), p.Masked())}
	}
	return p, nil
}
