package doctor

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/store"
	"flanneld/pkg/status"
)

// leaseChecks returns the checks of this host's lease and of what hosts know of each other.
func leaseChecks() []Check {
	return []Check{
		{ID: "FL-LEASE-MISSING", Rank: rankLease, Run: checkLeaseThere, Explains: []string{"start/"}},
		{ID: "FL-LEASE-TAKEN", Rank: rankLease - 1, Run: checkLeaseOurs},
		{ID: "FL-LEASE-OVERDUE", Rank: rankLease + 3, Run: checkLeaseRenewed},
		{ID: "FL-LEASE-INVALID", Rank: rankLease + 5, Run: checkLeasesValid},
		{ID: "FL-POOL-FULL", Rank: rankLease - 2, Run: checkPool, Explains: []string{"no-subnet"}},
		{ID: "FL-VIEW-STALE", Rank: rankLease + 4, Run: checkView, Explains: []string{status.StoreDown}},
		{ID: "FL-ALONE", Rank: rankLease + 6, Run: checkAlone},
	}
}

// leases returns the store of this host's network, or the reason why its leases are not known.
func (in *Inputs) leases(ctx context.Context) (*Store, error) {
	all, err := in.Endpoints.Get(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot ask etcd: %w", err)
	}
	s := in.store(ctx, all)
	switch {
	case s == nil:
		return nil, fmt.Errorf("no network is known in etcd")
	case s.LeasesErr != nil:
		return nil, fmt.Errorf("the leases cannot be listed: %w", s.LeasesErr)
	}
	return s, nil
}

// own is this host's lease, as this host knows it.
type own struct {
	subnet   netip.Prefix
	publicIP netip.Addr // invalid if it is not known
}

// own returns the lease that this host should have: that of the daemon, else that of its files.
func (in *Inputs) own(ctx context.Context) (o own, err error) {
	d, derr := in.Status.Get(ctx)
	if derr == nil {
		o.subnet, o.publicIP = d.Lease.Subnet, d.Uplink.PublicIP
	}
	claim, cerr := in.Claim.Get(ctx)
	if !o.subnet.IsValid() && (derr != nil || d.Daemon.Ready) && cerr == nil {
		o.subnet = claim.Subnets.V4()
	}
	if !o.publicIP.IsValid() && cerr == nil && claim.Subnets.V4() == o.subnet {
		o.publicIP = cmp.Or(claim.Next.PublicIP, claim.Held.PublicIP)
	}
	if o.subnet.IsValid() {
		return o, nil
	}
	if derr == nil {
		return o, fmt.Errorf("the daemon has no lease")
	}
	return o, fmt.Errorf("no lease of this host is known")
}

// leasesAndOwn returns the store of the network, and the lease that this host should have.
func (in *Inputs) leasesAndOwn(ctx context.Context) (*Store, own, error) {
	s, err := in.leases(ctx)
	if err != nil {
		return nil, own{}, err
	}
	o, err := in.own(ctx)
	return s, o, err
}

// find returns the lease of a subnet.
func find(s *Store, subnet netip.Prefix) (lease.Lease, bool) {
	i := slices.IndexFunc(s.Leases, func(l lease.Lease) bool { return l.Subnets.V4() == subnet })
	if i < 0 {
		return lease.Lease{}, false
	}
	return s.Leases[i], true
}

// checkLeaseThere fails if the lease of this host is not in the store: other hosts do not send to
// it.
func checkLeaseThere(ctx context.Context, in *Inputs) Result {
	s, o, err := in.leasesAndOwn(ctx)
	if err != nil {
		return unknownf("%v", err)
	}
	if _, there := find(s, o.subnet); there {
		return okf("the lease of %s is in etcd", o.subnet)
	}
	if slices.ContainsFunc(s.Invalid, func(e registry.InvalidEntry) bool { return e.Subnets.V4() == o.subnet }) {
		return okf("the key of %s is in etcd, but damaged: see FL-LEASE-INVALID", o.subnet)
	}
	return failf("systemctl restart flanneld", "this host's lease of %s is not in etcd (%s API, %s), so other hosts do not send to it", o.subnet, s.API, dirOf(s))
}

// dirOf returns the prefix of a store's keys of leases.
func dirOf(s *Store) string { return strings.TrimSuffix(s.Key, "config") + "subnets" }

