package doctor

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"flanneld/pkg/kernel"
	"flanneld/pkg/status"
)

// pathChecks returns the checks of the paths to other hosts.
func pathChecks() []Check {
	return []Check{
		{ID: "FL-HOST-UNREACHABLE", Rank: rankPath, Run: checkUnderlay, Explains: []string{"peers/unreachable"}},
		{ID: "FL-PATH-MTU", Rank: rankPath + 1, Run: checkPathMTU, Explains: []string{"peers/mtu"}},
		{ID: "FL-PEER-LOSSY", Rank: rankPath + 2, Run: checkLoss, Explains: []string{"peers/lossy"}},
		{ID: "FL-PEER-UNREACHABLE", Rank: rankSymptom - 1, Run: checkOverlay, Explains: []string{"peers/unreachable"}},
	}
}

// Path is what is known of the path to another host. A Reach is Silent only after several pings.
type Path struct {
	Subnet   netip.Prefix
	PublicIP netip.Addr
	Underlay Reach // of its public IP
	Overlay  Reach // of its overlay address
	Full     Reach // the same with packets of full size
	Before   bool  // its overlay address has answered before
	Lossy    bool  // a good part of the packets is lost
}

// Reach is whether an address answers.
type Reach int

// Values of Reach.
const (
	Unasked Reach = iota
	Silent
	Answers
)

// Paths are the paths to the other hosts.
type Paths struct {
	All   []Path
	Other int // hosts that were not asked
}

