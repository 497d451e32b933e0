package host

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"flanneld/pkg/shell"
)

// Finding is a problem on this host that breaks traffic of the overlay, with the command that
// repairs it. flanneld does not run the command.
type Finding struct {
	ID      string // identifies the problem while it lasts
	Text    string // constant sentence in lower case
	Fields  []any  // alternating keys and values as for slog
	Command string
}

// Peer is another host as the checks need it.
type Peer struct {
	Subnet   netip.Prefix
	PublicIP netip.Addr
}

// Overlay is the overlay network that the checks compare this host with.
type Overlay struct {
	Network netip.Prefix
	Subnet  netip.Prefix   // this host's
	Peers   []Peer         // sorted by subnet, none overlaps another
	Devices []string       // devices of the overlay
	Others  []netip.Prefix // networks of other flanneld processes on this host
	// Routed are the destinations of routes into a device of the overlay that are shared by all
	// peers.
	Routed []netip.Prefix
	// Masquerade is set if hosts masquerade packets that leave the overlay.
	Masquerade bool
}

// Link is an interface with its IPv4 addresses.
type Link struct {
	Name, Kind string // Kind as in ip-link(8), "device" for hardware
	MTU        int
	Addrs      []netip.Prefix
}

// Path is a route of any type in the main table that does not belong to the overlay.
type Path struct {
	Route
	Type string // as in ip-route(8): "" for unicast, "blackhole", "unreachable", ...
}

func (p Path) String() string {
	words := []string{p.Type, p.Dst.String()}
	if p.Gateway.IsValid() {
		words = append(words, "via "+p.Gateway.String())
	}
	if p.Iface != "" {
		words = append(words, "dev "+shell.Word(p.Iface))
	}
	if p.Metric != 0 {
		words = append(words, fmt.Sprint("metric ", p.Metric))
	}
	return strings.TrimSpace(strings.Join(words, " "))
}

// Detour is a routing table that a rule with precedence over the main table selects, and the route
// in it for an address of this host's subnet.
type Detour struct {
	Table    int
	Iface    string // output interface
	Priority int    // of the rule
}

// Surroundings are the foreign links, routes and rules that affect the overlay.
type Surroundings struct {
	Links []Link // with IPv4 addresses
	Paths []Path // that affect the overlay, in kernel order
	// Detour is for a container of this host; nil if the main table is used.
	Detour *Detour
}

// Check returns the problems in the surroundings.
func (o Overlay) Check(f Facts, s Surroundings) []Finding {
	return slices.Concat(o.dockerBridges(s), o.divertedFromContainers(f, s), o.detour(s), o.divertedFromPeers(f, s), o.subnetInside(s), o.unreachable(f, s),
		o.needInside(f), o.nameServers(f, s))
}

// dockerBridge reports whether a link is a bridge of Docker, by its name: the default bridge, the
// one of swarm mode, or the bridge of a network, which has the first 12 digits of the network's ID.
func (l Link) dockerBridge() bool {
	id, made := strings.CutPrefix(l.Name, "br-")
	made = made && len(id) == 12 && strings.Trim(id, "0123456789abcdef") == ""
	return l.Kind == "bridge" && (l.Name == "docker0" || l.Name == "docker_gwbridge" || made)
}

// serves reports whether the link has an address of the subnet, as the bridge of this host's
// containers has.
func (o Overlay) serves(l Link) bool {
	return !slices.Contains(o.Devices, l.Name) &&
		slices.ContainsFunc(l.Addrs, func(a netip.Prefix) bool { return within(a, o.Subnet) })
}

// within reports whether a is equal to or inside b.
func within(a, b netip.Prefix) bool { return a.Bits() >= b.Bits() && b.Contains(a.Addr()) }

// dockerBridges returns findings for Docker bridges whose addresses conflict with the leases. Other
// Docker networks may be anywhere outside the overlay's network. So may docker0, if another bridge
// serves the subnet or docker0 is in the network of another flanneld process.
func (o Overlay) dockerBridges(s Surroundings) (found []Finding) {
	served := slices.ContainsFunc(s.Links, o.serves)
	for _, l := range s.Links {
		if !l.dockerBridge() {
			continue
		}
		for _, a := range l.Addrs {
			text, fields := "", []any{"device", l.Name, "addr", a, "subnet", o.Subnet}
			switch at, taken := o.peerOverlapping(a); {
			case within(a, o.Subnet):
			case within(o.Network, a):
				text = "docker bridge covers the whole network, so its containers cannot reach other hosts"
			case taken:
				text, fields = "docker bridge has addresses of another host's subnet", append(fields, "peer", at)
			case a.Overlaps(o.Network) || l.Name == "docker0" && !served && !slices.ContainsFunc(o.Others, a.Overlaps):
				text = "docker bridge is not on this host's subnet, so other hosts cannot reach its containers"
			}
			if text != "" {
				found = append(found, Finding{ID: "docker/" + l.Name, Text: text, Fields: fields, Command: l.dockerCommand()})
				break
			}
		}
	}
	return found
}

