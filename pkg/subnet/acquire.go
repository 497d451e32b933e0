package subnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

const (
	// conflictPause bounds the wait after the n-th conflict in a row: n times this. With
	// fewConflicts, many hosts are there at once; with more, something is wrong, and the wait
	// grows faster, up to mostConflictPause.
	conflictPause     = 20 * time.Millisecond
	fewConflicts      = 20
	mostConflictPause = 10 * time.Second
)

func afterConflict(n int) time.Duration {
	most := time.Duration(min(n, fewConflicts)) * conflictPause
	for range min(n-fewConflicts, 20) {
		most += most / 2
	}
	return between(0, min(most, mostConflictPause))
}

// Acquire leases a subnet: the one that this host has, claims or is reserved, else
// the previous one, else a random free one. The listing is the one the choice
// was made from; it is older than the lease.
//
// A lease of this host at a former address is left to whoever lives at that address
// now, or has written it since: a machine cloned with its files is not the one that it
// was cloned from.
//
// While the registry is away, the pool is full, or other hosts are faster
// again and again, Acquire says so once and goes on. Errors are those of ctx and
// attrs.
func Acquire(ctx context.Context, o Options, attrs Attributes) (lease.Lease, registry.Listing, error) {
	q := newAcquisition(o, attrs)
	if o.Previous.IsValid() && !o.Pool.Fits(o.Previous) {
		o.Log.Warn("previous subnet does not fit the network config, ignoring it", "subnet", o.Previous, "network", o.Pool.Network)
	}
	for conflicts := 0; ; {
		l, listing, err := q.attempt(ctx)
		var theirs *attrsError
		var exhausted *exhaustedError
		delay := between(time.Second/2, time.Second)
		switch {
		case err == nil:
			return l, listing, nil
		case ctx.Err() != nil:
			return lease.Lease{}, registry.Listing{}, ctx.Err()
		case errors.As(err, &theirs):
			return lease.Lease{}, registry.Listing{}, theirs.err
		case errors.Is(err, registry.ErrConflict):
			if conflicts++; conflicts == 10 {
				q.once(slog.LevelWarn, "other hosts keep being faster, still trying to lease a subnet", "attempts", conflicts, "err", err)
			}
			delay = afterConflict(conflicts)
		case errors.As(err, &exhausted):
			q.wait(exhausted)
			conflicts = 0
			delay = exhaustedRetry()
		case errors.Is(err, registry.ErrDenied):
			q.away.end()
			q.Log.Debug("registry refuses to lease a subnet, trying again", "err", err)
			delay = between(lastRetry/2, lastRetry)
		default:
			q.away.begin(err)
		}
		if err := pause(ctx, delay); err != nil {
			return lease.Lease{}, registry.Listing{}, err
		}
	}
}

// acquisition is one call of Acquire, or a move of Follow's to another subnet.
type acquisition struct {
	Options
	attrs   Attributes
	yielded netip.Prefix // not to be taken: another host has it, although perhaps with our public IP
	away    outage
	said    map[string]bool
}

func newAcquisition(o Options, attrs Attributes) *acquisition {
	return &acquisition{Options: o, attrs: attrs, away: outage{log: o.Log}, said: map[string]bool{}}
}

// exhaustedRetry is the time between attempts while no subnet is free.
func exhaustedRetry() time.Duration { return between(5*time.Second, 10*time.Second) }

func (q *acquisition) wait(e *exhaustedError) {
	q.once(slog.LevelError, "cannot lease a subnet, waiting for a free one", "err", e)
}

// once says something the first time that it is so.
func (q *acquisition) once(level slog.Level, msg string, args ...any) {
	if !q.said[msg] {
		q.said[msg] = true
		q.Log.Log(context.Background(), level, msg, args...)
	}
}

// attrsError is an error of the caller's own function.
type attrsError struct{ err error }

func (e *attrsError) Error() string { return e.err.Error() }

// exhaustedError: no subnet is free.
type exhaustedError struct {
	pool    lease.Pool
	leased  int
	avoided []netip.Prefix // what keeps this host from the free ones, if there are any
}

