package checks

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"flanneld/pkg/condition"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/kernel"
	"flanneld/pkg/reconcile"
	"flanneld/pkg/shell"
)

// reasons are conflicts with a link that the kernel's error does not contain.
type reasons struct {
	holders []kernel.Holder // owners of the port
	vxlans  []kernel.VXLAN  // with the same port, or for EEXIST with the same VNI, too
	tun     kernel.TUN
}

// reasons reads the conflicts with a link. Failures are ignored, because the error is reported
// anyway.
func (c *Checks) reasons(m reconcile.Missing) (r reasons) {
	name, want := dataplane.KindLink.Of(m.Op)
	if m.Op.Kind != dataplane.KindLink || m.Err == nil {
		return r
	}
	inUse, exists := errors.Is(m.Err, unix.EADDRINUSE), errors.Is(m.Err, unix.EEXIST)
	local := netip.AddrPortFrom(want.Local, uint16(want.Port))
	if want.Kind == dataplane.KindVXLAN { // it binds to all addresses
		local = netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(want.Port))
	}
	switch {
	case inUse:
		r.holders, _ = c.kernel.Holders("udp", local)
	case want.Kind == dataplane.KindTUN:
		r.tun, _, _ = c.kernel.ReadTUN(name)
	}
	if inUse || exists {
		all, _ := c.kernel.VXLANs()
		r.vxlans = slices.DeleteFunc(all, func(v kernel.VXLAN) bool {
			return v.Name == name || v.Port != want.Port || exists && v.VNI != want.VNI
		})
	}
	return r
}

// missingCondition returns the condition of a missing object that this host itself needs.
func missingCondition(m reconcile.Missing, r reasons) condition.Condition {
	c := condition.Condition{
		ID: "base/" + m.Op.Object(), Text: "failed to set up the overlay on this host, will retry", Severity: condition.Severe,
		Fields: []any{"object", m.Op.Object()},
	}
	reason := m.Reason
	name, want := dataplane.KindLink.Of(m.Op)
	switch {
	case m.Op.Kind != dataplane.KindLink: // only links have other reasons than the error
	case m.Err == nil:
		c.Command = "ip link del " + shell.Word(name)
	case errors.Is(m.Err, unix.EADDRINUSE):
		c.Fields = append(c.Fields, "port", want.Port)
		reason, c.Command = r.portReason(want.Port)
	case errors.Is(m.Err, unix.EEXIST) && want.Kind == dataplane.KindVXLAN:
		reason, c.Command = r.vniReason(want)
	case want.Kind == dataplane.KindTUN:
		reason, c.Command = r.deviceReason(name)
	}
	if m.Err != nil {
		c.Fields = append(c.Fields, "err", m.Err)
	}
	if reason != "" {
		c.Fields = append(c.Fields, "reason", reason)
	}
	return c
}

// portReason returns who uses a UDP port.
func (r reasons) portReason(port int) (reason, command string) {
	if len(r.holders) == 0 {
		return "", fmt.Sprintf("ss -ulpnH 'sport = :%d'", port) // not in use at the moment
	}
	h := r.holders[0]
	reason = fmt.Sprintf("%s has UDP port %d at %s", h, port, h.Addr.Addr())
	switch {
	case h.PID != 0:
		return reason, fmt.Sprint("kill ", h.PID)
	case h.UID == 0 && len(r.vxlans) > 0: // then the kernel itself uses the port for one of them
		return fmt.Sprintf("the kernel has UDP port %d for the VXLAN device %s", port, r.vxlans[0].Name), "ip link del " + shell.Word(r.vxlans[0].Name)
	case h.Kernel:
		return reason + ", for a tunnel such as FOU or WireGuard", ""
	}
	return reason, fmt.Sprintf("ss -ulpnH 'sport = :%d'", port)
}

// vniReason returns which device uses a VNI.
func (r reasons) vniReason(want dataplane.Link) (reason, command string) {
	if len(r.vxlans) == 0 {
		return fmt.Sprintf("a VXLAN device with VNI %d and port %d was created in this network namespace and moved to another", want.VNI, want.Port), ""
	}
	return fmt.Sprintf("the VXLAN device %s has VNI %d and port %d", r.vxlans[0].Name, want.VNI, want.Port), "ip link del " + shell.Word(r.vxlans[0].Name)
}

// deviceReason returns why an existing device cannot be used as a TUN device.
func (r reasons) deviceReason(name string) (reason, command string) {
	switch {
	case r.tun.TAP:
		return name + " is a TAP device, which carries Ethernet frames", "ip link del " + shell.Word(name)
	case r.tun.MultiQueue:
		return name + " is a TUN device with several queues", "ip link del " + shell.Word(name)
	}
	return "", ""
}