// dockerCommand returns the command that changes the subnet of a bridge: restarting Docker gives
// docker0 the subnet of the subnet file; other networks have to be recreated.
func (l Link) dockerCommand() string {
	if l.Name == "docker0" {
		return "systemctl restart docker"
	}
	return "docker network rm " + strings.TrimPrefix(l.Name, "br-")
}

// peerOverlapping returns a peer's subnet that overlaps p.
func (o Overlay) peerOverlapping(p netip.Prefix) (netip.Prefix, bool) {
	p = p.Masked()
	i, _ := slices.BinarySearchFunc(o.Peers, p.Addr(), func(q Peer, a netip.Addr) int { return q.Subnet.Addr().Compare(a) })
	for _, j := range []int{i - 1, i} { // the last that starts before p, and the first after that
		if j >= 0 && j < len(o.Peers) && o.Peers[j].Subnet.Overlaps(p) {
			return o.Peers[j].Subnet, true
		}
	}
	return netip.Prefix{}, false
}

// divertedFromContainers returns findings for foreign routes with precedence over the route of the
// bridge that serves the subnet, or that will once the bridge exists. If a Docker bridge serves the
// subnet, only that one counts. Without a bridge, containers may have a route each.
func (o Overlay) divertedFromContainers(f Facts, s Surroundings) []Finding {
	serving := map[string]bool{}
	for _, docker := range []bool{true, false} {
		for _, l := range s.Links {
			if o.serves(l) && l.Name != f.Uplink && (l.dockerBridge() || !docker) {
				serving[l.Name] = true
			}
		}
		if len(serving) > 0 {
			break
		}
	}
	first := map[netip.Prefix]Path{} // the preferred route to each destination
	for _, p := range s.Paths {
		if q, there := first[p.Dst]; within(p.Dst, o.Subnet) && (!there || p.Metric < q.Metric) {
			first[p.Dst] = p
		}
	}
	var wrong []Path
	var lans []Finding
	for _, p := range s.Paths {
		local := p.Type == "" && !p.Gateway.IsValid() && p.Iface != "" && p.Iface != f.Uplink
		switch {
		case first[p.Dst] != p || serving[p.Iface]:
		case len(serving) == 0 && (local || p.Dst == o.Subnet && p.Metric > 0): // unused, or with a higher metric than docker0's route will have
		case p.Kernel && (p.Iface == f.Uplink || s.link(p.Iface).Kind == "device"): // a LAN, whose address must not be deleted
			lans = []Finding{{
				ID:     LANInside,
				Text:   "LAN of this host overlaps its subnet, so containers with addresses of the LAN are unreachable",
				Fields: []any{"subnet", o.Subnet, "route", p.String()},
			}}
		default:
			wrong = append(wrong, p)
		}
	}
	return append(lans, s.findPaths("route", "foreign route diverts packets for this host's containers", wrong, "subnet", o.Subnet)...)
}

// LANInside is the ID of the finding that a LAN overlaps this host's subnet.
const LANInside = "lan-inside"

func (s Surroundings) link(name string) Link {
	l, _ := find(s.Links, func(l Link) bool { return l.Name == name })
	return l
}

// detour returns a finding if another table has precedence over the bridge that serves the subnet.
// Before the bridge exists, packets follow the default route, which may be in any table.
func (o Overlay) detour(s Surroundings) []Finding {
	if s.Detour == nil || !slices.ContainsFunc(s.Links, o.serves) || o.serves(s.link(s.Detour.Iface)) {
		return nil
	}
	return []Finding{{
		ID: "rule", Text: "routing rule diverts packets for this host's containers to another table",
		Fields:  []any{"subnet", o.Subnet, "table", s.Detour.Table, "iface", s.Detour.Iface},
		Command: fmt.Sprintf("ip rule add to %s lookup main priority %d", o.Network, max(s.Detour.Priority-1, 0)),
	}}
}

// Container returns an address of this host's subnet that a container may have.
func (o Overlay) Container() netip.Addr { return o.Subnet.Addr().Next().Next() }

