package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"flanneld/pkg/backend"
	"flanneld/pkg/lease"
)

// duplicateChecks returns the checks of what only one host may have.
func duplicateChecks() []Check {
	return []Check{
		{ID: "FL-DUPLICATE-IP", Rank: rankLease + 1, Run: checkPublicIPs},
		{ID: "FL-DUPLICATE-MAC", Rank: rankLease + 2, Run: checkMACs},
		{ID: "FL-DUPLICATE-SUBNET", Rank: rankLease + 1, Run: checkSubnets},
	}
}

// groups returns the leases that share a claim with others: sorted, the oldest of each group first.
func groups[K comparable](all []lease.Lease, claim func(lease.Lease) (K, bool)) (found [][]lease.Lease) {
	by := map[K][]lease.Lease{}
	for _, l := range all {
		if k, ok := claim(l); ok && !l.Leaving {
			by[k] = append(by[k], l)
		}
	}
	for _, g := range by {
		if len(g) > 1 {
			slices.SortFunc(g, func(a, b lease.Lease) int {
				return cmp.Or(cmp.Compare(a.Created, b.Created), a.Subnets.Compare(b.Subnets))
			})
			found = append(found, g)
		}
	}
	slices.SortFunc(found, func(a, b []lease.Lease) int { return a[0].Subnets.Compare(b[0].Subnets) })
	return found
}

// names returns the subnets and the hosts of some leases, for people.
func names(g []lease.Lease) string {
	var words []string
	for _, l := range g[:min(len(g), 3)] {
		words = append(words, fmt.Sprintf("%s (%s)", l.Subnets, l.PublicIP))
	}
	if more := len(g) - len(words); more > 0 {
		words = append(words, fmt.Sprintf("%d more", more))
	}
	return and(words)
}

func (in *Inputs) removeLease(s *Store, l lease.Lease) string {
	return in.command(s.API, deleteVerb(s.API), dirOf(s)+"/"+lease.Key(l.Subnets))
}

// checkPublicIPs fails if several leases name one host: all but one of the subnets get no packets.
func checkPublicIPs(ctx context.Context, in *Inputs) Result {
	s, err := in.leases(ctx)
	if err != nil {
		return unknownf("%v", err)
	}
	found := groups(s.Leases, func(l lease.Lease) (netip.Addr, bool) {
		return l.PublicIP, l.BackendType != "alloc" && l.BackendType != "" || in.overlayIsUDP(s)
	})
	if len(found) == 0 {
		return okf("each of %d leases names another host", len(s.Leases))
	}
	g := found[0]
	return failf("set -iface or -public-ip on these hosts, so that each publishes its own address; delete a lease of a host that is gone: "+in.removeLease(s, g[len(g)-1]),
		"%d leases name the same host %s: %s", len(g), g[0].PublicIP, names(g))
}

// overlayIsUDP reports whether the network's backend is udp, which writes no backend type.
func (in *Inputs) overlayIsUDP(s *Store) bool {
	n, err := backend.ParseNetwork(s.Config)
	return err == nil && n.BackendType == "udp"
}

// checkMACs fails if several leases have one VTEP MAC, as copies of a virtual machine do.
func checkMACs(ctx context.Context, in *Inputs) Result {
	s, err := in.leases(ctx)
	if err != nil {
		return unknownf("%v", err)
	}
	found := groups(s.Leases, func(l lease.Lease) (string, bool) {
		var data struct{ VtepMAC string }
		err := json.Unmarshal([]byte(l.BackendData), &data)
		return strings.ToLower(data.VtepMAC), err == nil && data.VtepMAC != "" && l.BackendType == "vxlan"
	})
	if len(found) == 0 {
		return okf("no two hosts have the same MAC address")
	}
	g := found[0]
	return failf(fmt.Sprintf("on the host %s: systemctl stop flanneld; ip link del flannel.1; systemctl start flanneld; or, if it is gone: %s", g[len(g)-1].PublicIP, in.removeLease(s, g[len(g)-1])),
		"%d hosts have the same VTEP MAC: %s", len(g), names(g))
}

// checkSubnets fails if subnets of leases overlap.
func checkSubnets(ctx context.Context, in *Inputs) Result {
	s, err := in.leases(ctx)
	if err != nil {
		return unknownf("%v", err)
	}
	all := slices.Clone(s.Leases)
	slices.SortFunc(all, func(a, b lease.Lease) int { return a.Subnets.Compare(b.Subnets) })
	for i := 1; i < len(all); i++ {
		a, b := all[i-1], all[i]
		if a.Subnets.V4().Overlaps(b.Subnets.V4()) {
			younger := b
			if a.Created > b.Created {
				younger = a
			}
			return failf(in.removeLease(s, younger), "the subnets of two leases overlap: %s", names([]lease.Lease{a, b}))
		}
	}
	return okf("no subnets of hosts overlap")
}
