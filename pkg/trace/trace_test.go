package trace

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lab/golden"
	leases "flanneld/pkg/lease"
	"flanneld/pkg/status"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func known[T any](v T) Known[T] { return Is(v) }

var errAway = errors.New("etcd: no answer in time")

func unknown[T any]() Known[T] { return IsNot[T](errAway) }

// peerMAC is that of the peer's device.
var peerMAC = dataplane.MAC{2, 0, 0, 0, 0, 9}

// ownerOf returns the host n with the subnet 10.42.n.0/24.
func ownerOf(n int, backend string) Known[Owner] {
	subnet := prefix(fmt.Sprintf("10.42.%d.0/24", n))
	return known(Owner{
		Lease: leases.Lease{Subnets: leases.SubnetsOf(subnet), Attrs: leases.Attrs{PublicIP: addr(fmt.Sprintf("192.0.2.%d", n)), BackendType: backend}},
		Found: true, Command: fmt.Sprintf("etcdctl get /coreos.com/network/subnets/10.42.%d.0-24", n),
	})
}

// healthy returns the facts of host 7 about packets from its container to one of host 9.
func healthy(backend string) *Facts {
	passes := func(words string) Known[[]Filtered] { return known([]Filtered{{What: words}}) }
	f := &Facts{
		Src: Side{
			Addr: addr("10.42.7.2"), Here: true, Owner: ownerOf(7, backend), Delivery: known(host.Decision{Iface: "docker0", Source: addr("10.42.7.1")}),
			Neighbor: known(host.Neighbor{Exists: true, MAC: [6]byte{2, 0x42, 10, 42, 7, 2}, State: "REACHABLE"}),
		},
		Dst:     Side{Addr: addr("10.42.9.2"), Owner: ownerOf(9, backend)},
		Daemon:  Daemon{Text: "flanneld runs (PID 812)", PID: 812},
		Network: prefix("10.42.0.0/16"), Subnet: prefix("10.42.7.0/24"), Backend: backend, Uplink: "eth0", Addr: addr("192.0.2.7"), PublicIP: addr("192.0.2.7"),
		Gateway: addr("10.42.7.1"), Docker: true,
		Want: known(dataplane.NewState()), Have: known(dataplane.NewState()),
		Outer:       known(host.Decision{Iface: "eth0", Source: addr("192.0.2.7")}),
		OutForwards: known(true), InForwards: known(true),
		DeviceFaults: known([]string(nil)),
		NextHop:      known(host.Neighbor{Exists: true, MAC: [6]byte{2, 0, 0, 0, 2, 9}, State: "STALE"}),
		UplinkState:  known(host.Iface{Name: "eth0", Up: true, Running: true}),
		OutRules:     passes("new ICMP, TCP and UDP packets"), InRules: passes("reply ICMP, TCP and UDP packets"),
		TunnelOut: passes("tunnel packets"), TunnelIn: passes("tunnel packets"), ShowRules: "nft list ruleset",
		Peer: Peer{
			Entry:    known(status.Peer{State: status.OK, Probe: status.ProbeOK, RTT: new(float64)}),
			Status:   IsNot[status.Document](errors.New("it has no -status-listen")),
			PublicIP: known(true), Overlay: known(true), Container: known(true), OverlayAddr: addr("10.42.9.0"), Ping: "ping -c 3 -I flannel.1",
		},
	}
	f.addBackend(backend)
	return f
}