// divertedFromPeers returns a finding if foreign routes are more specific than the route to a peer.
// Exceptions are the uplink's own link and Docker bridges, which have findings of their own, and
// routes to single addresses that the host needs, which are intended.
func (o Overlay) divertedFromPeers(f Facts, s Surroundings) []Finding {
	var wrong []Path
	var peer netip.Prefix
	for _, p := range s.Paths {
		at, taken := o.peerOverlapping(p.Dst)
		if !taken || p.Dst.Bits() <= at.Bits() || p.Kernel && (p.Iface == f.Uplink || s.link(p.Iface).dockerBridge()) || p.Dst.IsSingleIP() && o.needs(f, p.Dst.Addr()) {
			continue
		}
		if len(wrong) == 0 {
			peer = at
		}
		wrong = append(wrong, p)
	}
	return s.findPaths("peer-route", "foreign route diverts packets for a peer's containers", wrong, "peer", peer)
}

// examples is the maximum number of routes that a finding names.
const examples = 3

func (s Surroundings) findPaths(id, text string, wrong []Path, fields ...any) []Finding {
	if len(wrong) == 0 {
		return nil
	}
	var names, commands []string
	for _, p := range wrong[:min(len(wrong), examples)] {
		names = append(names, p.String())
		if c := s.removeCommand(p); c != "" {
			commands = append(commands, c)
		}
	}
	return []Finding{{
		ID: id, Text: text, Command: strings.Join(commands, "; "),
		Fields: append(fields, "route", strings.Join(names, "; "), "routes", len(wrong)),
	}}
}

// removeCommand returns the command that removes a route. The route of an address is removed by
// deleting the address, unless it is a hardware interface's, which must keep it.
func (s Surroundings) removeCommand(p Path) string {
	l := s.link(p.Iface)
	a, ok := find(l.Addrs, func(a netip.Prefix) bool { return a.Masked() == p.Dst })
	switch {
	case !ok || !p.Kernel:
		return "ip route del " + p.String()
	case l.Kind == "device":
		return ""
	}
	return fmt.Sprintf("ip addr del %s dev %s", a, shell.Word(l.Name))
}

// unreachable returns a finding if the address of a peer is reached only by the overlay's shared
// route: packets to it would loop through the overlay.
func (o Overlay) unreachable(f Facts, s Surroundings) []Finding {
	var lost []netip.Addr
	for _, peer := range o.Peers {
		if p, ok := o.routed(peer.PublicIP); ok && !s.hasRouteTo(peer.PublicIP, p.Bits()) {
			lost = append(lost, peer.PublicIP)
		}
	}
	if len(lost) == 0 {
		return nil
	}
	slices.SortFunc(lost, netip.Addr.Compare)
	return []Finding{{
		ID: "peer-address", Text: "network contains the address of a peer that no underlay route reaches",
		Fields:  []any{"network", o.Network, "public_ip", lost[0], "peers", len(lost)},
		Command: s.bypassCommand(f, lost[0]),
	}}
}

// bypassCommand returns the command that adds a route to an address through the uplink, bypassing
// the overlay.
func (s Surroundings) bypassCommand(f Facts, a netip.Addr) string {
	command := fmt.Sprintf("ip route add %s/%d dev %s", a, a.BitLen(), shell.Word(f.Uplink))
	byUplink := slices.DeleteFunc(s.index(f).routes, func(r Route) bool { return r.Iface != f.Uplink })
	byDefault, _ := Lookup(byUplink, a)
	if via := byDefault.Gateway; via.IsValid() {
		command = fmt.Sprintf("ip route add %s/%d via %s dev %s", a, a.BitLen(), via, shell.Word(f.Uplink))
		if _, direct := f.OnLink(via); !direct {
			command += " onlink"
		}
	}
	return command
}

// Relevant returns a filter for the foreign routes that the checks need: those that overlap the
// subnet of this host or a peer, and those to a peer's public IP. A routing daemon may have added a
// million others.
func (o Overlay) Relevant() func(dst netip.Prefix) bool {
	addrs := make([]netip.Addr, 0, len(o.Peers))
	for _, p := range o.Peers {
		addrs = append(addrs, p.PublicIP)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return func(dst netip.Prefix) bool {
		i, _ := slices.BinarySearchFunc(addrs, dst.Masked().Addr(), netip.Addr.Compare)
		if i < len(addrs) && dst.Contains(addrs[i]) {
			return true
		}
		_, peer := o.peerOverlapping(dst)
		return within(dst, o.Network) && (peer || dst.Overlaps(o.Subnet))
	}
}
