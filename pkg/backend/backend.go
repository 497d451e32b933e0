// Package backend computes the desired kernel state of a host from its network config, the facts
// about the host and the view of all leases. Each backend has one file and registers itself under
// its type.
//
// Backends are pure: they have no clock, I/O, logging or state apart from their options. Invariant:
// a peer with an invalid lease is left out and reported as Skipped, and does not affect any other
// peer.
package backend

import (
	"errors"
	"fmt"
	"net/netip"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
	"flanneld/pkg/netconf"
)

// Backend is a way to carry packets between hosts.
type Backend interface {
	// MTU returns the MTU of containers in bytes.
	MTU(h host.Facts) int
	// Attrs returns the attributes that this host publishes in its lease. previous are the
	// attributes of the lease that is reused, or zero. others are leases whose claims this host
	// must not duplicate.
	Attrs(h host.Facts, previous lease.Attrs, others []lease.Lease) (lease.Attrs, error)
	// Base returns the desired state that does not depend on the peers.
	Base(h host.Facts, own lease.Lease) dataplane.State
	// Accept returns the peer of a lease (newPeer) or what is wrong with the lease. errNoPeer means
	// that this need not be reported.
	Accept(h host.Facts, l *lease.Lease) (Peer, error)
	// Via returns the device by which packets to a peer's subnet leave this host, or "" if that
	// depends on routes of other programs.
	Via(h host.Facts, l *lease.Lease) (device string)
	// Add adds the objects for a peer to s. No two peers need the same object.
	Add(s dataplane.State, h host.Facts, p Peer)
}

// Peer is an accepted lease of the view.
type Peer struct {
	*lease.Lease
	Claims []Claim // the public IP first, then those of the backend
}

// newPeer returns the peer of a lease with its claims in the backend.
func newPeer(l *lease.Lease, claims ...Claim) Peer {
	all := make([]Claim, 0, 1+len(claims))
	return Peer{l, append(append(all, publicIP{l.PublicIP}), claims...)}
}

// Claim is a value that no two hosts of a network may have at the same time, such as an address, a
// MAC or a public key. Claims are compared by ==, so their types must be comparable.
type Claim interface {
	Kind() string   // description for messages
	String() string // value
}

// publicIP is the claim that every peer has.
type publicIP struct{ netip.Addr }

func (publicIP) Kind() string { return "public IP" }

// errNoPeer is returned for a lease that does not concern the backend.
var errNoPeer = errors.New("not a peer")

// Skipped is a peer that is left out, and the reason.
type Skipped struct {
	Subnets lease.Subnets
	lease.Fault
}

func skipped(l Peer, kind, detail string, args ...any) Skipped {
	return Skipped{l.Subnets, fault(kind, detail, args...)}
}

// fault returns a fault with a formatted detail.
func fault(kind, detail string, args ...any) lease.Fault {
	return lease.Fault{Kind: kind, Detail: fmt.Sprintf(detail, args...)}
}

// backends has the constructors, which init functions add, one per backend.
var backends = map[string]func(netconf.Config) (Backend, error){}