// addBackend adds what a backend has for the peer.
func (f *Facts) addBackend(backend string) {
	link := dataplane.Link{Kind: dataplane.KindVXLAN, VNI: 1, Parent: "eth0", Local: f.Addr, Port: 8472, MTU: 1450, Up: true, MAC: dataplane.MAC{2, 0, 0, 0, 0, 7}}
	key := dataplane.RouteKey{Dst: prefix("10.42.9.0/24"), Link: "flannel.1"}
	route := dataplane.Route{Via: addr("10.42.9.0"), OnLink: true, Proto: dataplane.ProtoBoot}
	switch backend {
	case "vxlan":
		f.Device, f.Port = "flannel.1", 8472
	case "udp":
		f.Device, f.Port = "flannel0", 8285
		link = dataplane.Link{Kind: dataplane.KindTUN, MTU: 1472, Up: true}
		key, route = dataplane.RouteKey{Dst: prefix("10.42.0.0/16"), Link: "flannel0"}, dataplane.Route{Proto: dataplane.ProtoBoot}
		f.Peer.Ping = "ping -c 3 -I flannel0"
	case "host-gw":
		key, route = dataplane.RouteKey{Dst: prefix("10.42.9.0/24"), Link: "eth0"}, dataplane.Route{Via: addr("192.0.2.9"), Proto: dataplane.ProtoFlannel}
		f.Peer.OverlayAddr, f.Peer.Ping = addr("10.42.9.1"), "ping -c 3 -I 10.42.7.1"
	case "alloc":
		f.Out, f.In = known(host.Decision{Iface: "eth0", Gateway: addr("192.0.2.1")}), known(f.Src.Delivery.Value)
		f.Peer.OverlayAddr, f.Peer.Ping = addr("10.42.9.1"), "ping -c 3 -I 10.42.7.1"
		return
	}
	f.Out, f.In = known(host.Decision{Iface: key.Link, Gateway: route.Via}), known(f.Src.Delivery.Value)
	f.Want.Value.Routes[key], f.Have.Value.Routes[key] = route, route
	if f.Device != "" {
		f.Have.Value.Links[f.Device] = link
	}
	if backend == "vxlan" {
		for _, s := range []dataplane.State{f.Want.Value, f.Have.Value} {
			s.Neighs[dataplane.NeighKey{Link: "flannel.1", IP: route.Via}] = peerMAC
			s.FDB[dataplane.FDB{Link: "flannel.1", MAC: peerMAC, Dst: addr("192.0.2.9")}] = struct{}{}
		}
	}
}

// turned returns the facts of the same host about packets in the other direction.
func (f *Facts) turned() *Facts {
	f.Src, f.Dst = f.Dst, f.Src
	return f
}

func (f *Facts) text() string {
	var b strings.Builder
	Style{}.Text(&b, Walk(*f))
	return b.String()
}

// deleteRoute deletes the route to the peer, so that packets follow the default route.
func (f *Facts) deleteRoute() {
	clear(f.Have.Value.Routes)
	f.Out = known(host.Decision{Iface: "eth0", Gateway: addr("192.0.2.1")})
}

// withoutBridge takes the address of docker0.
func (f *Facts) withoutBridge() {
	lost := known(host.Decision{Iface: "eth0", Gateway: addr("192.0.2.1")})
	f.Src.Delivery, f.In = lost, lost
	f.Out = known(host.Decision{Refused: "the route is a blackhole, or reverse path filtering drops it"})
}

func TestHealthyWayIsOKInEachBackend(t *testing.T) {
	for _, backend := range []string{"vxlan", "udp", "host-gw", "alloc"} {
		golden.Equal(t, "testdata/"+backend+"-sender.txt", healthy(backend).text())
		golden.Equal(t, "testdata/"+backend+"-receiver.txt", healthy(backend).turned().text())
		for _, f := range []*Facts{healthy(backend), healthy(backend).turned()} {
			tr := Walk(*f)
			if tr.Verdict != OK || tr.Reason != "" {
				t.Errorf("%s from the %s's host: %s: %s", backend, tr.Role, tr.Verdict, tr.Reason)
			}
			for _, s := range tr.Steps {
				if s.OK == nil || !*s.OK || s.Object == "" || s.Command == "" {
					t.Errorf("%s from the %s's host: %+v", backend, tr.Role, s)
				}
			}
		}
	}
}

// damage is a fault with what the trace must say first.
type damage struct {
	name     string
	backends string // "" for all
	do       func(*Facts)
	at       string
	said     string // a part of the reason
	remedy   string // a part of the remedy
}