func (e *exhaustedError) Error() string {
	if len(e.avoided) > 0 {
		return fmt.Sprintf("no subnet can be used: network %s has %d subnets of length %d (%s to %s), %d are leased, and each of the others overlaps "+
			"a network or an address that this host or a peer has, such as %s; set SubnetMin and SubnetMax in the network config to where nobody is",
			e.pool.Network, e.pool.Size(), e.pool.SubnetLen, e.pool.Min, e.pool.Max, e.leased, examples(e.avoided))
	}
	return fmt.Sprintf("out of subnets: network %s has %d subnets of length %d (%s to %s), and %d leases leave none of them free; "+
		"delete the leases of hosts that are gone, or make room in the network config (SubnetLen, SubnetMin, SubnetMax)",
		e.pool.Network, e.pool.Size(), e.pool.SubnetLen, e.pool.Min, e.pool.Max, e.leased)
}

// examples names the widest few of prefixes.
func examples(prefixes []netip.Prefix) string {
	sorted := slices.Clone(prefixes)
	slices.SortFunc(sorted, func(a, b netip.Prefix) int { return cmp.Or(a.Bits()-b.Bits(), lease.ComparePrefix(a, b)) })
	sorted = slices.Compact(sorted)
	var names []string
	for _, p := range sorted[:min(len(sorted), 3)] {
		names = append(names, p.String())
	}
	return strings.Join(names, ", ")
}

// attempt lists, chooses and writes once.
func (q *acquisition) attempt(ctx context.Context) (lease.Lease, registry.Listing, error) {
	listing, err := q.Registry.List(ctx)
	if err != nil {
		return lease.Lease{}, listing, err
	}
	q.away.end()
	mine, ok := q.mine(ctx, listing)
	if !ok {
		if mine, ok, err = q.original(ctx, listing); err != nil {
			return lease.Lease{}, listing, err
		}
	}
	previous := mine.Attrs
	previous.Leaving = false // who gave it up did not get to the end, and is here again
	a, err := q.attrs(previous, q.others(listing, mine, ok))
	if err != nil {
		return lease.Lease{}, listing, &attrsError{err}
	}
	a.PublicIP = q.PublicIP
	if ok {
		l, err := q.reuse(ctx, mine, a)
		return l, listing, err
	}
	if err := q.clear(ctx, &listing); err != nil {
		return lease.Lease{}, listing, err
	}
	subnet, err := q.choose(ctx, listing)
	if err != nil {
		return lease.Lease{}, listing, err
	}
	claim := lease.Claim{Subnet: subnet, Held: a, Next: a}
	q.remember(claim)
	l, err := q.Registry.Create(ctx, subnet, a, q.TTL)
	if err == nil {
		claim.Revision = l.Revision
		q.remember(claim)
		q.Log.Info("allocated lease to current node", "subnet", l.Subnet, "public_ip", q.PublicIP)
	}
	return l, listing, err
}

// ours reports whether a lease is this host's: it has our address, or is the one that
// we wrote before we had that. The latter may be another host's now: see deserted.
func (q *acquisition) ours(l lease.Lease) bool {
	return l.Subnet != q.yielded && (l.PublicIP == q.PublicIP || q.Claim.Matches(l))
}

// probeTime bounds the search for a host that lives at a former address of this one.
const probeTime = time.Second

// deserted reports whether nobody but this host can have a lease that it wrote. One
// with another address is somebody else's if it was written since, or if the address
// answers; when in doubt it is, for a new subnet costs less than one that two have.
func (q *acquisition) deserted(ctx context.Context, l lease.Lease) bool {
	if l.PublicIP == q.PublicIP {
		return true
	}
	evidence := ""
	switch {
	case q.Claim.WrittenSince(l):
		evidence = "the lease was written since"
	case q.Probe != nil:
		ctx, cancel := context.WithTimeout(ctx, probeTime)
		evidence = q.Probe(ctx, l.PublicIP)
		cancel()
	}
	if evidence != "" && ctx.Err() == nil {
		if l.Subnet == q.Previous {
			q.Previous = netip.Prefix{} // and that is all there is to say of it
		}
		q.once(slog.LevelError, "the lease of this host's former address belongs to another host, which this one may be a copy of: leasing a new subnet",
			"subnet", l.Subnet, "former", l.PublicIP, "public_ip", q.PublicIP, "reason", evidence)
	}
	return evidence == ""
}

