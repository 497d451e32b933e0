package backend

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
	"flanneld/pkg/netconf"
)

// Network is a network config with the backend that it specifies.
type Network struct {
	netconf.Config
	Backend
}

// ParseNetwork parses a network config including the backend's options.
func ParseNetwork(raw []byte) (n Network, err error) {
	if n.Config, err = netconf.Parse(raw); err != nil {
		return n, err
	}
	if n.Backend, err = newBackend(n.Config); err != nil {
		return n, fmt.Errorf("network config: %w", err)
	}
	return n, nil
}

// newBackend returns the backend of a config.
func newBackend(c netconf.Config) (Backend, error) {
	make, ok := backends[c.BackendType]
	if !ok {
		c.Backend.Fail("Type", "one of "+strings.Join(slices.Sorted(maps.Keys(backends)), ", "))
		return nil, c.Backend.Err()
	}
	return make(c)
}

// Problems returns everything that is wrong with a network config. Its first error is that of
// ParseNetwork, without the words that the config is meant. warnings are about keys of a valid config
// that probably do not do what is meant.
func Problems(raw []byte) (all []error, warnings []string) {
	c, err := netconf.Read(raw)
	if c.Fields == nil {
		return []error{err}, nil
	}
	if _, err := newBackend(c); err != nil && c.Fields.Err() == nil {
		return []error{err}, nil
	}
	for _, f := range []*netconf.Fields{c.Fields, c.Backend} {
		for _, key := range f.Ignored() {
			warnings = append(warnings, key+" is not known, and ignored")
		}
		for _, key := range f.Repeated() {
			warnings = append(warnings, key+" is there more than once; the last one counts")
		}
	}
	return c.Fields.All(), warnings
}

// Equal reports whether two configs are equivalent.
func (n Network) Equal(o Network) bool {
	n.Config.Fields, n.Config.Backend = o.Config.Fields, o.Config.Backend // the text
	return reflect.DeepEqual(n, o)
}

// RoutesToAll reports whether the backend has routes that all peers share.
func (n Network) RoutesToAll() bool {
	return len(n.Base(host.Facts{}, lease.Lease{}).Routes) > 0
}

// FixedDevice returns the link of the backend if its name is fixed, or "". Names do not depend on
// facts or leases.
func (n Network) FixedDevice() string {
	name, l := n.Link(host.Facts{}, lease.Lease{})
	if l.Kind == dataplane.KindTUN {
		return ""
	}
	return name
}

// UsesTUN reports whether the backend needs a TUN device, which can have any name.
func (n Network) UsesTUN() bool {
	_, l := n.Link(host.Facts{}, lease.Lease{})
	return l.Kind == dataplane.KindTUN
}

// Link returns the link that receives outer packets, or "" if the backend has none.
func (n Network) Link(h host.Facts, own lease.Lease) (name string, l dataplane.Link) {
	for name, l := range n.Base(h, own).Links {
		return name, l // there is only one
	}
	return "", dataplane.Link{}
}

// NeedsRestart returns, as text, the differences of a later config that cannot be applied while the
// network is running: they would separate this host from those that have not read the config yet.
func (n Network) NeedsRestart(later Network) (differences []string) {
	differ := func(what string, before, now any) {
		if before != now {
			differences = append(differences, fmt.Sprintf("%s is %v, was %v", what, now, before))
		}
	}
	differ("Network", n.V4.Network, later.V4.Network)
	differ("SubnetLen", n.V4.SubnetLen, later.V4.SubnetLen)
	differ("Backend.Type", n.BackendType, later.BackendType)
	if len(differences) == 0 && !reflect.DeepEqual(n.Backend, later.Backend) {
		differences = append(differences, "Backend has other options")
	}
	return differences
}
