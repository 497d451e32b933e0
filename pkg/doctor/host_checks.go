package doctor

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"flanneld/pkg/host"
)

// hostChecks returns the checks of this host's settings, apart from its packet filters.
func hostChecks() []Check {
	return []Check{
		{ID: "FL-IP-FORWARD", Explains: []string{"host/ip-forward"}, Rank: rankFilter + 3, Run: settingCheck("IP forwarding is on", "ip-forward")},
		{ID: "FL-RP-FILTER", Explains: []string{"host/rp-filter/"}, Rank: rankHost + 1, Run: settingCheck("reverse path filtering drops no packets of the overlay", "rp-filter/")},
		// Before the checks of etcd, to which no new connection can be made then.
		{ID: "FL-CONNTRACK-FULL", Explains: []string{"host/conntrack"}, Rank: rankStore - 1, Run: settingCheck("the conntrack table has room", "conntrack")},
		{ID: "FL-NEIGH-LIMIT", Rank: rankHost + 3, Run: checkNeighbors},
		{ID: "FL-PORT-TAKEN", Explains: []string{"base/"}, Rank: rankHost - 2, Run: checkPort},
		{ID: "FL-DOCKER-SUBNET", Explains: []string{"host/docker/"}, Rank: rankHost - 3, Run: surroundingsCheck("docker's bridges are where they should be", "docker/")},
		{ID: "FL-ROUTE-FOREIGN", Rank: rankHost - 1, Explains: []string{"host/route", "host/rule", "host/peer-route", "host/peer-address", "host/" + host.LANInside}, Run: surroundingsCheck("no route or rule of another program diverts packets of the overlay",
			"route", "rule", "peer-route", "peer-address", host.LANInside)},
		{ID: "FL-BRIDGE-MTU", Rank: rankHost + 4, Run: checkBridgeMTU},
	}
}

// settingCheck returns a check that fails if package host finds something wrong in sysctls.
func settingCheck(fine string, ids ...string) func(context.Context, *Inputs) Result {
	return func(ctx context.Context, in *Inputs) Result {
		values, err := in.Sysctls.Get(ctx)
		if err != nil {
			return unknownf("cannot read sysctls: %v", err)
		}
		if ids[0] == "ip-forward" && values["net/ipv4/ip_forward"] == "" {
			return unknownf("sysctl net.ipv4.ip_forward is missing")
		}
		s, err := in.Surroundings.Get(ctx)
		if err != nil {
			return unknownf("cannot read routes: %v", err)
		}
		o, f := in.hostOverlay(ctx)
		r := findings(o.CheckSysctls(f, s, values), fine, ids)
		if r.Status == OK && ids[0] == "rp-filter/" && f.Uplink == "" {
			return unknownf("the interface that carries the overlay is not known")
		}
		return r
	}
}

// surroundingsCheck returns a check that fails if package host finds something wrong in links,
// routes and rules of other programs.
func surroundingsCheck(fine string, ids ...string) func(context.Context, *Inputs) Result {
	return func(ctx context.Context, in *Inputs) Result {
		if known, err := in.Overlay.Get(ctx); err != nil || !known.Subnet.IsValid() {
			return unknownf("this host's subnet is not known")
		}
		s, err := in.Surroundings.Get(ctx)
		if err != nil {
			return unknownf("cannot read links and routes: %v", err)
		}
		o, f := in.hostOverlay(ctx)
		return findings(o.Check(f, s), fine, ids)
	}
}

// findings fails if there is one with one of the IDs, or with one of the prefixes that end with a
// slash.
func findings(all []host.Finding, fine string, ids []string) Result {
	var texts, commands []string
	for _, f := range all {
		if !slices.ContainsFunc(ids, func(id string) bool { return f.ID == id || strings.HasSuffix(id, "/") && strings.HasPrefix(f.ID, id) }) {
			continue
		}
		texts = append(texts, describe(f))
		if f.Command != "" && !slices.Contains(commands, f.Command) {
			commands = append(commands, f.Command)
		}
	}
	if len(texts) == 0 {
		return okf("%s", fine)
	}
	return failf(strings.Join(commands, "\n"), "%s", strings.Join(texts, "; "))
}