func damages() []damage {
	return []damage{
		{"the peer's lease", "", func(f *Facts) { f.Dst.Owner = known(Owner{}) }, atLease, "no host has a lease of a subnet with 10.42.9.2", ""},
		{"this host's lease", "", func(f *Facts) { f.Src.Owner = known(Owner{}) }, atLease, "this host's lease of 10.42.7.0/24 is missing", "systemctl restart flanneld"},
		{"lease of another host", "", func(f *Facts) { f.Src.Owner = ownerOf(8, "vxlan") }, atLease, "names another host, 192.0.2.8", "docker"},
		{"skipped peer", "", func(f *Facts) { f.Skipped = "VTEP MAC is our own" }, atLease, "leaves the peer out: VTEP MAC is our own", ""},
		{"address of docker0", "", (*Facts).withoutBridge, atBridge, "no interface has an address of this host's subnet 10.42.7.0/24", "ip addr add 10.42.7.1/24 dev docker0"},
		{"no such container", "", func(f *Facts) { f.Src.Neighbor.Value.State = "FAILED" }, atContainer, "no container answers ARP for 10.42.7.2 on docker0", ""},
		{"forwarding", "", func(f *Facts) { f.OutForwards.Value = false }, atForwarding, "docker0 does not forward packets", "ip_forward=1"},
		{"forward rule", "", func(f *Facts) {
			f.OutRules.Value = append(f.OutRules.Value, Filtered{"new TCP packets", Dropped, "the policy of chain FORWARD in nftables table ip filter", "nft -a list chain ip filter FORWARD", "iptables-nft -I FORWARD -s 10.42.0.0/16 -j ACCEPT"})
		}, atRules, "new TCP packets are dropped by the policy of chain FORWARD", "-j ACCEPT"},
		{"forward rule for replies", "", func(f *Facts) { f.InRules.Value[0].Fate = Dropped }, atRules, "reply ICMP, TCP and UDP packets are dropped", ""},
		{"masqueraded", "", func(f *Facts) { f.OutRules.Value[0].Fate = Translated }, atRules, "get another source address", ""},
		{"tunnel port", "vxlan udp", func(f *Facts) { f.TunnelIn.Value[0].Fate = Dropped }, atRules, "tunnel packets are dropped", ""},
		{"device", "vxlan udp", func(f *Facts) {
			f.deleteRoute()
			clear(f.Have.Value.Neighs)
			clear(f.Have.Value.FDB)
			clear(f.Have.Value.Links)
			f.DeviceFaults = known([]string{"it does not exist"})
		}, atDevice, "it does not exist", "systemctl restart flanneld"},
		{"route", "vxlan", (*Facts).deleteRoute, atRoute, "the route 10.42.9.0/24 via 10.42.9.0 dev flannel.1 onlink is missing: packets go to 10.42.9.2 via 192.0.2.1 dev eth0", "ip route replace 10.42.9.0/24 via 10.42.9.0 dev flannel.1 onlink"},
		{"route", "udp", (*Facts).deleteRoute, atRoute, "the route 10.42.0.0/16 dev flannel0 scope global is missing", "ip route replace 10.42.0.0/16 dev flannel0 scope global"},
		{"route", "host-gw", (*Facts).deleteRoute, atRoute, "the route 10.42.9.0/24 via 192.0.2.9 dev eth0 proto 70 is missing", "ip route replace 10.42.9.0/24 via 192.0.2.9 dev eth0 proto 70"},
		{"no route at all", "alloc", func(f *Facts) { f.Out = known(host.Decision{Refused: "there is no route"}) }, atRoute, "there is no route, and the backend alloc makes none: another program must lead packets to 10.42.9.0/24 on 192.0.2.9", ""},
		{"rule", "vxlan udp host-gw", func(f *Facts) { f.Out.Value.Table = 7 }, atRoute, "a rule selects the routing table 7", "ip rule add to 10.42.0.0/16"},
		{"foreign route", "vxlan udp host-gw", func(f *Facts) { f.Out.Value.Iface = "tun9" }, atRoute, "another route precedes", "ip route show"},
		{"reverse path filter", "vxlan udp host-gw", func(f *Facts) { f.In.Value = host.Decision{Refused: "reverse path filtering drops it"} }, atBridge, "are dropped: reverse path filtering drops it", ""},
		{"neighbor", "vxlan", func(f *Facts) { clear(f.Have.Value.Neighs) }, atNeighbor, "the neighbour entry of 10.42.9.0 is missing", "ip neigh replace 10.42.9.0 lladdr 02:00:00:00:00:09 dev flannel.1 nud permanent"},
		{"other MAC", "vxlan", func(f *Facts) {
			f.Have.Value.Neighs[dataplane.NeighKey{Link: "flannel.1", IP: addr("10.42.9.0")}] = dataplane.MAC{2, 1}
		}, atNeighbor, "are sent to 02:01:00:00:00:00, and the peer's lease has 02:00:00:00:00:09", "ip neigh replace"},
		{"no ARP", "host-gw", func(f *Facts) { f.NextHop.Value.State = "FAILED" }, atNeighbor, "192.0.2.9 does not answer ARP on eth0", ""},
		{"FDB", "vxlan", func(f *Facts) { clear(f.Have.Value.FDB) }, atFDB, "the FDB entry of 02:00:00:00:00:09 is missing", "bridge fdb replace 02:00:00:00:00:09 dev flannel.1 dst 192.0.2.9 self permanent"},
		{"other host in the FDB", "vxlan", func(f *Facts) {
			clear(f.Have.Value.FDB)
			f.Have.Value.FDB[dataplane.FDB{Link: "flannel.1", MAC: peerMAC, Dst: addr("192.0.2.66")}] = struct{}{}
		}, atFDB, "are sent to 192.0.2.66, and the peer is 192.0.2.9", "bridge fdb replace"},
		{"stopped daemon", "udp", func(f *Facts) { f.Daemon.Stopped = true }, atTunnel, "stopped by a signal", "kill -CONT 812"},
		{"daemon down", "udp", func(f *Facts) {
			f.Daemon.Down = true
			f.DeviceFaults = known([]string{"it does not exist"})
		}, atDevice, "belongs to flanneld, which does not run", "systemctl start flanneld"},
		{"uplink down", "vxlan udp", func(f *Facts) { f.UplinkState.Value.Up = false }, atUplink, "eth0 is down", "ip link set eth0 up"},
		{"peer is silent", "vxlan udp host-gw", func(f *Facts) { f.Peer.Overlay, f.Peer.Container = known(false), known(false) }, atPeer, "and now only at its public IP", "flanneld doctor # on 192.0.2.9"},
		{"peer is off", "vxlan udp", func(f *Facts) {
			f.Peer.PublicIP, f.Peer.Overlay, f.Peer.Container = known(false), known(false), known(false)
		}, atPeer, "and now neither there nor at its public IP", "ping -c 3 192.0.2.9"},
	}
}

