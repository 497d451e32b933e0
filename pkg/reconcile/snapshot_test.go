package reconcile

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
)

// peersOf is a loop with a real backend.
type peersOf struct {
	*Loop
	t      *testing.T
	kernel *model
	facts  host.Facts
	leases []*lease.Lease
	// repaired is what Repaired was called with.
	repaired []string
}

func newPeersOf(t *testing.T, config string) *peersOf {
	n, err := backend.ParseNetwork([]byte(`{"Network":"10.42.0.0/16","Backend":` + config + `}`))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	p := &peersOf{t: t, kernel: newModel()}
	p.kernel.NextHops = nil // an old kernel
	p.facts = host.Facts{Uplink: "eth0", MTU: 1500, Addr: netip.MustParseAddr("198.51.100.200"), PublicIP: netip.MustParseAddr("198.51.100.200"), TUN: "flannel0"}
	p.facts.Underlay = []host.Route{{Dst: netip.MustParsePrefix("198.51.100.0/24"), Iface: "eth0"}}
	p.Loop = New(Config{
		Driver: p.kernel, Backend: n, Network: n.V4.Network, Conditions: condition.NewList(log), Log: log,
		BeforeApply: func() {}, Rivals: func([]lease.Lease) {}, Skipped: func([]backend.Skipped) {}, Missing: func([]Missing) {}, Heartbeat: func() {},
		Repaired: func(what, example string) { p.repaired = append(p.repaired, what, example) },
	})
	p.SetFacts(p.facts, nil)
	return p
}

// lease returns the lease of a host.
func (p *peersOf) lease(n int, publicIP string) *lease.Lease {
	l := &lease.Lease{Subnets: lease.SubnetsOf(key(n).Dst), Created: uint64(n + 1), Attrs: lease.Attrs{PublicIP: netip.MustParseAddr(publicIP)}}
	if kind := p.cfg.Backend.(backend.Network).BackendType; kind != "udp" && kind != "alloc" {
		l.BackendType = kind
	}
	if l.BackendType == "vxlan" {
		l.BackendData = fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:00:00:%02x"}`, n)
	}
	return l
}

// with makes a pass with peers.
func (p *peersOf) with(leases ...*lease.Lease) {
	p.t.Helper()
	p.leases = leases
	p.SetView(lease.NewView(*p.lease(200, "198.51.100.200"), leases, true))
	p.Pass(p.t.Context())
}