// checkLeaseOurs fails if another host has the subnet of this one.
func checkLeaseOurs(ctx context.Context, in *Inputs) Result {
	s, o, err := in.leasesAndOwn(ctx)
	if err != nil {
		return unknownf("%v", err)
	}
	const remedy = "systemctl restart flanneld docker # leases another subnet"
	if d, err := in.Status.Get(ctx); err == nil && d.Lease.Lost {
		return failf(remedy, "another host has taken this host's subnet %s", o.subnet)
	}
	l, there := find(s, o.subnet)
	switch {
	case !there:
		return unknownf("there is no lease of %s in etcd", o.subnet)
	case !o.publicIP.IsValid():
		return unknownf("the public IP of this host is not known")
	case l.PublicIP != o.publicIP:
		return failf(remedy, "the lease of this host's subnet %s names another host, %s instead of %s", o.subnet, l.PublicIP, o.publicIP)
	}
	return okf("the lease of %s names this host, %s", o.subnet, o.publicIP)
}

// checkLeaseRenewed fails if a renewal of the lease is overdue: it would expire, and the subnet
// could be given to another host.
func checkLeaseRenewed(ctx context.Context, in *Inputs) Result {
	l, err := in.OwnLease.Get(ctx)
	if err != nil {
		return unknownf("the lease cannot be read: %v", err)
	}
	if l.Reservation() {
		return okf("the lease of %s is a reservation, which never expires", l.Subnets)
	}
	left := l.Expires.Sub(in.Now).Round(time.Second)
	o, err := in.Overlay.Get(ctx)
	if err != nil || o.Config == nil {
		return unknownf("the lease of %s expires in %s; the config, which says when it is renewed, is not known", l.Subnets, left)
	}
	if least := renewedAt(o.Config.LeaseTTL, in.Options.RenewMargin); left < least*4/5-5*time.Second {
		return failf("systemctl restart flanneld; journalctl -u flanneld -n 50", "the lease of %s was not renewed in time: it expires in %s, and is renewed when %s are left", l.Subnets, left, least)
	}
	return okf("the lease of %s expires in %s, and is renewed before", l.Subnets, left)
}

// renewedAt returns the least time that is left of a lease when it is renewed, as package subnet
// does it.
func renewedAt(ttl, margin time.Duration) time.Duration {
	return min(margin, ttl-min(time.Minute, ttl/2))
}

// checkLeasesValid fails if there are entries below subnets/ that no host can use.
func checkLeasesValid(ctx context.Context, in *Inputs) Result {
	s, err := in.leases(ctx)
	if err != nil {
		return unknownf("%v", err)
	}
	if len(s.Invalid) == 0 {
		return okf("all %d leases can be decoded", len(s.Leases))
	}
	e := s.Invalid[0]
	return failf(in.command(s.API, deleteVerb(s.API), dirOf(s)+"/"+e.Key)+" # a daemon that runs writes its lease again",
		"the values of %d of %d entries below %s cannot be used, such as %s: %v", len(s.Invalid), len(s.Invalid)+len(s.Leases), dirOf(s), e.Key, e.Err)
}

// checkPool fails if all subnets are leased and this host has none.
func checkPool(ctx context.Context, in *Inputs) Result {
	d, err := in.Status.Get(ctx)
	if err == nil && d.Lease.Subnet.IsValid() {
		return okf("this host has a subnet")
	}
	s, err := in.leases(ctx)
	if err != nil {
		return unknownf("%v", err)
	}
	n, err := backend.ParseNetwork(s.Config)
	if err != nil {
		return unknownf("the network config is invalid")
	}
	used := uint64(0)
	for _, l := range s.Leases {
		if n.V4.Fits(l.Subnets.V4()) {
			used++
		}
	}
	if used >= n.V4.Size() {
		if o, err := in.own(ctx); err == nil {
			return okf("all %d subnets are leased, one of them, %s, by this host", used, o.subnet)
		}
		return failf("delete leases of hosts that are gone, or use a larger Network or a longer SubnetLen", "all %d subnets between %s and %s are leased", used, n.V4.Min, n.V4.Max)
	}
	return okf("%d of %d subnets are leased", used, n.V4.Size())
}

// staleAge is the age of a daemon's view of the network from which on it is stale. etcd confirms it
// at least each minute.
const staleAge = 3 * time.Minute