// TestFirstThingWrongIsNamed makes each fault on a host that sends and on one that receives.
func TestFirstThingWrongIsNamed(t *testing.T) {
	for _, d := range damages() {
		backends := strings.Fields(d.backends)
		if len(backends) == 0 {
			backends = []string{"vxlan", "udp", "host-gw", "alloc"}
		}
		for _, backend := range backends {
			for _, role := range []Role{Sender, Receiver} {
				f := healthy(backend)
				if d.do(f); role == Receiver {
					f.turned()
				}
				tr := Walk(*f)
				if tr.Verdict != Broken || !strings.HasPrefix(tr.Reason, d.at+": ") || !strings.Contains(tr.Reason, d.said) || !strings.Contains(tr.Remedy, d.remedy) {
					t.Errorf("%s, %s, from the %s's host: %s: %s (%s), want %s: %s (%s)\n%s", d.name, backend, role, tr.Verdict, tr.Reason, tr.Remedy, d.at, d.said, d.remedy, f.text())
				}
			}
		}
	}
}

// TestPeersHalf: what the peer's flanneld says, and what it may not say.
func TestPeersHalf(t *testing.T) {
	fine := func() status.Document {
		return status.Document{
			Verdict: status.VerdictOK, Network: status.Network{CIDR: prefix("10.42.0.0/16")}, Lease: status.Lease{Subnet: prefix("10.42.9.0/24")},
			Bridge: &status.Bridge{Device: "docker0", Address: addr("10.42.9.1"), MTU: 1450},
			Peers:  []status.Peer{{Subnet: prefix("10.42.7.0/24"), PublicIP: addr("192.0.2.7"), State: status.OK, Programmed: "fdb, neighbor, route"}},
		}
	}
	for _, x := range []struct {
		name    string
		do      func(*status.Document)
		verdict Verdict
		said    string
	}{
		{"fine", func(*status.Document) {}, OK, ""},
		{"device", func(d *status.Document) {
			d.Conditions = []status.Condition{{ID: "base/link flannel.1", Severity: status.Severe, Text: "failed to set up the overlay on this host", Remedy: "rm -rf /"}}
		}, Broken, "peer: its flanneld says: failed to set up the overlay on this host"},
		{"of no concern", func(d *status.Document) {
			d.Conditions = []status.Condition{{ID: "etcd", Severity: status.Warning, Text: "etcd does not answer"}, {ID: "base/x", Severity: status.Notice, Text: "x"}}
		}, OK, ""},
		{"no bridge", func(d *status.Document) { d.Bridge = new(status.Bridge) }, OK, ""}, // the container answers
		{"older flanneld", func(d *status.Document) { d.Bridge = nil }, OK, ""},
		{"skips us", func(d *status.Document) { d.Peers[0].State, d.Peers[0].Reason = status.Skipped, "public IP is our own" }, Broken, "its flanneld says: skipped: public IP is our own"},
		{"sends elsewhere", func(d *status.Document) { d.Peers[0].PublicIP = addr("192.0.2.66") }, Broken, "sends packets for 10.42.7.0/24 to 192.0.2.66"},
		{"does not know us", func(d *status.Document) { d.Peers, d.Store.ViewAge = nil, new(float64) }, Broken, "it knows no host with 10.42.7.0/24"},
		{"has no list yet", func(d *status.Document) { d.Peers = nil }, Unknown, "no list of hosts yet"},
		{"does not know", func(d *status.Document) { d.Peers[0].State = status.Unknown }, Unknown, "does not know whether it has them"},
		{"other subnet", func(d *status.Document) { d.Lease.Subnet = prefix("10.42.8.0/24") }, Broken, "its subnet is 10.42.8.0/24"},
		{"no subnet", func(d *status.Document) { d.Lease.Subnet = netip.Prefix{} }, Broken, "it has no subnet"},
		{"lost", func(d *status.Document) { d.Lease.Lost = true }, Broken, "another host has taken its subnet"},
		{"other network", func(d *status.Document) { d.Network.CIDR = prefix("10.9.0.0/16") }, Unknown, "serves another network, 10.9.0.0/16"},
		{"nothing", func(d *status.Document) { *d = status.Document{} }, Unknown, "serves another network"},
	} {
		for _, turned := range []bool{false, true} {
			f, d := healthy("vxlan"), fine()
			x.do(&d)
			f.Peer.Status, f.Peer.Asked = known(d), "curl http://192.0.2.9:9285/status"
			if turned {
				f.turned()
			}
			tr := Walk(*f)
			if tr.Verdict != x.verdict || !strings.Contains(tr.Reason, x.said) || strings.Contains(f.text(), "rm -rf") {
				t.Errorf("%s: %s: %s, want %s: %s\n%s", x.name, tr.Verdict, tr.Reason, x.verdict, x.said, f.text())
			}
		}
	}
}

