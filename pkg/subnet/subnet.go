// Package subnet turns a registry into what the rest of the daemon needs. It waits for the network
// config (WaitConfig) and follows it (FollowConfig); it leases a subnet for this host, keeps that
// lease and says who else is in the network (Follow); and it gives the lease up (Release).
//
// It knows no etcd and no kernel; what a View means is for package backend.
//
// Invariant: a registry that is away, wiped or full of nonsense changes nothing. No view is emitted
// that is not backed by an answer, and the own subnet is given up only when somebody else is seen
// to hold it.
//
// Invariant: the goroutine of Follow waits for nothing but its next input. It makes no call of the
// registry itself, not even with a deadline: of an etcd that accepts connections and does not
// answer, the shortest call, a Get, takes five seconds for each endpoint, and a listing two
// minutes. Meanwhile peers come and go, the grace of deleted leases ends, and the uplink gets
// another address. A call is made by a goroutine that ends with it, and its result is an input.
// At most two are under way: one that follows the network (Watch, or the Get or List between two
// of them), and a step for the own lease, which is a few calls in a row (see ownLease). What reads
// the kernel, asks another host or writes a file (Attrs, Avoid, Needed, Probe, Remember of Options)
// is called within a step.
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

// Options say which network this host is in and who it is there.
type Options struct {
	Registry   registry.Registry
	Pool       lease.Pool
	PublicIP   netip.Addr    // a lease with exactly this one is ours
	Claim      lease.Claim   // of the last run: its lease is ours too, unless another host has it; zero if there was none
	Previous   netip.Prefix  // the IPv4 subnet of the last run, invalid if there was none
	TTL        time.Duration // of leases; flannel's is 24 h
	Margin     time.Duration // a lease is renewed this long before it expires
	Log        *slog.Logger
	Conditions *condition.List // NoSubnet

	// Attrs returns what to publish in the first lease. previous is what the lease that is taken
	// up again said, zero if there is none; others are leases of other hosts that keep what is
	// theirs, such as the MAC of a device. PublicIP need not be set. An error that is no
	// ErrTryAgain ends Follow.
	Attrs func(previous lease.Attrs, others []lease.Lease) (lease.Attrs, error)

	// Avoid, if set, returns what no subnet that is chosen anew may overlap: what this
	// host reaches in another way, and its own addresses. What it has it keeps. Errors are as
	// those of Attrs.
	Avoid func() ([]netip.Prefix, error)

	// Needed, if set, says what this host needs itself at an address of a subnet and reaches
	// in another way, "" if there is nothing. It would be cut off if the subnet were its own,
	// so it takes up no such lease, be it reserved.
	Needed func(netip.Prefix) string

	// Probe, if set, finds out whether another host has an address, until ctx ends: a
	// lease at a former address of this host is not taken from whoever lives there now.
	// It returns what shows that somebody does, or why that cannot be found out, and ""
	// where nobody answers.
	Probe func(ctx context.Context, addr netip.Addr) (evidence string)

	// Terms, if set, tells on what terms the lease is held from now on.
	Terms <-chan Terms

	// Remember, if set, is told, before the lease is written, what the next run's Claim is to be.
	Remember func(lease.Claim)

	// Report, if set, is told when something in Stats changed. It must not block.
	Report func(Stats)

	// Alive, if set, is called again and again, at least once a minute, as long as Follow works
	// and no call that it made takes longer than that. It must not block.
	Heartbeat func()
}

// ErrTryAgain is in an error of Options.Attrs and Options.Avoid that may pass.
var ErrTryAgain = errors.New("try again")

// NoSubnet is the ID of the condition that this host waits for a subnet to become free.
const NoSubnet = "no-subnet"

// Terms are what may change while a lease is held, or waited for: what it publishes, as when
// the uplink gets another address, and what the network config says of leases. A
// subnet that the new pool does not have is kept until it is lost.
type Terms struct {
	Attrs lease.Attrs // of no use before there is a lease: see Options.Attrs
	Pool  lease.Pool
	TTL   time.Duration
}

// adopted returns the Former of the claim on a lease that is taken up and said was.
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

// randomBetween returns a random duration in [low, high), so that hosts which were
// stopped by the same event don't go on in step.
func randomBetween(low, high time.Duration) time.Duration { return low + rand.N(high-low) }
