package backend

import (
	"net/netip"
	"testing"

	"flanneld/pkg/lease"
)

// TestStaleLeaseContestsNoOther: a valid lease wins a claim of a stale one even if it is younger,
// and nothing is reported.
func TestStaleLeaseContestsNoOther(t *testing.T) {
	b, conf := mustNew(t, `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`)
	own := peer(t, 1, "10.42.7.0-24", vxlanAt("198.51.100.7", "02:00:00:00:00:07"))
	living := entry{"10.42.20.0-24", vxlanAt("198.51.100.20", "02:00:00:00:00:20")}
	for _, c := range []struct {
		name   string
		stale  entry
		living entry
		keeps  bool // the stale lease is programmed too
	}{
		{"nothing in common", entry{"10.42.9.0-24", vxlanAt("198.51.100.9", "02:00:00:00:00:09")}, living, true},
		{"public IP and MAC", entry{"10.42.9.0-24", vxlanAt("198.51.100.20", "02:00:00:00:00:20")}, living, false},
		{"public IP", entry{"10.42.9.0-24", vxlanAt("198.51.100.20", "02:00:00:00:00:09")}, living, false},
		{"MAC", entry{"10.42.9.0-24", vxlanAt("198.51.100.9", "02:00:00:00:00:20")}, living, false},
		{"wider subnet", entry{"10.42.20.0-23", vxlanAt("198.51.100.9", "02:00:00:00:00:09")}, living, false},
		{"narrower subnet", entry{"10.42.20.128-25", vxlanAt("198.51.100.9", "02:00:00:00:00:09")}, living, false},
		{"subnet that holds the public IP", entry{"10.42.9.0-24", vxlanAt("198.51.100.9", "02:00:00:00:00:09")},
			entry{"10.42.20.0-24", vxlanAt("10.42.9.20", "02:00:00:00:00:20")}, false},
		{"our MAC", entry{"10.42.9.0-24", vxlanAt("198.51.100.9", "02:00:00:00:00:07")}, living, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			gone, there := peer(t, 2, c.stale.key, c.stale.value), peer(t, 3, c.living.key, c.living.value)
			gone.Stale = true
			p := NewPlan(b, conf.V4.Network)
			p.Update(us(), lease.NewView(own, []*lease.Lease{&gone, &there}, true))
			if len(p.Skipped()) > 0 {
				t.Errorf("skipped %+v", p.Skipped())
			}
			routed := map[netip.Prefix]bool{}
			for r := range p.Want().Routes {
				routed[r.Dst] = true
			}
			if !routed[there.Subnets.V4()] || routed[gone.Subnets.V4()] != c.keeps {
				t.Errorf("routes to %v", routed)
			}
			// Without Stale the older one wins.
			back := gone
			back.Stale = false
			p.Update(us(), lease.NewView(own, []*lease.Lease{&back, &there}, true))
			if (len(p.Skipped()) == 0) != c.keeps {
				t.Errorf("of two living leases skipped %+v", p.Skipped())
			}
		})
	}
}

// TestRivalsHaveOurMAC: a peer that is left out only because it has our MAC is returned by
// ClaimConflicts until one of the two changes its MAC.
func TestRivalsHaveOurMAC(t *testing.T) {
	b, conf := mustNew(t, `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`)
	own := peer(t, 1, "10.42.7.0-24", vxlanAt("198.51.100.7", "02:00:00:00:00:07"))
	rival := peer(t, 2, "10.42.9.0-24", vxlanAt("198.51.100.9", "02:00:00:00:00:07"))
	ourOld := peer(t, 3, "10.42.10.0-24", vxlanAt("198.51.100.7", "02:00:00:00:00:07"))
	outside := peer(t, 4, "10.43.9.0-24", vxlanAt("198.51.100.10", "02:00:00:00:00:07"))
	stale := peer(t, 5, "10.42.11.0-24", vxlanAt("198.51.100.11", "02:00:00:00:00:07"))
	stale.Stale = true
	all := []*lease.Lease{&rival, &ourOld, &outside, &stale}
	p := NewPlan(b, conf.V4.Network)
	p.Update(us(), lease.NewView(own, all, true))
	if r := p.ClaimConflicts(); len(r) != 1 || r[0] != rival {
		t.Errorf("rivals %+v", r)
	}
	other := own
	other.BackendData = `{"VtepMAC":"02:00:00:00:00:70"}`
	p.Update(us(), lease.NewView(other, all, true))
	if r := p.ClaimConflicts(); len(r) != 0 {
		t.Errorf("with another MAC of ours: rivals %+v", r)
	}
	p.Update(us(), lease.NewView(own, all, true))
	changed := rival
	changed.BackendData = `{"VtepMAC":"02:00:00:00:00:90"}`
	p.Update(us(), lease.NewView(own, []*lease.Lease{&changed}, true))
	if r := p.ClaimConflicts(); len(r) != 0 {
		t.Errorf("with another MAC of theirs: rivals %+v", r)
	}
}