// TestPeerWithoutBridge: what the peer's flanneld says of its bridge is what is wrong, if the
// container does not answer. What it does not say stays unknown.
func TestPeerWithoutBridge(t *testing.T) {
	for _, x := range []struct {
		name      string
		bridge    *status.Bridge
		container Known[bool]
		verdict   Verdict
		said      string
	}{
		{"none", new(status.Bridge), known(false), Broken, "peer: its flanneld says: no interface of that host has an address of its subnet 10.42.9.0/24, so it has no way to its containers"},
		{"none, and no pings", new(status.Bridge), unknown[bool](), Broken, "peer: its flanneld says: no interface of that host"},
		{"none, and an answer", new(status.Bridge), known(true), OK, ""},
		{"a bridge", &status.Bridge{Device: "cni0"}, known(false), Unknown, "container: 10.42.9.2 does not answer pings"},
		{"unknown", nil, known(false), Unknown, "container: 10.42.9.2 does not answer pings"},
	} {
		for _, backend := range []string{"vxlan", "udp", "host-gw", "alloc"} {
			for _, role := range []Role{Sender, Receiver} {
				f := healthy(backend)
				f.Peer.Container, f.Peer.Asked = x.container, "curl http://192.0.2.9:9285/status"
				f.Peer.Status = known(status.Document{
					Verdict: status.VerdictOK, Network: status.Network{CIDR: prefix("10.42.0.0/16")}, Lease: status.Lease{Subnet: prefix("10.42.9.0/24")}, Bridge: x.bridge,
					Peers: []status.Peer{{Subnet: prefix("10.42.7.0/24"), PublicIP: addr("192.0.2.7"), State: status.OK}},
				})
				if role == Receiver {
					f.turned()
				}
				tr := Walk(*f)
				said := x.said
				if backend == "alloc" && x.verdict == Unknown {
					said = "" // the route is unknown before
				}
				if tr.Verdict != x.verdict || !strings.HasPrefix(tr.Reason, said) {
					t.Errorf("%s, %s, %s: %s: %s\n%s", x.name, backend, role, tr.Verdict, tr.Reason, f.text())
				}
				if x.name == "none" && backend == "vxlan" {
					golden.Equal(t, "testdata/peer-without-bridge-"+string(role)+".txt", f.text())
				}
			}
		}
	}
}

