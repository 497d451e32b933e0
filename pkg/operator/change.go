package operator

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/status"
)

// Change is the document of "leases reserve" and "leases release".
type Change struct {
	Version  int          `json:"version"`
	Subnet   netip.Prefix `json:"subnet"`
	PublicIP netip.Addr   `json:"public_ip"`
	Result   Result       `json:"result"`
	Notes    []string     `json:"notes"` // what else the operator should know
}

func newChange(subnet netip.Prefix, r Result) Change {
	return Change{Version: 1, Subnet: subnet, Result: r, Notes: []string{}}
}

func (c *Change) note(format string, args ...any) {
	c.Notes = append(c.Notes, fmt.Sprintf(format, args...))
}

// Result is what has become of a lease.
type Result string

// Results of a change.
const (
	Reserved  Result = "reserved"
	Unchanged Result = "unchanged" // it was reserved before
	Released  Result = "released"
)

// RefusedError is the error of a change that would harm a host, that makes no sense, or for which
// something is missing.
type RefusedError struct{ Err error }

// Error implements error.
func (e RefusedError) Error() string { return e.Err.Error() }

// Unwrap returns what is wrong.
func (e RefusedError) Unwrap() error { return e.Err }

// Refuse returns a RefusedError with a formatted text.
func Refuse(format string, args ...any) error { return RefusedError{fmt.Errorf(format, args...)} }

// Reserve makes the lease of a subnet one of a host that does not expire. The host takes it when
// flanneld starts there without another lease. Without a host, it is the one that has the lease.
func (n *Network) Reserve(ctx context.Context, subnet netip.Prefix, host netip.Addr) (Change, error) {
	ctx, cancel := context.WithTimeout(ctx, Limit)
	defer cancel()
	c := newChange(subnet, Reserved)
	config, err := n.valid()
	if err != nil {
		return c, err
	}
	listing, err := n.reg.List(ctx)
	if err != nil {
		return c, err
	}
	subnets := lease.SubnetsOf(subnet)
	for _, l := range listing.Leases {
		if l.Subnets == subnets && !host.IsValid() {
			host = l.PublicIP
		}
	}
	c.PublicIP = host
	switch pool := config.V4; {
	case !pool.Fits(subnet):
		return c, Refuse("%s: must be a subnet of length %d from %s to %s, as the network config has them", subnet, pool.SubnetLen, pool.Min, pool.Max)
	case !host.IsValid() || host.IsUnspecified():
		return c, Refuse("%s is not leased; --public-ip says for which host to reserve it", subnet)
	case !lease.IsHost(host):
		return c, Refuse("%s: must be the address of a host; others would skip its lease", host)
	case subnet.Contains(host):
		return c, Refuse("%s: must not be in the subnet %s, or the host could not be reached", host, subnet)
	}
	if err := c.occupied(listing, subnets); err != nil {
		return c, err
	}
	c.Result, err = n.reserve(ctx, subnets, host)
	return c, err
}

// occupied returns an error if another host may use a part of the subnet that is to be reserved for
// c.PublicIP. It notes another lease of that host.
func (c *Change) occupied(listing registry.Listing, subnets lease.Subnets) error {
	subnet := subnets.V4()
	slices.SortFunc(listing.Leases, func(a, b lease.Lease) int { return strings.Compare(lease.Key(a.Subnets), lease.Key(b.Subnets)) })
	for _, b := range listing.Invalid {
		switch read, is := originalSubnet(b.Key); {
		case b.Subnets.IsValid() && b.Subnets.V4().Overlaps(subnet):
			return Refuse("%s has an invalid entry, %w; its host may use it: release it with --yes first", b.Subnets, b.Err)
		case is && read.Overlaps(subnet):
			return Refuse("the key %s is not one of flanneld's, and some versions of flannel read it as a lease of %s: delete it with etcdctl first", status.Clean(b.Key), read)
		}
	}
	for _, l := range listing.Leases {
		switch own := l.PublicIP == c.PublicIP; {
		case l.Subnets.V4().Contains(c.PublicIP):
			return Refuse("%s is in the subnet %s, which is leased by %s, so other hosts could not reach it", c.PublicIP, l.Subnets.V4(), l.PublicIP)
		case l.Subnets == subnets && !own:
			return Refuse("%s is leased by %s", subnet, l.PublicIP)
		case l.Subnets != subnets && l.Subnets.V4() == subnet:
			return Refuse("%s is leased by %s, with another key: %s", subnet, l.PublicIP, lease.Key(l.Subnets))
		case l.Subnets != subnets && l.Subnets.V4().Overlaps(subnet):
			return Refuse("%s overlaps %s, which is leased by %s", subnet, l.Subnets.V4(), l.PublicIP)
		case l.Subnets != subnets && own && !l.Leaving:
			c.note("%s has a lease of %s and keeps that; to move it, stop flanneld there, release %[2]s, "+
				"remove the subnet file and the claim beside it on that host, and start flanneld", l.PublicIP, l.Subnets.V4())
		}
	}
	return nil
}