// mine gives the lease to take up again. Of several, the one where this host's
// containers are goes first, which subnet.env tells, or else the claim; then what an
// operator reserved, then the oldest.
func (q *acquisition) mine(ctx context.Context, listing registry.Listing) (lease.Lease, bool) {
	var fit []lease.Lease
	for _, l := range listing.Leases {
		if q.ours(l) && q.fits(l.Subnet) {
			fit = append(fit, l)
		}
	}
	rank := func(l lease.Lease) int {
		switch {
		case l.Subnet == q.Previous:
			return 0
		case q.Claim.Matches(l):
			return 1
		case l.Reservation():
			return 2
		}
		return 3
	}
	slices.SortFunc(fit, func(a, b lease.Lease) int {
		return cmp.Or(rank(a)-rank(b), cmp.Compare(a.Created, b.Created), lease.ComparePrefix(a.Subnet, b.Subnet))
	})
	for _, l := range fit {
		if q.deserted(ctx, l) {
			return l, true
		}
	}
	return lease.Lease{}, false
}

// original gives a lease that this host had at another address, and that no claim of
// ours tells of, since the original wrote it: the one of the previous subnet, known by
// what no other host publishes, such as the MAC of a device.
func (q *acquisition) original(ctx context.Context, listing registry.Listing) (lease.Lease, bool, error) {
	at := slices.IndexFunc(listing.Leases, func(l lease.Lease) bool { return l.Subnet == q.Previous && q.fits(l.Subnet) })
	if at < 0 || q.ours(listing.Leases[at]) {
		return lease.Lease{}, false, nil
	}
	l := listing.Leases[at]
	a, err := q.attrs(lease.Attrs{}, nil)
	if err != nil {
		return lease.Lease{}, false, &attrsError{err}
	}
	same := l.BackendType == a.BackendType && l.BackendData == a.BackendData && a.BackendData != ""
	if !same || !q.deserted(ctx, l) {
		return lease.Lease{}, false, nil
	}
	return l, true, nil
}

// others gives the leases of other hosts that keep what both they and this host claim:
// all of them, or those older than the lease that is taken up.
func (q *acquisition) others(listing registry.Listing, mine lease.Lease, reuse bool) []lease.Lease {
	return slices.DeleteFunc(slices.Clone(listing.Leases), func(l lease.Lease) bool {
		return l.PublicIP == q.PublicIP || l.Subnet == mine.Subnet || reuse && mine.Precedes(l)
	})
}

// reuse renews a lease that this host already has; a reservation stays one.
func (q *acquisition) reuse(ctx context.Context, mine lease.Lease, a lease.Attrs) (lease.Lease, error) {
	ttl := q.TTL
	if mine.Reservation() {
		ttl = 0
	}
	claim := lease.Claim{Subnet: mine.Subnet, Held: mine.Attrs, Next: a, Former: q.former(mine, a)}
	claim.Held.Leaving = false
	q.remember(claim)
	l, err := q.Registry.Update(ctx, mine, a, ttl)
	if err == nil {
		claim.Held, claim.Revision = a, l.Revision
		q.remember(claim)
	}
	switch {
	case err != nil:
	case mine.PublicIP == q.PublicIP:
		q.Log.Info("found lease for current IP, reusing", "subnet", l.Subnet, "public_ip", q.PublicIP, "reservation", l.Reservation())
	default:
		q.Log.Info("found lease of this host at a former address, reusing", "subnet", l.Subnet, "public_ip", q.PublicIP, "former", mine.PublicIP, "reservation", l.Reservation())
	}
	return l, err
}

