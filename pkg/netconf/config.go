// Package netconf reads the network config: the JSON document that defines the network all hosts
// share, the subnets it is divided into and the backend that carries packets.
//
// It does not interpret the backend's options and passes them on as Fields. Invariant: a Config
// returned by Parse is consistent (its pool of IPv4 subnets is not empty and lies inside its
// network), and every default is filled in.
package netconf

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"flanneld/pkg/lease"
)

// DefaultBackend is the backend of a config without Backend.
const DefaultBackend = "udp"

// MaxConfig is the maximum size of a network config in bytes.
const MaxConfig = 64 << 10

// Config is the network config with its defaults.
type Config struct {
	V4          lease.Pool    // the IPv4 network and the subnets that hosts may lease
	V6          lease.Pool    // the same for IPv6; always zero, because the overlay carries IPv4 only
	BackendType string        // lower case; empty when Backend lacks Type
	Fields      *Fields       // all options; nil if the config is not a JSON object
	Backend     *Fields       // the backend's options
	LeaseTTL    time.Duration // time to live of a lease
	NFTables    Choice        // use nftables instead of iptables for packet filter rules
}

// Choice is a boolean option that may be unset.
type Choice int

// Values of a Choice.
const (
	Unset Choice = iota
	Yes
	No
)

// Parse parses and validates a network config. An error names the field, its value and what it must
// be.
func Parse(raw []byte) (Config, error) {
	c, err := Read(raw)
	if err != nil {
		return Config{}, fmt.Errorf("network config: %w", err)
	}
	return c, nil
}

// Read is Parse that continues after an error, and returns what could be read. The error is the
// first one; Fields.All returns all of them.
func Read(raw []byte) (c Config, err error) {
	if len(raw) > MaxConfig {
		return c, fmt.Errorf("must be at most %d bytes long, not %d", MaxConfig, len(raw))
	}
	// Windows editors and shells write a byte order mark at the beginning of a file.
	if bytes.HasPrefix(raw, []byte("\xff\xfe")) || bytes.HasPrefix(raw, []byte("\xfe\xff")) {
		return c, errors.New("must be UTF-8, not UTF-16")
	}
	f, err := ParseFields(bytes.TrimPrefix(raw, []byte("\ufeff")), "")
	if err != nil {
		return c, err
	}
	c.Fields = f
	if c.network(f); f.Err() == nil {
		c.subnets(f)
	}
	if f.Err() != nil { // what bounds must be depends on the others; this much does not
		f.Addr("SubnetMin")
		f.Addr("SubnetMax")
	}
	if f.Bool("EnableIPv6", false) {
		f.Fail("EnableIPv6", "false: the overlay carries IPv4 only")
	}
	if !f.Bool("EnableIPv4", true) {
		f.Fail("EnableIPv4", "true: the overlay carries IPv4 only")
	}
	c.NFTables = f.choice("EnableNFTables")
	// With less than a minute, leases could expire during a leader election of etcd.
	c.LeaseTTL = time.Duration(f.Int("SubnetLeaseTTL", 86400, 60, 366*86400)) * time.Second
	c.BackendType = DefaultBackend
	c.Backend = f.noFields("Backend.")
	if b := f.Object("Backend"); b != nil {
		c.Backend = b
		c.BackendType = strings.ToLower(b.String("Type", ""))
	}
	return c, f.Err()
}

// network reads Network. The bounds of the prefix length follow from its use: a network longer than
// /28 has no room for four subnets of four addresses.
func (c *Config) network(f *Fields) {
	const accepted = `an IPv4 network from /1 to /28 such as "10.42.0.0/16"`
	s, _ := f.text("Network", accepted)
	p, err := netip.ParsePrefix(s)
	if err != nil || !p.Addr().Is4() || p.Bits() < 1 || p.Bits() > 28 {
		f.Fail("Network", accepted)
		return
	}
	c.V4.Network = p.Masked()
	if a := c.V4.Network.Addr(); a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() {
		f.Fail("Network", "a network of unicast addresses, not loopback, multicast or 0.0.0.0")
	}
}

// subnets reads SubnetLen, SubnetMin and SubnetMax.
func (c *Config) subnets(f *Fields) {
	bits := c.V4.Network.Bits()
	def := bits + 2
	if bits <= 22 {
		def = 24
	}
	// There must be at least four subnets, each with room for a bridge and two containers.
	length := f.Int("SubnetLen", def, bits+2, 30)
	if f.Err() != nil {
		return
	}
	c.V4 = lease.NewPool(c.V4.Network, length)
	c.V4.Min = c.bound(f, "SubnetMin", c.V4.Min)
	c.V4.Max = c.bound(f, "SubnetMax", c.V4.Max)
	if f.Err() == nil && c.V4.Max.Less(c.V4.Min) {
		f.Fail("SubnetMax", fmt.Sprintf("%s (SubnetMin) or above", c.V4.Min))
	}
}

// bound reads SubnetMin or SubnetMax.
func (c *Config) bound(f *Fields, name string, def netip.Addr) netip.Addr {
	a := f.Addr(name)
	if !a.IsValid() {
		return def
	}
	if !c.V4.Network.Contains(a) {
		f.Fail(name, "an address inside Network "+c.V4.Network.String())
	} else if p := netip.PrefixFrom(a, c.V4.SubnetLen); p.Masked() != p {
		f.Fail(name, fmt.Sprintf("the start of a /%d subnet; the nearest is %s", c.V4.SubnetLen, p.Masked().Addr()))
	}
	return a
}
