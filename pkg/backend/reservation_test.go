package backend

import (
	"net/netip"
	"testing"
	"time"

	"flanneld/pkg/lease"
)

// TestReservationWithoutAHostIsNoPeer: a reservation that its host has not used yet says nothing
// about a backend, so it is no peer, and nothing is wrong with it. With udp, whose leases say nothing
// either, it is a peer.
func TestReservationWithoutAHostIsNoPeer(t *testing.T) {
	expiring := time.Unix(1, 0)
	for _, c := range []struct {
		backend, value string
		expires        time.Time
		peers, skipped int
	}{
		{"vxlan", `{"PublicIP":"198.51.100.9"}`, time.Time{}, 0, 0},
		{"vxlan", `{"PublicIP":"198.51.100.9"}`, expiring, 0, 1},
		{"vxlan", `{"PublicIP":"198.51.100.9","BackendType":"host-gw"}`, time.Time{}, 0, 1},
		{"vxlan", `{"PublicIP":"198.51.100.9","BackendData":{"VtepMAC":"02:00:00:00:00:09"}}`, time.Time{}, 0, 1},
		{"host-gw", `{"PublicIP":"198.51.100.9"}`, time.Time{}, 0, 0},
		{"host-gw", `{"PublicIP":"198.51.100.9"}`, expiring, 0, 1},
		{"udp", `{"PublicIP":"198.51.100.9"}`, time.Time{}, 1, 0},
	} {
		b, config := mustNew(t, `{"Network":"10.42.0.0/16","Backend":{"Type":"`+c.backend+`"}}`)
		l := peer(t, 2, "10.42.9.0-24", c.value)
		l.Expires = c.expires
		good, _, bad, _ := peers(b, config.V4.Network, us(), lease.NewView(lease.Lease{Subnets: lease.SubnetsOf(netip.MustParsePrefix("10.42.7.0/24"))}, []*lease.Lease{&l}, true))
		if len(good) != c.peers || len(bad) != c.skipped {
			t.Errorf("%s, %s until %v: peers %v, skipped %v", c.backend, c.value, c.expires, good, bad)
		}
	}
}
