package daemon

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"flanneld/pkg/host"
	"flanneld/pkg/registry/store"
	"flanneld/pkg/subnetenv"
)

// avoid returns what a subnet that is chosen anew must not overlap.
func (d *daemon) avoid() ([]netip.Prefix, error) {
	d.terms.Lock()
	leased := cmp.Or(d.terms.now.Pool, d.net.Pool()).Cover()
	d.terms.Unlock()
	s, err := d.kernel.Surroundings(func(dst netip.Prefix) bool { return slices.ContainsFunc(leased, dst.Overlaps) }, nil)
	if err != nil {
		return nil, err
	}
	avoid := s.Avoid(d.net.Network)
	for _, a := range slices.Concat(addrsOf(d.wanted()), addrsOf(d.atStart), addrsOf(nameServers())) {
		avoid = append(avoid, netip.PrefixFrom(a, a.BitLen()))
	}
	return avoid, nil
}

// moving returns the commands that have this host lease another subnet: without its key and
// what it remembers, it chooses anew.
func (d *daemon) moving(own netip.Prefix) string {
	file := d.options.SubnetFile
	return strings.Join([]string{
		"systemctl stop flanneld",
		d.registry.DeleteCommand(own),
		"rm -f " + store.ShellWord(file) + " " + store.ShellWord(subnetenv.ClaimPath(file)),
		"systemctl start flanneld",
	}, "; ")
}

// remedy completes a finding by what is not the host's alone.
func (d *daemon) remedy(f host.Finding, own netip.Prefix) host.Finding {
	if f.ID == host.SubnetInside || f.ID == host.LANInside || f.ID == host.NeedInside {
		f.Command = d.moving(own)
	}
	return f
}