// TestUnknownIsNeverWrong: whatever is not known makes no step wrong, and the verdict is not ok if a
// step is not known.
func TestUnknownIsNeverWrong(t *testing.T) {
	for name, forget := range map[string]func(*Facts){
		"leases": func(f *Facts) {
			f.Src.Owner, f.Dst.Owner, f.Want = unknown[Owner](), unknown[Owner](), unknown[dataplane.State]()
		},
		"want":          func(f *Facts) { f.Want = unknown[dataplane.State]() },
		"have":          func(f *Facts) { f.Have = unknown[dataplane.State]() },
		"device":        func(f *Facts) { f.DeviceFaults = unknown[[]string]() },
		"out":           func(f *Facts) { f.Out = unknown[host.Decision]() },
		"in":            func(f *Facts) { f.In = unknown[host.Decision]() },
		"outer":         func(f *Facts) { f.Outer = unknown[host.Decision]() },
		"delivery":      func(f *Facts) { f.Src.Delivery = unknown[host.Decision]() },
		"neighbor":      func(f *Facts) { f.Src.Neighbor = unknown[host.Neighbor]() },
		"next hop":      func(f *Facts) { f.NextHop = unknown[host.Neighbor]() },
		"uplink":        func(f *Facts) { f.UplinkState = unknown[host.Iface]() },
		"forwarding":    func(f *Facts) { f.OutForwards, f.InForwards = unknown[bool](), unknown[bool]() },
		"rules":         func(f *Facts) { f.OutRules, f.InRules = unknown[[]Filtered](), unknown[[]Filtered]() },
		"tunnel rules":  func(f *Facts) { f.TunnelOut, f.TunnelIn = unknown[[]Filtered](), unknown[[]Filtered]() },
		"unclear rules": func(f *Facts) { f.OutRules.Value[0].Fate = Unclear },
		"daemon":        func(f *Facts) { f.Peer.Entry = unknown[status.Peer]() },
		"pings": func(f *Facts) {
			f.Peer.Overlay, f.Peer.Container, f.Peer.PublicIP = unknown[bool](), unknown[bool](), unknown[bool]()
		},
		"no answers": func(f *Facts) {
			f.Peer.Overlay, f.Peer.Container, f.Peer.Entry.Value.RTT = known(false), known(false), nil
		},
		"no ARP entry": func(f *Facts) { f.Src.Neighbor.Value = host.Neighbor{} },
		"everything": func(f *Facts) {
			*f = Facts{Src: Side{Addr: f.Src.Addr, Here: true}, Dst: Side{Addr: f.Dst.Addr}}
		},
	} {
		for _, backend := range []string{"vxlan", "udp", "host-gw", "alloc"} {
			for _, turned := range []bool{false, true} {
				f := healthy(backend)
				if forget(f); turned {
					f.turned()
				}
				tr := Walk(*f)
				if tr.Verdict == Broken {
					t.Errorf("%s, %s: %s: %s", name, backend, tr.Verdict, tr.Reason)
				}
				vague := slices.ContainsFunc(tr.Steps, func(s Step) bool { return s.OK == nil })
				if vague != (tr.Verdict == Unknown) || vague == (tr.Reason == "") {
					t.Errorf("%s, %s: %s: %s\n%s", name, backend, tr.Verdict, tr.Reason, f.text())
				}
			}
		}
	}
}

