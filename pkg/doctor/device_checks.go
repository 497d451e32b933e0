package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
)

// deviceChecks returns the checks of the overlay's device, and of the programs and modules that it
// depends on.
func deviceChecks() []Check {
	return []Check{
		{ID: "FL-MODULES", Rank: rankFilter - 5, Run: checkModules},
		{ID: "FL-DEVICE-MANAGED", Rank: rankHost, Run: checkManaged},
		{ID: "FL-DEVICE-CHANGED", Rank: rankDrift - 5, Run: checkDevice},
		{ID: "FL-CHECKSUM", Rank: rankHost + 6, Run: checkChecksum},
	}
}

// checkFirewallTool says which tools write packet filter rules on this host. What their rules do is
// the result of the other checks.
func checkFirewallTool(ctx context.Context, in *Inputs) Result {
	f, err := in.Files.Get(ctx)
	if err != nil {
		return unknownf("cannot find out which programs run: %v", err)
	}
	firewalld := slices.Contains(f.Programs, firewalldProgram)
	for _, about := range []string{aboutForward, aboutInput, aboutOutput} {
		w, all, r, _ := in.passages(ctx, about)
		if r != nil {
			break
		}
		for _, p := range all {
			b := p.Dropped
			switch {
			case b == nil || b.Tool == "":
			case about == aboutForward:
				return failf(b.TrustCommand(w.Network), "%s drops packets of the overlay (%s): its own settings must accept them, or its next reload drops them again", b.Tool, about)
			default:
				return failf(b.OpenCommand(w.Port), "%s drops packets of the overlay (%s): its own settings must accept them, or its next reload drops them again", b.Tool, about)
			}
		}
	}
	switch {
	case firewalld && f.UFW:
		return okf("firewalld and ufw are in use: both write rules, which the checks above follow")
	case firewalld:
		return okf("firewalld is in use, and accepts the overlay's packets now, as far as the checks above say so")
	case f.UFW:
		return okf("ufw is in use, and accepts the overlay's packets now, as far as the checks above say so")
	}
	return okf("neither firewalld nor ufw is in use")
}

// checkModules fails if the kernel cannot do what the backend needs.
func checkModules(ctx context.Context, in *Inputs) Result {
	o, err := in.Overlay.Get(ctx)
	if err != nil {
		return unknownf("the backend is not known: %v", err)
	}
	have, err := in.Device.Get(ctx)
	if err != nil {
		return unknownf("cannot read devices: %v", err)
	}
	f, err := in.Files.Get(ctx)
	if err != nil {
		return unknownf("cannot read the list of modules: %v", err)
	}
	missing := func(names ...string) bool {
		return !slices.ContainsFunc(names, func(n string) bool { return slices.Contains(f.Modules, n) })
	}
	module := map[string]string{"vxlan": "vxlan", "udp": "tun"}[o.Backend]
	_, exists := have.Links[o.Device]
	lacks := ""
	switch {
	case module != "" && !exists && missing(module):
		lacks = module
	case !in.filters(ctx) && missing("nf_tables", "ip_tables"):
		lacks = "nf_tables"
	default:
		return okf("the kernel has the modules that the overlay needs")
	}
	if f.NoList != nil {
		return unknownf("whether the kernel has module %s is not known: %v", lacks, f.NoList)
	}
	release, _ := in.Release.Get(ctx)
	return failf("modprobe "+lacks, "the kernel %s has no module %s, neither loaded nor on disk; the distribution's package of extra modules may have it", release, lacks)
}

// filters reports whether the kernel has a packet filter that could be read.
func (in *Inputs) filters(ctx context.Context) bool {
	p, err := in.Passages.Get(ctx)
	return err == nil && len(p.All) > 0
}

// checkManaged fails if NetworkManager or systemd-networkd configures the overlay's device.
func checkManaged(ctx context.Context, in *Inputs) Result {
	o, err := in.Overlay.Get(ctx)
	switch {
	case err != nil:
		return unknownf("the overlay's device is not known: %v", err)
	case o.Device == "":
		return okf("the backend has no device")
	}
	f, err := in.Files.Get(ctx)
	if err != nil {
		return unknownf("cannot find out which programs run: %v", err)
	}
	if !slices.Contains(f.Programs, networkdProgram) && !slices.Contains(f.Programs, nmProgram) {
		return okf("neither NetworkManager nor systemd-networkd runs in this network namespace")
	}
	i, err := net.InterfaceByName(o.Device)
	if err != nil {
		return okf("%s does not exist", o.Device)
	}
	if slices.Contains(f.Programs, networkdProgram) {
		text, err := readStart(fmt.Sprintf("/run/systemd/netif/links/%d", i.Index), maxState)
		if r := managedByNetworkd(o.Device, text, err); r.Status != OK {
			return r
		}
	}
	if slices.Contains(f.Programs, nmProgram) {
		text, err := readStart(fmt.Sprintf("/run/NetworkManager/devices/%d", i.Index), maxState)
		return managedByNM(o.Device, text, err, func() (string, error) {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			out, err := output(ctx, "nmcli", "-g", "GENERAL.STATE,GENERAL.CONNECTION", "device", "show", o.Device)
			return string(out), err
		})
	}
	return okf("no program but flanneld configures %s", o.Device)
}