// shows compares the peers of the snapshot, one line each.
func (p *peersOf) shows(want ...string) {
	p.t.Helper()
	var got []string
	for peer := range p.Snapshot().Peers(time.Now()) {
		state := map[PeerState]string{Unknown: "unknown", Programmed: "programmed", Unprogrammed: "unprogrammed", Skipped: "skipped"}[peer.State]
		line := fmt.Sprintf("%d %s", peer.Subnets.V4().Addr().As4()[2], state)
		if peer.Has != "" {
			line += ", " + peer.Has
		}
		if peer.Reason != "" {
			line += ": " + peer.Reason
		}
		if !peer.Changed.IsZero() {
			line += ", changed " + time.Since(peer.Changed).String() + " ago"
		}
		got = append(got, line)
	}
	if !slices.Equal(got, want) {
		p.t.Errorf("it shows\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestSnapshotOfEachBackend(t *testing.T) {
	for config, want := range map[string]string{
		`{"Type":"vxlan"}`:                      "1 programmed, fdb, neighbour, route on flannel.1",
		`{"Type":"vxlan","DirectRouting":true}`: "1 programmed, route on eth0",
		`{"Type":"host-gw"}`:                    "1 programmed, route on eth0",
		`{"Type":"udp"}`:                        "1 programmed, tunnel entry on flannel0",
		`{"Type":"alloc"}`:                      "1 programmed",
	} {
		t.Run(config, func(t *testing.T) {
			p := newPeersOf(t, config)
			if p.Snapshot() != nil {
				t.Error("a snapshot before the first pass")
			}
			p.with(p.lease(1, "198.51.100.1"))
			p.shows(want)
		})
	}
}

// TestSnapshotOfPeers: peers that are skipped, whose objects the kernel refuses or others occupy,
// and whose leases change; partial passes keep what is known about other peers.
func TestSnapshotOfPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const all = ", fdb, neighbour, route on flannel.1"
		p := newPeersOf(t, `{"Type":"vxlan"}`)
		one, two, three := p.lease(1, "198.51.100.1"), p.lease(2, "198.51.100.200"), p.lease(3, "198.51.100.3")
		p.with(one, two)
		p.shows("1 programmed"+all, "2 skipped: public IP is our own: 198.51.100.200")
		time.Sleep(time.Second)

		route := dataplane.KindRoute.Put(key(3), dataplane.Route{}).Object()
		p.kernel.refuse[route] = errors.New("no such device")
		p.with(one, two, three)
		lacks := "3 unprogrammed, fdb, neighbour on flannel.1: " + route + ": no such device, changed 0s ago"
		p.shows("1 programmed"+all, "2 skipped: public IP is our own: 198.51.100.200", lacks)
		if len(p.repaired) > 0 {
			t.Errorf("repaired %q", p.repaired)
		}

		p.Reread() // the route is paused now
		p.Pass(t.Context())
		p.shows("1 programmed"+all, "2 skipped: public IP is our own: 198.51.100.200", lacks)
		if s := p.Snapshot(); s.Drift[dataplane.KindRoute] != 1 {
			t.Errorf("drift %v", s.Drift)
		}

		time.Sleep(time.Second)
		p.with(one, p.lease(2, "198.51.100.2"), three, p.lease(4, "198.51.100.4"))
		p.shows("1 programmed"+all, "2 programmed"+all+", changed 0s ago", strings.Replace(lacks, "0s", "1s", 1), "4 programmed"+all+", changed 0s ago")

		delete(p.kernel.refuse, route)
		p.Retry()
		p.Pass(t.Context())
		p.with(one, three)
		p.shows("1 programmed"+all, "3 programmed"+all+", changed 1s ago")

		p.repaired = nil
		delete(p.kernel.Neighs, dataplane.NeighKey{Link: "flannel.1", IP: key(1).Dst.Addr()})
		p.Reread()
		p.Pass(t.Context())
		if r := p.repaired; len(r) != 2 || r[0] != "+1 neighbour" || !strings.HasPrefix(r[1], "ip neigh replace 10.42.1.0 ") {
			t.Errorf("repaired %q", r)
		}

		p.kernel.unread = errors.New("no")
		if s := p.Snapshot(); s.Outdated(time.Now()) || !s.Outdated(time.Now().Add(2*readAge)) {
			t.Errorf("read %v ago", time.Since(s.ReadAt))
		}
		time.Sleep(2 * readAge)
		p.Reread()
		p.Pass(t.Context())
		p.shows("1 unknown: the kernel was not read for more than 3m0s", "3 unknown: the kernel was not read for more than 3m0s, changed 6m1s ago")
	})
}

// TestSnapshotOfConflict: the address of another device is in the way of a peer's route.
func TestSnapshotOfConflict(t *testing.T) {
	p := newPeersOf(t, `{"Type":"host-gw"}`)
	p.kernel.Routes[dataplane.RouteKey{Dst: key(1).Dst, Link: "docker0"}] = dataplane.Route{Proto: dataplane.ProtoKernel}
	p.with(p.lease(1, "198.51.100.1"), p.lease(2, "198.51.100.2"))
	var got []string
	for peer := range p.Snapshot().Peers(time.Now()) {
		got = append(got, fmt.Sprint(peer.State, " ", peer.Has, " ", peer.Reason))
	}
	if len(got) != 2 || !strings.HasPrefix(got[0], fmt.Sprint(Unprogrammed, "  route 10.42.1.0/24")) || got[1] != fmt.Sprint(Programmed, " route on eth0 ") {
		t.Errorf("it shows %q", got)
	}
}

// TestSnapshotCountsEachChange: the times are those of the leases' last changes; a renewal is none.
func TestSnapshotCountsEachChange(t *testing.T) {
	var c changes
	at := time.Unix(1_000_000, 0)
	view := func(leases ...*lease.Lease) lease.View {
		return lease.NewView(lease.Lease{Subnets: lease.SubnetsOf(key(200).Dst)}, leases, true)
	}
	of := func(n int, ip string, expires int64) *lease.Lease {
		return &lease.Lease{Subnets: lease.SubnetsOf(key(n).Dst), Attrs: lease.Attrs{PublicIP: netip.MustParseAddr(ip)}, Expires: time.Unix(expires, 0)}
	}
	for i, v := range []lease.View{
		view(of(1, "198.51.100.1", 1), of(2, "198.51.100.2", 1)),
		view(of(1, "198.51.100.1", 2), of(2, "198.51.100.9", 1)),
		view(of(1, "198.51.100.1", 2), of(2, "198.51.100.9", 3), of(3, "198.51.100.3", 1)),
		view(of(1, "198.51.100.1", 2), of(3, "198.51.100.3", 4)),
	} {
		c.update(v, at.Add(time.Duration(i)*time.Minute))
	}
	if got := c.since(); len(got) != 1 || !got[lease.SubnetsOf(key(3).Dst)].Equal(at.Add(2*time.Minute)) {
		t.Errorf("changes: %v", got)
	}
}