// originalKey is what versions of flannel up to 0.17 look for anywhere in a key.
const originalKey = `(\d+)\.(\d+).(\d+).(\d+)-(\d+)`

// originalSubnet returns the subnet that versions of flannel up to 0.17 read in a key.
func originalSubnet(key string) (netip.Prefix, bool) {
	m := regexp.MustCompile(originalKey).FindStringSubmatch(key)
	if m == nil {
		return netip.Prefix{}, false
	}
	var n [5]byte
	for i, digits := range m[1:] {
		v, err := strconv.ParseUint(digits, 10, 8)
		if err != nil {
			return netip.Prefix{}, false
		}
		n[i] = byte(v)
	}
	p, err := netip.AddrFrom4([4]byte(n[:4])).Prefix(int(n[4]))
	return p, err == nil
}

// reserve writes a reservation.
func (n *Network) reserve(ctx context.Context, subnets lease.Subnets, host netip.Addr) (Result, error) {
	ev, err := n.reg.Get(ctx, subnets)
	switch was := ev.Lease; {
	case err != nil:
		return "", err
	case ev.Deleted:
		_, err = n.reg.Create(ctx, subnets, lease.Attrs{PublicIP: host}, 0)
	case ev.Invalid != nil || was.PublicIP != host || was.Subnets != subnets:
		err = registry.ErrConflict
	case was.Leaving:
		return "", Refuse("%s is being released; try again in a few seconds", subnets)
	case was.Reservation():
		return Unchanged, nil
	default:
		_, err = n.reg.Update(ctx, was, was.Attrs, 0)
	}
	return Reserved, changed(subnets, err)
}

// changed returns the error of a write, in words if somebody else has written.
func changed(subnets lease.Subnets, err error) error {
	if errors.Is(err, registry.ErrConflict) {
		return Refuse("%s was changed meanwhile; look at it again", subnets)
	}
	return err
}

// Release ends the lease of a subnet, under whichever keys it has. Unless sure is set, it refuses to
// do so for a host that may be alive: that would restore its lease, and lose packets meanwhile. An
// invalid entry may be of any host.
//
// All keys end together: versions of flannel that see one IPv4 subnet in two of them remove the host
// when the first one ends.
func (n *Network) Release(ctx context.Context, subnet netip.Prefix, sure bool) (Change, error) {
	ctx, cancel := context.WithTimeout(ctx, Limit)
	defer cancel()
	c := newChange(subnet, Released)
	listing, err := n.reg.List(ctx)
	if err != nil {
		return c, err
	}
	var all []lease.Lease
	for _, l := range listing.Leases {
		if l.Subnets.V4() == subnet {
			all, c.PublicIP = append(all, l), l.PublicIP
		}
	}
	for _, b := range listing.Invalid {
		switch {
		case !b.Subnets.IsValid() || b.Subnets.V4() != subnet:
			continue
		case !sure:
			return c, Refuse("%s has an invalid entry, %w; a host may use it: --yes releases it", b.Subnets, b.Err)
		}
		all = append(all, lease.Lease{Subnets: b.Subnets, Revision: b.Revision})
	}
	if len(all) == 0 {
		if n.unread != nil {
			return c, Refuse("%s is not leased; %w", subnet, n.unread)
		}
		return c, Refuse("%s is not leased", subnet)
	}
	for _, l := range all {
		if sure || l.Leaving {
			continue
		}
		if why := n.alive(ctx, l.PublicIP); why != "" {
			return c, Refuse("%s: %s, and a flanneld that runs there would restore its lease; stop it and use --yes", subnet, why)
		}
	}
	for _, l := range all {
		if l.Leaving {
			continue
		}
		if err := n.reg.Release(ctx, l); err != nil {
			return c, changed(l.Subnets, err)
		}
	}
	return c, nil
}