// TestSilenceIsNotHeldAgainstThePeer while something on this host is wrong.
func TestSilenceIsNotHeldAgainstThePeer(t *testing.T) {
	for _, turned := range []bool{false, true} {
		f := healthy("vxlan")
		f.deleteRoute()
		if f.Peer.Overlay, f.Peer.Container = known(false), known(false); turned {
			f.turned()
		}
		for _, s := range Walk(*f).Steps {
			if s.At == atPeer && s.wrong() {
				t.Errorf("%+v", s)
			}
		}
	}
}

func TestContainersOfOneHost(t *testing.T) {
	f := healthy("vxlan")
	f.Dst = f.Src
	f.Dst.Addr = addr("10.42.7.3")
	golden.Equal(t, "testdata/same-host.txt", f.text())
	if tr := Walk(*f); tr.Role != Both || tr.Verdict != OK {
		t.Errorf("%s: %s", tr.Verdict, tr.Reason)
	}
	f.InRules.Value[0].Fate = Dropped
	if tr := Walk(*f); tr.Verdict != Broken || !strings.HasPrefix(tr.Reason, "rules: ") {
		t.Errorf("%s: %s", tr.Verdict, tr.Reason)
	}
	f.withoutBridge()
	f.Dst.Delivery = f.Src.Delivery
	if tr := Walk(*f); tr.Verdict != Broken || !strings.HasPrefix(tr.Reason, "bridge: no interface") {
		t.Errorf("%s: %s", tr.Verdict, tr.Reason)
	}
	// Two bridges, between which this host forwards.
	f = healthy("vxlan")
	f.Dst = f.Src
	f.Dst.Addr, f.Dst.Delivery = addr("10.42.7.130"), known(host.Decision{Iface: "cni0"})
	f.Out, f.In = f.Dst.Delivery, f.Src.Delivery
	if tr := Walk(*f); tr.Verdict != OK || !slices.ContainsFunc(tr.Steps, func(s Step) bool { return s.At == atForwarding }) {
		t.Errorf("%s: %s", tr.Verdict, tr.Reason)
	}
}

func TestAddressesOfOtherHosts(t *testing.T) {
	f := healthy("vxlan")
	f.Src = Side{Addr: addr("10.42.8.2"), Owner: ownerOf(8, "vxlan")}
	golden.Equal(t, "testdata/neither.txt", f.text())
	if tr := Walk(*f); tr.Role != Neither || tr.Verdict != Unknown || len(tr.Steps) != 2 {
		t.Errorf("%+v", tr)
	}
	f.Dst.Addr = addr("192.168.1.1")
	if tr := Walk(*f); tr.Verdict != Broken || tr.Reason != "lease: 192.168.1.1 is not in the network 10.42.0.0/16" {
		t.Errorf("%+v", tr)
	}
	f = healthy("vxlan")
	f.Src.Delivery = known(host.Decision{Iface: "lo", Local: true})
	if tr := Walk(*f); tr.Verdict != Broken || !strings.Contains(tr.Reason, "is an address of this host itself") {
		t.Errorf("%s: %s", tr.Verdict, tr.Reason)
	}
}

func TestJSONForm(t *testing.T) {
	f := healthy("vxlan")
	clear(f.Have.Value.FDB)
	f.Peer.Container = known(false)
	var b strings.Builder
	if err := Walk(*f).JSON(&b); err != nil {
		t.Fatal(err)
	}
	golden.Equal(t, "testdata/fdb.json", b.String())
	golden.Equal(t, "testdata/fdb.txt", f.text())
	b.Reset()
	if err := (Style{Color: true}).Text(&b, Walk(*f)); err != nil || !strings.Contains(b.String(), red+"✗"+plain) || !strings.Contains(b.String(), red+"broken"+plain) {
		t.Errorf("%v: %q", err, b.String())
	}
}
