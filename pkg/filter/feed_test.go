package filter

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
	"flanneld/pkg/firewall"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
)

// TestFeed checks the inputs of the filter and the lock for a host at 192.0.2.7, as facts and view
// become known.
func TestFeed(t *testing.T) {
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	facts := host.Facts{
		Uplink: "eth0", MTU: 1500, Addr: addr("192.0.2.7"), PublicIP: addr("192.0.2.7"),
		Underlay: []host.Route{{Dst: prefix("0.0.0.0/0"), Iface: "eth0", Gateway: addr("192.0.2.1")}, {Dst: prefix("192.0.2.0/24"), Iface: "eth0"}},
	}
	inside := facts // on a LAN inside the network
	inside.Addr, inside.PublicIP = addr("10.42.200.7"), addr("10.42.200.7")
	inside.Underlay = []host.Route{{Dst: prefix("10.42.200.0/22"), Iface: "eth0"}, {Dst: prefix("10.42.100.0/24"), Iface: "eth1"}}
	alone := inside // with an address of no LAN
	alone.Underlay = nil
	view := func(own string) lease.View {
		return lease.View{Own: lease.Lease{Subnets: lease.SubnetsOf(prefix(own))}, Peers: []*lease.Lease{leaseOf("10.42.9.0/24", "192.0.2.9")}, Complete: true}
	}
	const pings, udp = "10.42.7.1>10.42.0.1 10.42.0.1>10.42.7.1", "192.0.2.7:8285 from 8285 by eth0"
	for _, c := range []struct {
		name, backend string
		facts         host.Facts
		view          lease.View
		tunnel        string // port, whether bound, hosts
		probes        string
		lock          string // port
	}{
		{"vxlan", "vxlan", facts, view("10.42.7.0/24"), "8472 false []", "192.0.2.7:8472 from 40000 by eth0 " + pings, "8472"},
		{"udp", "udp", facts, view("10.42.7.0/24"), "8285 true []", udp + " " + pings, "8285"},
		{"no tunnel", "host-gw", facts, view("10.42.7.0/24"), "0 false []", pings, "0"},
		{"the first subnet", "host-gw", facts, view("10.42.0.0/24"), "0 false []", "10.42.0.1>10.42.255.255 10.42.255.255>10.42.0.1", "0"},
		{"a LAN inside", "vxlan", inside, view("10.42.7.0/24"), "8472 false [10.42.200.0/22]", "10.42.200.7:8472 from 40000 by eth0 " + pings, "8472"},
		{"an address inside", "vxlan", alone, view("10.42.7.0/24"), "8472 false [10.42.200.7/32]", "10.42.200.7:8472 from 40000 by eth0 " + pings, "8472"},
	} {
		n, err := backend.ParseNetwork(fmt.Appendf(nil, `{"Network":"10.42.0.0/16","Backend":{"Type":"%s"}}`, c.backend))
		if err != nil {
			t.Fatal(err)
		}
		log := slog.New(slog.DiscardHandler)
		conditions := condition.NewList(log)
		f := &Feed{
			Network: n,
			Rules:   New(Config{Conditions: conditions, Log: log}),
			Lock:    NewLock(LockConfig{Network: n.V4.Network, Conditions: conditions, Log: log}),
		}
		f.SetFacts(host.Facts{}, errors.New("not known yet"))
		f.SetView(c.view)
		if f.Rules.input.Load() != nil || f.Lock.spec.Load() != nil || len(f.Lock.views) != 1 {
			t.Errorf("%s: told too early", c.name)
		}
		f.SetFacts(c.facts, nil)
		in, spec := (*f.Rules.input.Load())[0], f.Lock.spec.Load()
		if in.Overlay != (firewall.Overlay{Network: n.V4.Network, Subnet: c.view.Own.Subnets.V4()}) {
			t.Errorf("%s: overlay %v", c.name, in.Overlay)
		}
		if got := fmt.Sprint(in.Tunnel.Port, in.Tunnel.Bound, in.Tunnel.Hosts); got != c.tunnel {
			t.Errorf("%s: tunnel %s, want %s", c.name, got, c.tunnel)
		}
		if got := describe(in.Probes); got != c.probes || fmt.Sprint(in.Probes.Peers) != "[192.0.2.9]" {
			t.Errorf("%s: probes %s, want %s; peers %v", c.name, got, c.probes, in.Probes.Peers)
		}
		if got := fmt.Sprint(spec.Port); got != c.lock {
			t.Errorf("%s: lock %s, want %s", c.name, got, c.lock)
		}
		f.SetFacts(host.Facts{}, errors.New("the uplink is away"))
		f.SetView(view("10.42.8.0/24"))
		if now := (*f.Rules.input.Load())[0]; now.Probes != nil || now.Subnet != prefix("10.42.8.0/24") || now.Tunnel.Port != in.Tunnel.Port {
			t.Errorf("%s, while the uplink is away: %+v", c.name, now)
		}
	}
}

// describe is a text of probes.
func describe(p *Probes) (text string) {
	if t := p.Tunnel; t != nil {
		text = fmt.Sprintf("%s:%d from %d by %s ", t.Dst, t.DstPort, t.SrcPort, t.In)
	}
	for i, packet := range p.Inner {
		if i > 0 {
			text += " "
		}
		text += fmt.Sprintf("%s>%s", packet.Src, packet.Dst)
	}
	return text
}
