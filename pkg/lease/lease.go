// Package lease has the data that hosts exchange through the registry: leased subnets with the
// attributes of their owners, and their encoding as keys and JSON values. It also has the View of
// the whole network, the Claim by which a host recognizes its own lease, and the choice of a free
// subnet.
//
// It has no registry and no clock and only converts bytes to values and back. Invariant: a decoded
// Lease is well formed (its subnets are masked prefixes including one of IPv4; its public IP is an
// IPv4 address). Whether it is valid in this network is for package backend to decide.
package lease

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"time"
	"unique"
)

// IsHost reports whether an IPv4 address can be the public IP of a host.
func IsHost(a netip.Addr) bool {
	return a.Is4() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// Attrs are the attributes that a host publishes with its subnets. They are comparable, because
// backend data are kept as compact JSON text.
type Attrs struct {
	PublicIP      netip.Addr // IPv4 address in the underlay; invalid if the value has none
	PublicIPv6    netip.Addr // IPv6 address in the underlay, likewise
	BackendType   string     // empty for udp and alloc
	BackendData   string     // JSON, defined by the backend; empty if absent
	BackendV6Data string     // the same for IPv6
	// Leaving is set while the owner releases the lease, which then expires soon. Until then the
	// subnet remains leased, but it has no host.
	Leaving bool
}

// Lease is the lease of a host on its subnets.
type Lease struct {
	Subnets Subnets
	Attrs
	Expires  time.Time // by this host's clock; zero for a reservation, which never expires
	Revision uint64    // revision of the last write, used for compare-and-swap
	Created  uint64    // revision that created the key; lower is older
	// Stale is set if the registry no longer has the lease, and it is retained for a short time
	// because its owner may create it again. A stale lease conflicts with no other.
	Stale bool
}

// Precedes reports whether l wins a conflict of claims with o: the one that is not stale wins, else
// the older one, else the one whose subnets sort first.
func (l Lease) Precedes(o Lease) bool {
	switch {
	case l.Stale != o.Stale:
		return o.Stale
	case l.Created != o.Created:
		return l.Created < o.Created
	}
	return l.Subnets.Compare(o.Subnets) < 0
}

// Reservation reports whether the lease has no time to live. Renewals must preserve that.
func (l Lease) Reservation() bool { return l.Expires.IsZero() }

// SameAs reports whether two leases are the same for the data plane, regardless of expiry and
// revisions.
func (l Lease) SameAs(o Lease) bool { return l.Subnets == o.Subnets && l.Attrs == o.Attrs }

// value is the JSON form of Attrs. The field order and the null PublicIPv6 are those of the
// original's newest generation. Its older readers ignore unknown fields, and none of them knows
// Leaving.
type value struct {
	PublicIP      *string         `json:"PublicIP"`
	PublicIPv6    *string         `json:"PublicIPv6"`
	BackendType   string          `json:"BackendType,omitempty"`
	BackendData   json.RawMessage `json:"BackendData,omitempty"`
	BackendV6Data json.RawMessage `json:"BackendV6Data,omitempty"`
	Leaving       json.RawMessage `json:"Leaving,omitempty"` // raw, so that an error can contain the value
}

// MaxValue is the maximum size of a value in bytes. Real values are below 1 KiB. The limit bounds
// the memory that a malicious key costs on every host.
const MaxValue = 16 << 10

// LongValue returns the fault of a value whose size in bytes exceeds MaxValue.
func LongValue(size int64) error {
	return Fault{fmt.Sprintf("value is longer than %d bytes", MaxValue), fmt.Sprint(size)}
}

// Encode returns the JSON value for the registry.
func (a Attrs) Encode() ([]byte, error) {
	ip := "0.0.0.0"
	if a.PublicIP.IsValid() {
		ip = a.PublicIP.String()
	}
	v := value{
		PublicIP: &ip, BackendType: a.BackendType,
		BackendData: json.RawMessage(a.BackendData), BackendV6Data: json.RawMessage(a.BackendV6Data),
	}
	if a.PublicIPv6.IsValid() {
		ip := a.PublicIPv6.String()
		v.PublicIPv6 = &ip
	}
	if a.Leaving {
		v.Leaving = json.RawMessage("true")
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode lease attributes: %w", err)
	}
	return b, nil
}

// DecodeAttrs parses a registry value. As in every generation of the original, unknown fields are
// ignored and field names match case-insensitively. An invalid PublicIPv6 is ignored, because it is
// optional.
func DecodeAttrs(b []byte) (Attrs, error) {
	if len(b) > MaxValue {
		return Attrs{}, LongValue(int64(len(b)))
	}
	var v value
	b = bytes.TrimPrefix(b, []byte("\ufeff")) // some editors write a byte order mark
	if err := json.Unmarshal(b, &v); err != nil {
		return Attrs{}, Fault{"value is not lease JSON", err.Error()}
	}
	if v.PublicIP == nil {
		return Attrs{}, Fault{Kind: "PublicIP is missing"}
	}
	ip, err := netip.ParseAddr(*v.PublicIP)
	if err != nil || !ip.Is4() {
		return Attrs{}, Fault{"PublicIP is not an IPv4 address", strconv.Quote(Clip(*v.PublicIP))}
	}
	// All hosts of a network have the same type, so share one copy of the string.
	a := Attrs{PublicIP: ip, BackendType: unique.Make(v.BackendType).Value()}
	if v.PublicIPv6 != nil {
		if ip, err := netip.ParseAddr(*v.PublicIPv6); err == nil && ip.Is6() && !ip.Is4In6() {
			a.PublicIPv6 = ip.WithZone("")
		}
	}
	if a.BackendData, err = compact(v.BackendData); err != nil {
		return Attrs{}, Fault{"BackendData is not JSON", err.Error()}
	}
	if a.BackendV6Data, err = compact(v.BackendV6Data); err != nil {
		return Attrs{}, Fault{"BackendV6Data is not JSON", err.Error()}
	}
	switch text := string(v.Leaving); text {
	case "", "null", "false":
	case "true":
		a.Leaving = true
	default:
		return Attrs{}, Fault{"Leaving is neither true nor false", Clip(text)}
	}
	return a, nil
}

// compact returns valid JSON without whitespace, or "" for null.
func compact(raw json.RawMessage) (string, error) {
	if string(raw) == "null" {
		return "", nil
	}
	// Nearly all values are already compact.
	if !bytes.ContainsAny(raw, " \t\r\n") {
		return string(raw), nil
	}
	var c bytes.Buffer
	if err := json.Compact(&c, raw); err != nil {
		return "", err
	}
	return c.String(), nil
}

// Clip truncates untrusted text for a message.
func Clip(s string) string {
	const most = 64
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