// checkView fails if the daemon does not know the hosts that are in the store.
func checkView(ctx context.Context, in *Inputs) Result {
	d, err := in.Status.Get(ctx)
	if err != nil {
		return unknownf("the daemon cannot be asked which hosts it knows: %v", err)
	}
	s, err := in.leases(ctx)
	if err != nil {
		return unknownf("%v", err)
	}
	const remedy = "systemctl restart flanneld; journalctl -u flanneld -n 50"
	if d.Store.Up != nil && !*d.Store.Up && d.Store.API != "" && string(s.API) == d.Store.API {
		return failf(remedy, "etcd answers the doctor, and not the daemon: its view of the network is %s old", age(d.Store.ViewAge))
	}
	if d.Store.ViewAge != nil && *d.Store.ViewAge > staleAge.Seconds() {
		return failf(remedy, "the daemon's view of the network is %s old", age(d.Store.ViewAge))
	}
	if d.Store.ViewAge == nil {
		return unknownf("the daemon has no view of the network yet")
	}
	if text := differ(d, s); text == "" {
		return okf("the daemon knows the %d other hosts that are in etcd", len(d.Peers))
	}
	later, err := in.Later.Get(ctx)
	if err != nil {
		return unknownf("the daemon cannot be asked again: %v", err)
	}
	if text := differ(later, s); text != "" {
		return failf(remedy, "%s", text)
	}
	return okf("the daemon knows the %d other hosts that are in etcd", len(later.Peers))
}

func age(seconds *float64) string {
	if seconds == nil {
		return "an unknown time"
	}
	return time.Duration(*seconds * float64(time.Second)).Round(time.Second).String()
}

// differ returns the difference between the daemon's peers and the leases in a store, or "". The
// daemon retains leases that are gone for a short time; that is no difference.
func differ(d status.Document, s *Store) string {
	known := make(map[netip.Prefix]bool, len(d.Peers))
	for i := range d.Peers {
		known[d.Peers[i].Subnet] = true
	}
	var missing []lease.Lease
	for _, l := range s.Leases {
		if !l.Leaving && l.Subnets.V4() != d.Lease.Subnet && !known[l.Subnets.V4()] {
			missing = append(missing, l)
		}
	}
	if len(missing) > 0 {
		return fmt.Sprintf("the daemon does not know %d of %d hosts in etcd: %s", len(missing), len(s.Leases), names(missing))
	}
	return ""
}

// checkAlone is unknown if no other host has a lease: that may be right.
func checkAlone(ctx context.Context, in *Inputs) Result {
	all, err := in.Endpoints.Get(ctx)
	if err != nil {
		return unknownf("cannot ask etcd: %v", err)
	}
	s, o, err := in.leasesAndOwn(ctx)
	if err != nil {
		return unknownf("%v", err)
	}
	others := 0
	for _, l := range s.Leases {
		if l.Subnets.V4() != o.subnet {
			others++
		}
	}
	switch {
	case others > 0:
		return okf("%d other hosts have leases", others)
	case loopback(all):
		return unknownf("no other host has a lease; if there are other hosts, they use another etcd than that of this host, %s, or another prefix or API", urls(all))
	}
	return unknownf("no other host has a lease; if there are other hosts, they use another etcd, prefix or API than %s, %s, %s", urls(all), in.Options.Etcd.Prefix, s.API)
}

// readOwnLease reads the lease of this host with the time that is left of it.
func (in *Inputs) readOwnLease(ctx context.Context) (l lease.Lease, err error) {
	s, err := in.leases(ctx)
	if err != nil {
		return l, err
	}
	o, err := in.own(ctx)
	if err != nil {
		return l, err
	}
	listed, there := find(s, o.subnet)
	if !there || s.API == store.APIv2 { // v2 lists the time that is left
		if !there {
			err = fmt.Errorf("there is no lease of %s", o.subnet)
		}
		return listed, err
	}
	client, err := openStore(s.API, in.usableEtcd(ctx))
	if err != nil {
		return l, err
	}
	defer client.Close()
	ev, err := client.Get(ctx, listed.Subnets)
	switch {
	case err != nil:
		return l, err
	case ev.Deleted || ev.Invalid != nil:
		return l, fmt.Errorf("the lease of %s is gone or damaged", o.subnet)
	}
	return ev.Lease, nil
}