// fits reports whether a subnet can be this host's.
func (q *acquisition) fits(subnet netip.Prefix) bool {
	if !q.Pool.Fits(subnet) {
		return false
	}
	if q.Needed == nil {
		return true
	}
	reason := q.Needed(subnet)
	if reason != "" {
		q.once(slog.LevelError, "a subnet of this host contains an address that it needs itself, leasing another", "subnet", subnet, "reason", reason)
	}
	return reason == ""
}

// clear releases the leases of this host that it cannot use, as those that do not fit the
// network config any more. A reservation is the operator's and stays.
func (q *acquisition) clear(ctx context.Context, listing *registry.Listing) error {
	for _, l := range slices.Clone(listing.Leases) {
		// One that fits and was not taken up is another host's.
		if !q.ours(l) || q.fits(l.Subnet) || !q.deserted(ctx, l) {
			continue
		}
		if l.Reservation() && q.Pool.Fits(l.Subnet) {
			continue // that was said
		}
		if l.Reservation() {
			q.once(slog.LevelWarn, "reservation for this host does not fit the network config, ignoring it", "subnet", l.Subnet, "network", q.Pool.Network)
			continue
		}
		if err := q.Registry.Release(ctx, l); err != nil {
			return err
		}
		q.Log.Info("released lease of this host that it cannot use", "subnet", l.Subnet, "network", q.Pool.Network)
		listing.Leases = slices.DeleteFunc(listing.Leases, func(x lease.Lease) bool { return x.Subnet == l.Subnet })
	}
	return nil
}

// choose gives the previous subnet if it is free, else a random free one that is in nobody's
// way: neither this host's nor that of a peer, whose address would not be reached any more.
func (q *acquisition) choose(ctx context.Context, listing registry.Listing) (netip.Prefix, error) {
	taken := make([]netip.Prefix, 0, 2*len(listing.Leases))
	take := func(subnet netip.Prefix) {
		// Whatever is not a part of the network is no host's, and must not
		// keep hosts out of it.
		if q.Pool.Network.Contains(subnet.Addr()) && subnet.Bits() > q.Pool.Network.Bits() {
			taken = append(taken, subnet)
		}
	}
	for _, l := range listing.Leases {
		take(l.Subnet)
	}
	for _, b := range listing.Bad {
		take(b.Subnet) // nobody knows whose, but somebody's
	}
	if q.fits(q.Previous) {
		switch previous := q.Previous; {
		case slices.ContainsFunc(taken, previous.Overlaps):
			q.once(slog.LevelError, "previous subnet is leased by another host now, taking a new one", "subnet", previous)
		case q.free(ctx):
			return previous, nil
		default:
			q.yielded = previous
		}
	}
	leased := len(taken)
	take(q.yielded)
	take(address(q.PublicIP))
	for _, l := range listing.Leases {
		take(address(l.PublicIP))
	}
	if q.Avoid != nil {
		avoid, err := q.Avoid()
		if err != nil {
			return netip.Prefix{}, &attrsError{err}
		}
		for _, p := range avoid {
			take(p)
		}
	}
	subnet, ok := q.Pool.Pick(taken, rand.Uint64N)
	if ok {
		return subnet, nil
	}
	e := exhaustedError{pool: q.Pool, leased: leased}
	if _, free := q.Pool.Pick(taken[:leased], rand.Uint64N); free {
		e.avoided = taken[leased:]
	}
	return netip.Prefix{}, &e
}

// free reports whether the previous subnet, which nobody leases, is left to this host. It is
// not where whoever lives at this host's former address still uses it, although etcd has lost
// the lease or it has expired.
func (q *acquisition) free(ctx context.Context) bool {
	if q.Claim.Subnet != q.Previous || !q.Claim.Held.PublicIP.IsValid() {
		return true
	}
	return q.deserted(ctx, lease.Lease{Subnet: q.Previous, Attrs: q.Claim.Held})
}

// address is the prefix of one address; that of none is invalid and in no network.
func address(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
