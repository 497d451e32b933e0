// Package subnet connects the daemon to a registry. It waits for the network config (WaitConfig)
// and follows it (FollowConfig). It leases a subnet for this host, maintains that lease and reports
// all other hosts of the network (Follow). And it releases the lease (Release).
//
// It is independent of etcd and the kernel. The meaning of a View is defined by package backend.
//
// Invariant: a registry that is unreachable, wiped or full of invalid data changes nothing. A view
// is emitted only after an answer of the registry, and the own subnet is given up only if another
// host is seen to have it.
//
// Invariant: the goroutine of Follow blocks only for its next input. It never calls the registry
// itself, not even with a deadline: if etcd accepts connections but does not answer, the shortest
// call, a Get, takes five seconds per endpoint, and a listing takes two minutes. During that time
// peers come and go, the grace period of deleted leases ends, and the uplink may get another
// address. So each call runs in its own goroutine, and its result is an input. There are at most
// two at a time: one that follows the network (Watch, or the Get or List between two of them), and
// a step for the own lease, which is a short sequence of calls (see ownLease). Functions of Options
// that read the kernel, query another host or write a file (Attrs, Avoid, Needed, Probe, Remember)
// are called within a step.
package subnet

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// Options define the network and the identity of this host.
type Options struct {
	Registry   registry.Registry
	Pool       lease.Pool
	PublicIP   netip.Addr    // a lease with this address is ours
	Claim      lease.Claim   // of the last run; its lease is ours too, unless another host has it; zero if there was none
	Previous   netip.Prefix  // IPv4 subnet of the last run; invalid if there was none
	TTL        time.Duration // of leases; 24 h in flannel
	Margin     time.Duration // time before expiry at which a lease is renewed
	Log        *slog.Logger
	Conditions *condition.List // NoSubnet

	// Attrs returns the attributes of the first lease. previous has the attributes of the lease
	// that is reused, or zero. others are leases of other hosts that win conflicts of claims, such
	// as the MAC of a device. PublicIP need not be set. An error other than ErrTryAgain ends
	// Follow.
	Attrs func(previous lease.Attrs, others []lease.Lease) (lease.Attrs, error)

	// Avoid, if set, returns prefixes that a new subnet must not overlap: networks that this host
	// reaches without the overlay, and its own addresses. An existing subnet is kept. Errors are
	// handled as those of Attrs.
	Avoid func() ([]netip.Prefix, error)

	// Needed, if set, returns a description of an address in a subnet that this host needs outside
	// the overlay, or "". It would become unreachable if the subnet were the host's own, so such a
	// lease is not used, even if it is a reservation.
	Needed func(netip.Prefix) string

	// Probe, if set, checks until ctx ends whether another host has an address, so that a lease
	// with a previous address of this host is not taken from the host that has the address now. It
	// returns the evidence for that, or the reason why it cannot be determined, or "" if no host
	// answers.
	Probe func(ctx context.Context, addr netip.Addr) (evidence string)

	// Terms, if set, has changes of the terms of the lease.
	Terms <-chan Terms

	// Remember, if set, is called before the lease is written, with the Claim for the next run.
	Remember func(lease.Claim)

	// Report, if set, is called when Stats have changed. It must not block.
	Report func(Stats)

	// Heartbeat, if set, is called repeatedly, at least once a minute, as long as Follow works and
	// none of its calls takes longer than that. It must not block.
	Heartbeat func()
}

// ErrTryAgain is wrapped by errors of Options.Attrs and Options.Avoid that may be temporary.
var ErrTryAgain = errors.New("try again")

// NoSubnet is the ID of the condition that this host is waiting for a free subnet.
const NoSubnet = "no-subnet"

// Terms are what may change while a lease is held or waited for: its attributes, for example when
// the uplink gets another address, and the settings for leases in the network config. A subnet
// outside a new pool is kept until it is lost.
type Terms struct {
	Attrs lease.Attrs // ignored before there is a lease: see Options.Attrs
	Pool  lease.Pool
	TTL   time.Duration
}

// adopted returns the Adopted attributes for the claim on the reused lease was, which gets the
// attributes a.
func (o Options) adopted(was lease.Lease, a lease.Attrs) lease.Attrs {
	was.Leaving = false
	switch {
	case was.PublicIP == a.PublicIP && was.Subnets == o.Claim.Subnets && o.Claim.Adopted != (lease.Attrs{}):
		return o.Claim.Adopted
	case was.Attrs != a:
		return was.Attrs
	}
	return lease.Attrs{}
}

func (o Options) remember(c lease.Claim) {
	if o.Remember != nil {
		o.Remember(c)
	}
}

// randomBetween returns a random duration in [low, high), so that hosts stopped by the same event
// do not continue in lockstep.
func randomBetween(low, high time.Duration) time.Duration { return low + rand.N(high-low) }
