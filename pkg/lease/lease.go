// Package lease holds what hosts tell each other through the registry: a
// leased subnet with the attributes of its owner, the keys and JSON values that
// carry them, the View a host has of the whole network, the Claim by which it knows
// its own lease again, and the choice of a free subnet.
//
// It knows no registry and no clock; it only turns bytes into values and
// values into bytes. Invariant: a decoded Lease is well formed (its subnets are
// masked prefixes, of which there is one of IPv4; its public IP is an IPv4 address),
// but nothing is said about whether it makes sense in this network: that is for
// package backend.
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

// Attrs are what a host publishes beside its subnets. They are comparable:
// backend data are compact JSON kept as text.
type Attrs struct {
	PublicIP      netip.Addr // IPv4 address in the underlay, invalid when the value has none
	PublicIPv6    netip.Addr // IPv6 address there, likewise
	BackendType   string     // empty for udp and alloc
	BackendData   string     // JSON, meaning is the backend's; empty when absent
	BackendV6Data string     // the same for IPv6
	// Leaving: the owner is giving the lease up for good, and it ends soon. Until
	// then the subnet is taken, but nobody is reached there.
	Leaving bool
}

// Lease is one host's claim on its subnets.
type Lease struct {
	Subnets Subnets
	Attrs
	Expires  time.Time // on this host's clock; zero for a reservation, which never expires
	Revision uint64    // of the last write; what a compare-and-swap compares
	Created  uint64    // revision that created the key; the lower, the older
	// Stale: the registry has the lease no longer, and it stays in force for a moment
	// only because its owner may make it again. A stale lease contests no other.
	Stale bool
}

// Precedes reports whether l keeps what both it and o claim and only one can have: the
// one that is not stale, else the older, else the one whose subnets come first.
func (l Lease) Precedes(o Lease) bool {
	switch {
	case l.Stale != o.Stale:
		return o.Stale
	case l.Created != o.Created:
		return l.Created < o.Created
	}
	return l.Subnets.Compare(o.Subnets) < 0
}

// Reservation reports whether the lease has no time to live, so that renewing
// must keep it without one.
func (l Lease) Reservation() bool { return l.Expires.IsZero() }

// SameAs reports whether two leases say the same to the data plane; expiry and
// revisions are not part of that.
func (l Lease) SameAs(o Lease) bool { return l.Subnets == o.Subnets && l.Attrs == o.Attrs }

// value is the JSON form of Attrs. Field order and the null PublicIPv6 are
// those of the original's newest generation; its older readers ignore what they
// don't know, and none of them knows Leaving.
type value struct {
	PublicIP      *string         `json:"PublicIP"`
	PublicIPv6    *string         `json:"PublicIPv6"`
	BackendType   string          `json:"BackendType,omitempty"`
	BackendData   json.RawMessage `json:"BackendData,omitempty"`
	BackendV6Data json.RawMessage `json:"BackendV6Data,omitempty"`
	Leaving       json.RawMessage `json:"Leaving,omitempty"` // raw, so that an error can tell the value
}

// MaxValue is the longest value, in bytes, that is decoded. Real values are
// below 1 KiB; the limit keeps absurd keys from costing memory in every host.
const MaxValue = 16 << 10

// LongValue returns the fault of a value of size bytes, which are more than MaxValue.
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

// DecodeAttrs reads a registry value. Unknown fields are ignored and field
// names match in any case, as every generation of the original does. A PublicIPv6
// that is no IPv6 address counts as none, since a host may do without.
func DecodeAttrs(b []byte) (Attrs, error) {
	if len(b) > MaxValue {
		return Attrs{}, LongValue(int64(len(b)))
	}
	var v value
	b = bytes.TrimPrefix(b, []byte("\ufeff")) // of a reservation that was written with an editor
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
	// All hosts of a network have the same type; one copy of its name is enough.
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

// compact returns valid JSON without blanks; null is empty.
func compact(raw json.RawMessage) (string, error) {
	if string(raw) == "null" {
		return "", nil
	}
	// Nearly all that is written is compact, and is not walked through again.
	if !bytes.ContainsAny(raw, " \t\r\n") {
		return string(raw), nil
	}
	var c bytes.Buffer
	if err := json.Compact(&c, raw); err != nil {
		return "", err
	}
	return c.String(), nil
}

// Clip shortens hostile text for a message.
func Clip(s string) string {
	const most = 64
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