// checkNeighbors fails if the kernel's table of neighbours has no room for the peers. Peers on the
// link have an entry for their public IP each, which the kernel makes. Before 5.0 it also counts
// the permanent entries of the overlay's device (neigh_alloc in net/core/neighbour.c).
func checkNeighbors(ctx context.Context, in *Inputs) Result {
	const always = 100 // entries that fit into any table
	o, err := in.Overlay.Get(ctx)
	if err != nil {
		return unknownf("the number of peers is not known: %v", err)
	}
	values, err := in.Sysctls.Get(ctx)
	if err != nil {
		return unknownf("cannot read sysctls: %v", err)
	}
	inv, err := in.Inventory.Get(ctx)
	if err != nil {
		return unknownf("cannot read routes: %v", err)
	}
	release, _ := in.Release.Get(ctx)
	underlay := slices.DeleteFunc(slices.Clone(inv.Routes), func(r host.Route) bool { return r.Stamped || r.Iface == o.Device })
	entries := 0
	for _, l := range o.Peers {
		if r, ok := host.Lookup(underlay, l.PublicIP); ok && !r.Gateway.IsValid() {
			entries++
		}
		if o.Backend == "vxlan" && older(release, 5, 0, 0) {
			entries++
		}
	}
	if entries < always {
		return okf("the kernel's table of neighbours has room for %d peers", len(o.Peers))
	}
	most, err := strconv.Atoi(values[neighLimit])
	switch {
	case err != nil:
		return unknownf("the limit of the kernel's table of neighbours is not visible in this network namespace (%s)", neighLimit)
	case entries >= most:
		return failf(fmt.Sprintf("sysctl -w net.ipv4.neigh.default.gc_thresh2=%d net.ipv4.neigh.default.gc_thresh3=%d", 2*entries, 4*entries),
			"the kernel's table of neighbours is too small: %d peers need %d entries, and gc_thresh3 is %d", len(o.Peers), entries, most)
	}
	return okf("the kernel's table of neighbours has room for %d peers: gc_thresh3 is %d", len(o.Peers), most)
}

// checkPort fails if another program has the tunnel's port.
func checkPort(ctx context.Context, in *Inputs) Result {
	o, err := in.Overlay.Get(ctx)
	if err != nil {
		return unknownf("the tunnel port is not known: %v", err)
	}
	if o.Port == 0 {
		return okf("the backend has no tunnel port")
	}
	holders, err := in.Port.Get(ctx)
	if err != nil {
		return unknownf("cannot list sockets: %v", err)
	}
	daemons, _ := in.Daemons.Get(ctx)
	for _, h := range holders {
		ours := slices.ContainsFunc(daemons, func(d Daemon) bool { return d.PID == h.PID })
		stored := h.PID == 1 // systemd keeps the socket of a daemon that is down
		if h.PID == 0 || (ours || stored) && o.Backend == "udp" {
			continue // the kernel's own socket for VXLAN, or the daemon's
		}
		return failf(fmt.Sprintf("kill %d", h.PID), "%s has UDP port %d, which the tunnel needs", h, o.Port)
	}
	for _, h := range holders {
		if o.Backend == "vxlan" && !h.Kernel && h.UID != 0 {
			return failf(fmt.Sprintf("ss -ulpn 'sport = :%d'", o.Port), "%s has UDP port %d, which the tunnel needs", h, o.Port)
		}
	}
	return okf("no other program has UDP port %d", o.Port)
}

// checkBridgeMTU fails if containers may send packets that are longer than the overlay carries.
func checkBridgeMTU(ctx context.Context, in *Inputs) Result {
	env, err := in.Env.Get(ctx)
	if err != nil {
		return unknownf("the MTU for containers is not known: %v", err)
	}
	b, err := in.Bridge.Get(ctx)
	if err != nil {
		return unknownf("cannot read the bridge of the containers: %v", err)
	}
	if b.Name == "" {
		return okf("this host has no bridge with its subnet")
	}
	if env.MTU == 0 {
		return unknownf("the subnet file has no MTU")
	}
	for _, p := range b.Ports {
		if p.MTU > env.MTU {
			return failf("systemctl restart docker  # with --mtu=$FLANNEL_MTU, then create the containers again",
				"containers at %s have MTU %d (%s), and the overlay carries %d", b.Name, p.MTU, p.Name, env.MTU)
		}
	}
	if len(b.Ports) == 0 && b.MTU > env.MTU {
		return unknownf("%s has MTU %d and no container yet; new ones need MTU %d", b.Name, b.MTU, env.MTU)
	}
	return okf("containers at %s send packets of up to %d bytes, as the overlay carries", b.Name, env.MTU)
}