// readPaths returns what the daemon's probes have shown. What they have not, pings find out.
func (in *Inputs) readPaths(ctx context.Context) (p Paths, err error) {
	o, err := in.Overlay.Get(ctx)
	if err != nil {
		return p, err
	}
	d, derr := in.Status.Get(ctx)
	probed := false
	if derr == nil {
		for i := range d.Peers {
			if d.Peers[i].State == status.Skipped {
				continue // nothing can reach it
			}
			path := fromStatus(&d.Peers[i])
			probed = probed || path.Overlay != Unasked
			p.All = append(p.All, path)
		}
	} else {
		for _, l := range o.Peers {
			p.All = append(p.All, Path{Subnet: l.Subnets.V4(), PublicIP: l.PublicIP})
		}
	}
	// Those that fail are the ones to ask.
	slices.SortStableFunc(p.All, func(a, b Path) int { return int(a.Overlay) - int(b.Overlay) })
	slices.SortStableFunc(p.All, func(a, b Path) int { return boolInt(a.Overlay != Silent) - boolInt(b.Overlay != Silent) })
	if len(p.All) > maxPings {
		p.Other = len(p.All) - maxPings
		p.All = p.All[:maxPings]
	}
	ways := map[netip.Addr]string{}
	err = withKernel(func(k *kernel.Kernel) error {
		for i := range p.All {
			addr := peerAddress(p.All[i].Subnet, o.Device != "")
			// A packet that leaves by another device has missed the overlay.
			if ways[addr] = o.Device; o.Device != "" {
				if iface, _, err := k.RouteTo(addr); err == nil && iface == o.Uplink && o.direct() {
					ways[addr] = iface
				}
			}
		}
		return nil
	})
	if err != nil {
		return p, err
	}
	return p, p.ask(ctx, o, ways)
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// fromStatus returns what the daemon knows of a peer.
func fromStatus(s *status.Peer) Path {
	p := Path{Subnet: s.Subnet, PublicIP: s.PublicIP, Before: s.RTT != nil, Lossy: s.Probe == status.ProbeLossy}
	large := strings.Contains(s.Reason, "full-size")
	switch {
	case s.Probe == status.ProbeOK, s.Probe == status.ProbeLossy:
		p.Overlay = Answers
	case s.Probe == status.ProbeFailing && large:
		p.Overlay, p.Full = Answers, Silent
	case s.Probe == status.ProbeFailing:
		p.Overlay = Silent
	}
	return p
}

// ask pings the hosts, and what is not known of their overlay addresses. ways has the device by which
// packets to an overlay address leave.
func (p *Paths) ask(ctx context.Context, o Overlay, ways map[netip.Addr]string) error {
	var small []target
	overlay := func(path *Path, size int) target {
		addr := peerAddress(path.Subnet, o.Device != "")
		return target{addr: addr, device: ways[addr], size: size}
	}
	for i := range p.All {
		path := &p.All[i]
		small = append(small, target{addr: path.PublicIP})
		if path.Overlay == Unasked && o.Backend != "alloc" {
			small = append(small, overlay(path, 0))
		}
	}
	answers, err := ping(ctx, small)
	if err != nil {
		return err
	}
	for i := range p.All {
		path := &p.All[i]
		path.Underlay = reach(answers[target{addr: path.PublicIP}])
		if path.Overlay == Unasked && o.Backend != "alloc" {
			path.Overlay = reach(answers[overlay(path, 0)])
		}
	}
	return p.askFull(ctx, o.MTU, overlay)
}

// askFull pings hosts that answer with full-size packets.
func (p *Paths) askFull(ctx context.Context, mtu int, overlay func(path *Path, size int) target) error {
	if mtu == 0 {
		return nil
	}
	asked := func(path *Path) bool { return path.Overlay == Answers && path.Full == Unasked }
	var once, twice []target
	for i := range p.All {
		if path := &p.All[i]; asked(path) {
			once = append(once, overlay(path, mtu))
		}
	}
	answers, err := ping(ctx, once)
	if err != nil {
		return err
	}
	// On a path that loses packets, large ones get a second chance. Small ones beside them show
	// whether the host still answers.
	for _, t := range once {
		if !answers[t] {
			twice = append(twice, t, target{addr: t.addr, device: t.device})
		}
	}
	again, err := ping(ctx, twice)
	if err != nil {
		return err
	}
	maps.Copy(answers, again)
	for i := range p.All {
		path := &p.All[i]
		if !asked(path) {
			continue
		}
		switch {
		case answers[overlay(path, mtu)]:
			path.Full = Answers
		case path.Lossy: // by chance
		case !answers[overlay(path, 0)]:
			path.Overlay = Silent
		default:
			path.Full = Silent
		}
	}
	return nil
}

func reach(answered bool) Reach {
	if answered {
		return Answers
	}
	return Silent
}

// these returns the paths for which is returns true, and their names.
func (p Paths) these(is func(Path) bool) (n int, text string) {
	var words []string
	for _, path := range p.All {
		if is(path) {
			if n++; n <= 3 {
				words = append(words, fmt.Sprintf("%s (%s)", path.PublicIP, path.Subnet))
			}
		}
	}
	if n > 3 {
		words = append(words, fmt.Sprintf("%d more", n-3))
	}
	return n, and(words)
}

// checkUnderlay fails if another host is silent, both outside of the overlay and in it. A host that
// answers in the overlay may just drop pings.
func checkUnderlay(ctx context.Context, in *Inputs) Result {
	p, err := in.Paths.Get(ctx)
	if err != nil {
		return unknownf("the other hosts cannot be asked: %v", err)
	}
	if len(p.All) == 0 {
		return unknownf("no other host is known")
	}
	fault, text := p.these(func(p Path) bool { return p.Underlay == Silent && p.Overlay == Silent && p.Before })
	never, quiet := p.these(func(p Path) bool { return p.Underlay == Silent && p.Overlay != Answers && !p.Before })
	switch {
	case fault > 0:
		return failf("start that host, or mend the network between the hosts; its lease expires by itself",
			"%d of %d hosts answered before, and now neither at their public IP nor in the overlay: %s", fault, len(p.All)+p.Other, text)
	case never > 0:
		return unknownf("%d of %d hosts do not answer at their public IP: they are off, not reachable, or drop pings: %s", never, len(p.All)+p.Other, quiet)
	}
	return okf("%d of %d hosts answer", len(p.All), len(p.All)+p.Other)
}

// checkOverlay fails if a host answers outside of the overlay, and not in it.
func checkOverlay(ctx context.Context, in *Inputs) Result {
	p, err := in.Paths.Get(ctx)
	if err != nil {
		return unknownf("the other hosts cannot be asked: %v", err)
	}
	o, err := in.Overlay.Get(ctx)
	switch {
	case err != nil:
		return unknownf("this host's network is not known: %v", err)
	case o.Backend == "alloc":
		return unknownf("the backend alloc connects no hosts")
	case len(p.All) == 0:
		return unknownf("no other host is known")
	}
	fault, text := p.these(func(p Path) bool { return p.Underlay == Answers && p.Overlay == Silent && p.Before })
	never, quiet := p.these(func(p Path) bool { return p.Overlay != Answers && !p.Before })
	switch {
	case fault > 0:
		return failf(fmt.Sprintf("run flanneld doctor there; permit %s between the hosts", in.carrier(o)),
			"%d of %d hosts answered in the overlay before, and now only at their public IP: %s", fault, len(p.All)+p.Other, text)
	case never > 0:
		return unknownf("%d of %d hosts have not answered in the overlay: their flanneld is down, %s is blocked, or they drop pings: %s", never, len(p.All)+p.Other, in.carrier(o), quiet)
	}
	if n, _ := p.these(func(p Path) bool { return p.Overlay == Answers }); n < len(p.All) {
		return unknownf("%d of %d hosts answer in the overlay; see FL-HOST-UNREACHABLE for the others", n, len(p.All)+p.Other)
	}
	return okf("%d of %d hosts answer in the overlay", len(p.All), len(p.All)+p.Other)
}

// carrier returns what carries the packets of the overlay between hosts.
func (in *Inputs) carrier(o Overlay) string {
	if o.Port == 0 {
		return "packets of the network " + o.Network.String()
	}
	return fmt.Sprintf("UDP port %d", o.Port)
}

// checkPathMTU fails if small packets of the overlay arrive, and those of full size do not.
func checkPathMTU(ctx context.Context, in *Inputs) Result {
	p, err := in.Paths.Get(ctx)
	if err != nil {
		return unknownf("the other hosts cannot be asked: %v", err)
	}
	o, err := in.Overlay.Get(ctx)
	if err != nil {
		return unknownf("this host's network is not known: %v", err)
	}
	large, text := p.these(func(p Path) bool { return p.Overlay == Answers && p.Full == Silent })
	if large > 0 {
		return failf("set the MTU of the hosts' interfaces to what the network between them carries, or Backend.MTU in the network config; then restart flanneld and docker",
			"packets of full size (%s) to %d of %d hosts are lost, small ones arrive: %s", size(o.MTU), large, len(p.All)+p.Other, text)
	}
	if n, _ := p.these(func(p Path) bool { return p.Full == Answers }); n == 0 {
		return unknownf("no host has answered in the overlay")
	}
	return okf("packets of full size (%s) arrive", size(o.MTU))
}

// checkLoss fails if the daemon's probes have lost a good part of the packets to a host. A few pings
// of the doctor would not show it.
func checkLoss(ctx context.Context, in *Inputs) Result {
	d, err := in.Status.Get(ctx)
	if err != nil {
		return unknownf("the daemon, which measures the loss of packets, cannot be asked: %v", err)
	}
	var lossy []*status.Peer
	measured := 0
	for i := range d.Peers {
		p := &d.Peers[i]
		if p.Loss == nil || p.Probe != status.ProbeOK && p.Probe != status.ProbeLossy {
			continue
		}
		measured++
		if p.Probe == status.ProbeLossy {
			lossy = append(lossy, p)
		}
	}
	switch {
	case measured == 0:
		return unknownf("no host answers the daemon's probes")
	case len(lossy) == 0:
		return okf("packets to %d of %d hosts arrive", measured, len(d.Peers))
	}
	slices.SortStableFunc(lossy, func(a, b *status.Peer) int { return cmp.Compare(*b.Loss, *a.Loss) })
	var words []string
	for _, p := range lossy[:min(3, len(lossy))] {
		words = append(words, fmt.Sprintf("%.0f %% to %s (%s)", 100**p.Loss, p.PublicIP, p.Subnet))
	}
	if n := len(lossy) - len(words); n > 0 {
		words = append(words, fmt.Sprintf("%d more", n))
	}
	return failf(fmt.Sprintf("ping -c 50 -i 0.2 %s # if it loses packets too, so does the network between the hosts; else run flanneld doctor there", lossy[0].PublicIP),
		"packets to %d of %d hosts are lost now and then: %s", len(lossy), len(d.Peers), and(words))
}

func size(n int) string {
	if n == 0 {
		return "unknown"
	}
	return fmt.Sprintf("%d bytes", n)
}
