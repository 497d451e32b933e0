package filter

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/firewalld"
	"flanneld/pkg/netconf"
)

// tunnelPacket is what peers send to the tunnel's port.
var tunnelPacket = firewall.Packet{In: "eth0", Dst: netip.MustParseAddr("192.0.2.7"), ToHost: true, Protocol: unix.IPPROTO_UDP, DstPort: 8472}

// probed sets a network with probes.
func (h *modelHost) probed() {
	a, b := four.Subnet.Addr().Next(), four.Network.Addr().Next()
	h.Set([]Input{{Overlay: four, Probes: &Probes{
		Tunnel: &tunnelPacket, Peers: []netip.Addr{netip.MustParseAddr("192.0.2.8"), netip.MustParseAddr("192.0.2.9")},
		Inner: []firewall.Packet{{Src: a, Dst: b}, {Src: b, Dst: a}},
	}}})
}

// TestClosedTunnelPortIsACondition: for as long as a chain of either packet filter certainly drops
// what peers send; which may depend on the peer.
func TestClosedTunnelPortIsACondition(t *testing.T) {
	chain := firewall.Barrier{Kind: "nftables", Table: "inet filter", Chain: "input"}
	for name, c := range map[string]struct {
		drops func(p firewall.Packet) (drops, certain bool)
		wrong bool
	}{
		"all":      {func(p firewall.Packet) (bool, bool) { return p.ToHost, true }, true},
		"perhaps":  {func(p firewall.Packet) (bool, bool) { return p.ToHost, false }, false},
		"one peer": {func(p firewall.Packet) (bool, bool) { return p.ToHost, p.Src == netip.MustParseAddr("192.0.2.9") }, true},
		"none":     {func(p firewall.Packet) (bool, bool) { return false, false }, false},
	} {
		for _, legacy := range []bool{false, true} {
			t.Run(fmt.Sprint(name, legacy), func(t *testing.T) {
				onHost(t, netconf.Unset, func(t *testing.T, h *modelHost) {
					where := h.nft
					if legacy {
						where = h.legacy
					}
					where.barriers = func(p firewall.Packet) ([]firewall.Barrier, error) {
						b := chain
						drops, certain := c.drops(p)
						if b.Certain = certain; !drops {
							return nil, nil
						}
						return []firewall.Barrier{b}, nil
					}
					h.probed()
					h.begin(h.Run)
					h.after(2 * time.Second)
					h.wrong(portCondition+chain.String(), c.wrong)
					if c.wrong {
						h.said(1, "drops packets to the tunnel port", "port=8472", `chain="nftables inet filter input"`, `command="nft insert rule inet filter input udp dport 8472 accept"`)
					}
					h.set(func() { where.barriers = nil })
					h.after(idle + time.Second)
					h.wrong(portCondition+chain.String(), false)
					h.Set([]Input{{Overlay: four}}) // the uplink is not known any more
					h.after(time.Minute)
				})
			})
		}
	}
}

// TestLegacyVariantThatCannotBeReadIsNotAsked: the failure is reported elsewhere.
func TestLegacyVariantThatCannotBeReadIsNotAsked(t *testing.T) {
	onHost(t, netconf.Unset, func(t *testing.T, h *modelHost) {
		h.legacy.tables, h.legacy.err = []string{"nat"}, unix.EIO
		h.legacy.barriers = func(firewall.Packet) ([]firewall.Barrier, error) {
			t.Error("asked")
			return nil, nil
		}
		h.probed()
		h.begin(h.Run)
		h.after(time.Minute)
	})
}

// TestUnreadableRulesAreACondition: after some failures in a row, which are not after each other at
// once.
func TestUnreadableRulesAreACondition(t *testing.T) {
	onHost(t, netconf.Unset, func(t *testing.T, h *modelHost) {
		asked := 0
		h.nft.barriers = func(firewall.Packet) ([]firewall.Barrier, error) {
			asked++
			return nil, fmt.Errorf("too much")
		}
		h.probed()
		h.begin(h.Run)
		h.after(burst)
		h.wrong(inspectCondition, false)
		h.after(10 * time.Second)
		h.wrong(inspectCondition, true)
		h.after(time.Minute)
		if asked > 80 {
			t.Errorf("asked %d times", asked)
		}
		h.set(func() { h.nft.barriers = nil })
		h.after(idle)
		h.wrong(inspectCondition, false)
	})
}

// bus is a firewalld on a host.
type bus struct {
	host    *modelHost
	refuses error // of each dial
	err     error // of each Trust
	trusted int
	changed chan struct{}
}

func (b *bus) dial(context.Context) (Firewalld, error) {
	b.host.mu.Lock()
	defer b.host.mu.Unlock()
	if b.refuses != nil {
		return (*bus)(nil), b.refuses // as a function does that returns a client of its own
	}
	return b, nil
}

func (b *bus) Trust(context.Context, netip.Prefix) (bool, error) {
	b.host.mu.Lock()
	defer b.host.mu.Unlock()
	if b.err != nil {
		return false, b.err
	}
	b.trusted++
	return b.trusted == 1, nil
}

func (b *bus) Changed() <-chan struct{} { return b.changed }

// TestChainsThatOnlyTheirProgramMayWrite: firewalld is asked to let the network pass, of others it
// is a condition, as long as nftables say that they cannot be written.
func TestChainsThatOnlyTheirProgramMayWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bus{refuses: unix.ECONNREFUSED, changed: make(chan struct{})}
		h := newHost(t, netconf.Yes, func(c *Config) { c.Firewalld = b.dial })
		b.host = h
		owned := firewall.Barrier{Kind: "nftables", Table: "inet theirs", Chain: "forward", Certain: true, Owned: true}
		h.nft.barriers = func(p firewall.Packet) ([]firewall.Barrier, error) {
			ours, perhaps := owned, owned
			ours.Owned, perhaps.Certain = false, false
			perhaps.Chain = "perhaps"
			if p.ToHost {
				return nil, nil
			}
			return []firewall.Barrier{owned, ours, perhaps, {Table: firewalld.Table, Owned: true}}, nil
		}
		h.probed()
		h.begin(h.Run)
		h.after(time.Second)
		h.wrong(ownedCondition+owned.String(), false) // no writer was blocked
		h.set(func() { h.nft.err = fmt.Errorf("%w: inet theirs", firewall.ErrOwnerLocked) })
		h.after(idle)
		h.wrong(ownedCondition+owned.String(), true)
		h.wrong(ownedCondition+"nftables inet theirs perhaps", false)
		h.wrong(syncCondition, false)
		h.wrong(trustCondition, true)
		h.said(1, "failed to make it trust the network", "connection refused", `command="firewall-cmd --zone=trusted --add-source=10.42.0.0/16`)
		h.after(trustRetry)
		h.set(func() { b.refuses, b.err = nil, firewalld.ErrOtherZone })
		h.after(trustRetry)
		h.said(1, "failed to make it trust the network", firewalld.MoveCommand(four.Network))
		h.set(func() { b.err = nil })
		h.after(trustRetry)
		h.wrong(trustCondition, false)
		h.said(1, "added the network to firewalld's trusted zone")
		// It signals changed rules, which accept the network.
		h.set(func() { h.nft.barriers, h.nft.err = nil, nil })
		b.changed <- struct{}{}
		h.after(time.Second)
		h.wrong(ownedCondition+owned.String(), false)
		close(b.changed) // it ends, and is reconnected when needed
		h.after(time.Second)
		h.wrong(trustCondition, false)
	})
}
