package filter

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/firewalld"
	"flanneld/pkg/lease"
	"flanneld/pkg/netconf"
)

// commandsOf returns the commands of changes.
func commandsOf(changes []firewall.Change) string {
	var all []string
	for _, c := range changes {
		all = append(all, c.Command)
	}
	return strings.Join(all, "; ")
}

// TestPlanIsWhatASyncWouldWrite: with the keepers that it would choose, before the first sync and
// after damage. Nothing is written, logged or reported.
func TestPlanIsWhatASyncWouldWrite(t *testing.T) {
	for _, c := range []struct {
		name     string
		choice   netconf.Choice
		change   func(*modelHost)
		want     string
		fallback bool
	}{
		{"iptables", netconf.Unset, func(*modelHost) {}, "iptables: put 4 chains; nftables: put 2 chains", false},
		{"nftables", netconf.Yes, func(*modelHost) {}, "nftables: put 4 chains", false},
		{"iptables is not installed", netconf.Unset, func(h *modelHost) { h.iptables.err = notInstalled }, "nftables: put 4 chains", false},
		{"iptables fails", netconf.Unset, func(h *modelHost) { h.iptables.err = unix.EPERM }, "nftables: put 4 chains", true},
		{"legacy tables beside", netconf.Yes, func(h *modelHost) { h.legacy.tables = []string{"filter"} }, "nftables: put 4 chains; iptables-legacy: put 2 chains", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			onHost(t, c.choice, func(t *testing.T, h *modelHost) {
				c.change(h)
				plan := func(want string) {
					t.Helper()
					changes, fallback, err := h.Plan(t.Context())
					if got := commandsOf(changes); err != nil || got != want || (fallback != nil) != c.fallback {
						t.Errorf("%s, fallback %v, %v; want %s", got, fallback, err, want)
					}
				}
				if _, _, err := h.Plan(t.Context()); err == nil {
					t.Error("a plan before anything is known")
				}
				h.Set([]Input{{Overlay: four, Tunnel: firewall.Tunnel{Port: 8472}}})
				plan(c.want)
				if len(h.places) > 0 || h.log.String() != "" || len(h.list.Current()) > 0 {
					t.Errorf("places %v, conditions %v, log %s", h.places, h.list.Current(), h.log)
				}
				h.begin(h.Run)
				h.after(time.Second)
				plan("")
				h.set(func() { clear(h.places) })
				plan(c.want)
			})
		})
	}
}

// TestPlanAsksFirewalld: what its table drops needs a command of firewalld.
func TestPlanAsksFirewalld(t *testing.T) {
	onHost(t, netconf.Yes, func(t *testing.T, h *modelHost) {
		h.nft.err = fmt.Errorf("%w: inet firewalld", firewall.ErrOwnerLocked)
		h.nft.barriers = func(firewall.Packet) ([]firewall.Barrier, error) {
			return []firewall.Barrier{{Table: firewalld.Table, Owned: true}}, nil
		}
		h.Set([]Input{{Overlay: four, Probes: &Probes{Inner: []firewall.Packet{{}, {}}}}})
		changes, _, err := h.Plan(t.Context())
		if got := commandsOf(changes); err != nil || got != firewalld.TrustCommand(four.Network) || changes[0].Kind != "source" {
			t.Errorf("%+v, %v", changes, err)
		}
	})
}

// TestPlanOfTheLock: it follows the peers, a lock that is not wanted is removed, and so is that of a
// previous network.
func TestPlanOfTheLock(t *testing.T) {
	peer := func(ip string) *lease.Lease {
		return &lease.Lease{Attrs: lease.Attrs{PublicIP: netip.MustParseAddr(ip)}}
	}
	view := lease.View{Peers: []*lease.Lease{peer("192.0.2.9"), peer("192.0.2.8")}, Complete: true}
	for _, c := range []struct {
		wanted bool
		port   uint16
		locks  []netip.Prefix
		absent error
		want   string // "error"
	}{
		{true, 8472, nil, nil, "lock 10.42.0.0/16 with 2 peers"},
		{true, 8472, []netip.Prefix{old.Network}, nil, "lock 10.42.0.0/16 with 2 peers; unlock 10.99.0.0/16"},
		{true, 0, []netip.Prefix{four.Network}, nil, "unlock 10.42.0.0/16"},
		{false, 8472, []netip.Prefix{four.Network}, nil, "unlock 10.42.0.0/16"},
		{false, 8472, nil, nil, ""},
		{false, 8472, nil, unix.EPROTONOSUPPORT, ""},
		{true, 8472, nil, unix.EPROTONOSUPPORT, "error"},
		{false, 8472, nil, unix.EPERM, "error"},
	} {
		onLockHost(t, c.wanted, func(t *testing.T, h *lockHost) {
			h.absent = c.absent
			for _, n := range c.locks {
				h.locks[n] = nil
			}
			now := spec
			now.Port = c.port
			changes, err := PlanLock(t.Context(), h.cfg, now, view)
			got := commandsOf(changes)
			if err != nil {
				got = "error"
			}
			if got != c.want || len(h.locks) != len(c.locks) || (c.absent == nil) != h.closed {
				t.Errorf("%+v: %s, %v, locks %v, closed %t", c, got, err, h.locks, h.closed)
			}
		})
	}
}