// managedByNetworkd reads the state file of a link, which systemd-networkd writes: ADMIN_STATE is
// "unmanaged" for links without a .network file, which NETWORK_FILE names otherwise.
func managedByNetworkd(device string, state []byte, err error) Result {
	if err != nil {
		return unknownf("cannot read what systemd-networkd knows of %s: %v", device, err)
	}
	file := setting(state, "NETWORK_FILE")
	if admin := setting(state, "ADMIN_STATE"); admin == "unmanaged" || file == "" {
		return okf("systemd-networkd leaves %s alone", device)
	}
	return failf(`printf '[Match]\nName=flannel*\n[Link]\nUnmanaged=yes\n' > /etc/systemd/network/01-flannel.network; networkctl reload`,
		"systemd-networkd configures %s, by %s, and changes what flanneld sets", device, file)
}

// managedByNM reads the state file of a device, which NetworkManager writes. It calls a device
// managed, with a connection of its own, also if it only watches the device, as it does with those of
// other programs. So nmcli is asked for the state and the connection.
func managedByNM(device string, state []byte, err error, ask func() (string, error)) Result {
	if err != nil {
		return unknownf("cannot read what NetworkManager knows of %s: %v", device, err)
	}
	if setting(state, "managed") != "true" && setting(state, "managed") != "1" {
		return okf("NetworkManager leaves %s alone", device)
	}
	said, err := ask()
	now, connection, _ := strings.Cut(strings.TrimSpace(said), "\n")
	switch {
	case err != nil:
		return unknownf("whether NetworkManager configures %s is not known: %v", device, err)
	case strings.Contains(now, "(connected (externally)"):
		return okf("NetworkManager watches %s, and does not change it", device)
	case strings.Contains(now, "(connected") || strings.Contains(now, "(connecting"):
		// += keeps the devices that other files leave unmanaged.
		return failf(`printf '[keyfile]\nunmanaged-devices+=interface-name:flannel*\n' > /etc/NetworkManager/conf.d/flannel.conf; nmcli general reload`,
			"NetworkManager configures %s, by its connection %q, and changes what flanneld sets", device, connection)
	}
	return okf("NetworkManager does not configure %s: %s", device, now)
}

// checkDevice fails if the overlay's device is not as this host has announced it.
func checkDevice(ctx context.Context, in *Inputs) Result {
	o, err := in.Overlay.Get(ctx)
	if err != nil {
		return unknownf("the overlay's device is not known: %v", err)
	}
	have, err := in.Device.Get(ctx)
	if err != nil {
		return unknownf("cannot read devices: %v", err)
	}
	env, _ := in.Env.Get(ctx)
	if env.MTU == 0 || o.Backend != "vxlan" && o.Backend != "udp" {
		return okf("the backend has no device, or this host has no subnet")
	}
	if o.Device == "" {
		return failf("systemctl restart flanneld", "the overlay's device does not exist")
	}
	claim, _ := in.Claim.Get(ctx)
	if wrong := differences(have, o, env.MTU, claim.Held); len(wrong) > 0 {
		return failf("systemctl restart flanneld", "%s is not as this host has announced it: %s", o.Device, and(wrong))
	}
	return okf("%s is as this host has announced it", o.Device)
}

