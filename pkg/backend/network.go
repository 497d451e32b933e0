package backend

import (
	"fmt"
	"reflect"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
	"flanneld/pkg/netconf"
)

// Network is what a network config says: its values, and the backend that it names.
type Network struct {
	netconf.Config
	Backend
}

// ParseNetwork reads a network config with its backend's options.
func ParseNetwork(raw []byte) (Network, error) {
	c, err := netconf.Parse(raw)
	if err != nil {
		return Network{}, err
	}
	b, err := New(c)
	return Network{c, b}, err
}

// Equal reports whether two configs say the same.
func (n Network) Equal(o Network) bool { return reflect.DeepEqual(n, o) }

// RoutesToAll reports whether the backend has routes for all peers together.
func (n Network) RoutesToAll() bool {
	return len(n.Base(host.Facts{}, lease.Lease{}).Routes) > 0
}

// FixedDevice returns the link that the backend needs and that can have no other name, "" if there
// is none. Names do not depend on facts or leases.
func (n Network) FixedDevice() string {
	for name, l := range n.Base(host.Facts{}, lease.Lease{}).Links {
		if l.Kind != dataplane.KindTUN {
			return name
		}
	}
	return ""
}

// UsesTUN reports whether the backend needs a TUN device, whose name can be any.
func (n Network) UsesTUN() bool {
	for _, l := range n.Base(host.Facts{}, lease.Lease{}).Links {
		if l.Kind == dataplane.KindTUN {
			return true
		}
	}
	return false
}

// NeedsRestart returns in what a later config differs that cannot be taken over while the network
// runs, for people: it would cut this host off from those that have not noticed yet.
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
