// Package backend turns what a host knows (network config, facts about the
// host, the view of all leases) into the kernel state it should have. There is
// one file a backend; each registers itself under its type.
//
// Backends are pure: no clock, no I/O, no logging, no state of their own beside
// their options. Invariant: a peer whose lease makes no sense is left out and
// reported as Skipped, and changes nothing for any other peer.
package backend

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
	"flanneld/pkg/netconf"
)

// Backend is a way to carry packets between hosts.
type Backend interface {
	// MTU returns the MTU of the containers, bytes.
	MTU(h host.Facts) int
	// Attrs returns what this host publishes in its lease. previous are the
	// attributes of the lease that is being taken up again, or zero; others are
	// leases whose claims are not to be this host's as well.
	Attrs(h host.Facts, previous lease.Attrs, others []lease.Lease) (lease.Attrs, error)
	// Base returns what the kernel should hold whoever the peers are.
	Base(h host.Facts, own lease.Lease) dataplane.State
	// Accept reads a lease as that of a peer (newPeer), or says what is wrong with it;
	// errNoPeer: nobody needs to know.
	Accept(h host.Facts, l *lease.Lease) (Peer, error)
	// Add puts what a peer needs into s. No two peers need the same object.
	Add(s dataplane.State, h host.Facts, p Peer)
}

// Peer is a lease that was accepted, that of the view.
type Peer struct {
	*lease.Lease
	Claims []Claim // the public IP, and then those of the backend
}

// newPeer makes a peer of a lease, with what it claims in its backend.
func newPeer(l *lease.Lease, claims ...Claim) Peer {
	all := make([]Claim, 0, 1+len(claims))
	return Peer{l, append(append(all, publicIP{l.PublicIP}), claims...)}
}

// Claim is something that no two hosts of a network can have at the same time: an address, a
// MAC, a public key. Claims are the same if they are equal, so their types are comparable.
type Claim interface {
	Kind() string   // what it is, for people
	String() string // its value
}

// publicIP is the claim that every peer makes.
type publicIP struct{ netip.Addr }

func (publicIP) Kind() string { return "public IP" }

// errNoPeer is about a lease that is none of the backend's business.
var errNoPeer = errors.New("not a peer")

// Skipped is a peer that gets no entries, and why.
type Skipped struct {
	Subnets lease.Subnets
	lease.Fault
}

func skipped(l Peer, kind, detail string, args ...any) Skipped {
	return Skipped{l.Subnets, fault(kind, detail, args...)}
}

// fault makes a fault with a formatted detail.
func fault(kind, detail string, args ...any) lease.Fault {
	return lease.Fault{Kind: kind, Detail: fmt.Sprintf(detail, args...)}
}

// constructor reads a backend's options from the network config.
type constructor func(netconf.Config) (Backend, error)

// backends is filled by the init function of each backend's file.
var backends = map[string]constructor{}

// New makes the backend that the config names, with its options.
func New(c netconf.Config) (Backend, error) {
	make, ok := backends[c.BackendType]
	if !ok {
		return nil, fmt.Errorf("network config: Backend.Type: %q: must be one of %s", lease.Clip(c.BackendType), strings.Join(Types(), ", "))
	}
	b, err := make(c)
	if err != nil {
		return nil, fmt.Errorf("network config: %w", err)
	}
	return b, nil
}

// Types lists the backend types there are, sorted.
func Types() []string { return slices.Sorted(maps.Keys(backends)) }