// differences returns what is wrong with the overlay's device.
func differences(have dataplane.State, o Overlay, mtu int, held lease.Attrs) (wrong []string) {
	l, exists := have.Links[o.Device]
	if !exists {
		return []string{"it does not exist"}
	}
	if !l.Up {
		wrong = append(wrong, "it is down")
	}
	if l.MTU != mtu {
		wrong = append(wrong, fmt.Sprintf("its MTU is %d and not %d", l.MTU, mtu))
	}
	if o.Config != nil && o.Backend == "vxlan" && o.Config.FixedDevice() == o.Device {
		_, want := o.Config.Link(host.Facts{}, lease.Lease{})
		if l.VNI != want.VNI {
			wrong = append(wrong, fmt.Sprintf("its VNI is %d and not %d", l.VNI, want.VNI))
		}
		if l.Port != want.Port {
			wrong = append(wrong, fmt.Sprintf("its port is %d and not %d", l.Port, want.Port))
		}
		if l.GBP != want.GBP {
			wrong = append(wrong, "its GBP setting is not that of the network config")
		}
	}
	var data struct{ VtepMAC string }
	if json.Unmarshal([]byte(held.BackendData), &data) == nil && data.VtepMAC != "" && o.Backend == "vxlan" {
		if mac, err := net.ParseMAC(data.VtepMAC); err == nil && mac.String() != l.MAC.String() {
			wrong = append(wrong, fmt.Sprintf("its MAC is %s, and peers send to %s", l.MAC, mac))
		}
	}
	return wrong
}

// checkChecksum fails if the kernel writes wrong checksums into tunnel packets. Before 5.7, source
// NAT of a packet without UDP checksum, as VXLAN sends them, makes it one with a wrong checksum,
// which the receiver drops (Linux commit ea64d8d6c675). Only the checksum of the device's packets
// that the kernel leaves to the network card is affected: TCP and UDP of containers, but no ping.
// Measured with this commit undone in Linux 6.1: with MASQUERADE --random-fully the peer drops every
// SYN, counted by UdpInCsumErrors; without --random-fully, or after the remedy, none.
func checkChecksum(ctx context.Context, in *Inputs) Result {
	o, err := in.Overlay.Get(ctx)
	switch {
	case err != nil:
		return unknownf("the backend is not known: %v", err)
	case o.Backend != "vxlan":
		return okf("the backend's packets have checksums of their own")
	}
	release, err := in.Release.Get(ctx)
	if err != nil {
		return unknownf("the kernel's release is not known: %v", err)
	}
	fixed, certain := checksumFixed(release)
	if fixed {
		return okf("the kernel %s writes no wrong checksums into tunnel packets", release)
	}
	_, all, r, legacy := in.passages(ctx, aboutOutput)
	if r != nil {
		return *r
	}
	var nat *Passage
	unclear := legacy != nil
	for i := range all {
		if all[i].Translated != nil && nat == nil {
			nat = &all[i]
		}
		unclear = unclear || all[i].Unclear != nil && all[i].Unclear.Translates
	}
	if nat == nil && !unclear {
		return okf("the kernel %s writes wrong checksums only into tunnel packets that are masqueraded, and none are", release)
	}
	features, err := output(ctx, "ethtool", "-k", o.Device)
	remedy := "ethtool -K " + o.Device + " tx-checksum-ip-generic off"
	if err == nil && strings.Contains(string(features), "tx-checksum-ip-generic: off") {
		return okf("%s leaves no checksums to the network card", o.Device)
	}
	// Masquerading changes nothing if the packet has the address of its device already, except with
	// random ports.
	rule := ""
	if nat != nil {
		rule = in.ruleText(ctx, *nat.Translated, nat.Translated.Rule)
	}
	if !certain || !strings.Contains(rule, "random") {
		return unknownf("the kernel %s may write wrong checksums into tunnel packets that are masqueraded; if large packets are lost, try: %s", release, remedy)
	}
	return failf(remedy, "the kernel %s writes wrong checksums into tunnel packets, because of %s", release, rule)
}

// checksumFixed reports whether a kernel has the commit that checkChecksum names, and, if not,
// whether that is certain: distributions add fixes without changing the first numbers.
func checksumFixed(release string) (fixed, certain bool) {
	for _, series := range [][3]int{{4, 14, 181}, {4, 19, 123}, {5, 4, 41}, {5, 6, 13}} {
		if !older(release, series[0], series[1], series[2]) && older(release, series[0], series[1]+1, 0) {
			return true, true
		}
	}
	v, ok := parseRelease(release)
	fixed = ok && !older(release, 5, 7, 0)
	return fixed, fixed || v[2] > 0
}

// older reports whether a release of the kernel is before a version. One that cannot be parsed is
// not.
func older(release string, major, minor, patch int) bool {
	v, ok := parseRelease(release)
	return ok && slices.Compare(v[:], []int{major, minor, patch}) < 0
}

// parseRelease parses the numbers that a release begins with: 5.4.0-42-generic.
func parseRelease(release string) (v [3]int, ok bool) {
	release, _, _ = strings.Cut(release, "-")
	n, err := fmt.Sscanf(release+".0.0", "%d.%d.%d", &v[0], &v[1], &v[2])
	return v, n == 3 && err == nil
}
