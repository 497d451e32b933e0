// Package subnet turns a registry into what the rest of the daemon needs: it
// waits for the network config (WaitConfig), leases a subnet for this host
// (Acquire), keeps that lease and says who else is in the network (Follow), and
// gives it up (Release).
//
// It knows no etcd and no kernel; what a View means is for package backend.
//
// Invariant: a registry that is away, wiped or full of nonsense changes
// nothing: no view is emitted that is not backed by an answer, and the own
// subnet is given up only when somebody else is seen to hold it.
package subnet

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// Options say which network this host is in and who it is there.
type Options struct {
	Registry registry.Registry
	Pool     lease.Pool
	PublicIP netip.Addr    // a lease with exactly this one is ours
	Claim    lease.Claim   // of the last run: its lease is ours too, unless another host has it; zero if there was none
	Previous netip.Prefix  // the subnet of the last run, invalid if there was none
	TTL      time.Duration // of leases; flannel's is 24 h
	Margin   time.Duration // a lease is renewed this long before it expires
	Log      *slog.Logger

	// Avoid, if set, returns what no subnet that is chosen anew may overlap: what this
	// host reaches in another way, and its own addresses. What it has it keeps.
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

	// Terms, if set, tells Follow on what terms the lease is held from now on.
	Terms <-chan Terms

	// Remember, if set, is told by Acquire and Follow, before they write to the lease,
	// what the next run's Claim is to be.
	Remember func(lease.Claim)

	// Report, if set, is told by Follow when something in Status changed. It
	// must not block.
	Report func(Status)
}

// Terms are what may change while a lease is held: what it publishes, as when
// the uplink gets another address, and what the network config says of leases. A
// subnet that the new pool does not have is kept until it is lost.
type Terms struct {
	Attrs lease.Attrs
	Pool  lease.Pool
	TTL   time.Duration
}

// Attributes returns what to publish in a lease. previous is what the lease that is
// taken up again said, zero if there is none; others are leases of other hosts that
// keep what is theirs, such as the MAC of a device. PublicIP need not be set.
type Attributes func(previous lease.Attrs, others []lease.Lease) (lease.Attrs, error)

// former returns the Former of the claim on a lease that is taken up and said was.
func (o Options) former(was lease.Lease, a lease.Attrs) lease.Attrs {
	was.Leaving = false
	switch {
	case was.PublicIP == a.PublicIP && was.Subnet == o.Claim.Subnet && o.Claim.Former != (lease.Attrs{}):
		return o.Claim.Former
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

// Status is how Follow fares, for metrics and for people.
type Status struct {
	Own       lease.Lease // as last written or read, with its present expiry
	Leases    int         // in the registry, ours included
	Bad       int         // entries that cannot be decoded
	Moves     int         // subnets lost to other hosts since the start
	AwaySince time.Time   // since when the registry has not answered; zero while it does
}

const (
	// An outage that lasts for patience may be of another cause than the one
	// that began it, as when etcd comes back with a certificate that nobody
	// trusts.
	patience = 3 * time.Second
	// mostCauses bounds how many of them are said of one outage.
	mostCauses = 4
)

// outage says once that the registry is away and once that it is back, and in
// between whatever else it is away for.
type outage struct {
	log    *slog.Logger
	since  time.Time
	causes []string // that were said
}

func (o *outage) active() bool { return !o.since.IsZero() }

func (o *outage) begin(err error) {
	switch c := cause(err); {
	case errors.Is(err, registry.ErrDenied):
		if !o.active() {
			o.since, o.causes = time.Now(), nil
		}
		o.log.Debug("registry refuses to be read, trying again", "err", err)
	case !o.active():
		o.since, o.causes = time.Now(), []string{c}
		o.log.Warn("registry does not answer, waiting for it", "err", err)
	case time.Since(o.since) < patience || len(o.causes) == mostCauses || slices.Contains(o.causes, c):
		o.log.Debug("registry still does not answer", "err", err)
	default:
		o.causes = append(o.causes, c)
		o.log.Warn("registry still does not answer, now for another reason", "err", err)
	}
}

// cause is the innermost reason that an error gives, without numbers: ports and
// times are others each time.
func cause(err error) string {
	text := err.Error()
	return strings.Map(func(r rune) rune {
		if '0' <= r && r <= '9' {
			return -1
		}
		return r
	}, text[strings.LastIndex(text, ": ")+1:])
}

func (o *outage) end() {
	if o.active() && len(o.causes) > 0 {
		o.log.Info("registry answers again", "outage", time.Since(o.since).Round(time.Millisecond))
	}
	o.since = time.Time{}
}

// pause waits for d or the end of ctx, whose error it returns.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// between gives a random duration in [low, high), so that hosts which were
// stopped by the same event don't go on in step.
func between(low, high time.Duration) time.Duration { return low + rand.N(high-low) }
