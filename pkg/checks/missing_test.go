package checks

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flanneld/pkg/condition"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/kernel"
	"flanneld/pkg/reconcile"
)

func TestMissingSaysWhoIsInTheWay(t *testing.T) {
	vxlan := dataplane.KindLink.Put("flannel.1", dataplane.Link{Kind: dataplane.KindVXLAN, VNI: 1, Port: 8472})
	tun := dataplane.KindLink.Put("flannel0", dataplane.Link{Kind: dataplane.KindTUN, Port: 8285})
	route := dataplane.KindRoute.Put(dataplane.RouteKey{Dst: netip.MustParsePrefix("10.42.0.0/16"), Link: "flannel0"}, dataplane.Route{})
	inUse := fmt.Errorf("replace link: %w", unix.EADDRINUSE)
	v9 := []kernel.VXLAN{{Name: "v9", VNI: 1, Port: 8472}}
	any4 := netip.MustParseAddrPort("0.0.0.0:8472")
	for _, c := range []struct {
		name    string
		op      dataplane.Op
		err     error
		reason  string
		reasons reasons
		want    string // words of the fields, and the command
	}{
		{"a process", tun, inUse, "", reasons{holders: []kernel.Holder{{Addr: netip.MustParseAddrPort("10.99.0.2:8285"), UID: 33, PID: 7, Program: "nc"}}},
			"port 8285 err replace link: address already in use reason nc (pid 7, uid 33) has UDP port 8285 at 10.99.0.2|kill 7"},
		{"a process that is hidden", tun, inUse, "", reasons{holders: []kernel.Holder{{Addr: netip.MustParseAddrPort("[::]:8285"), UID: 33}}},
			"reason a process of uid 33, or the kernel has UDP port 8285 at ::|ss -ulpnH 'sport = :8285'"},
		{"one that is gone", tun, inUse, "", reasons{}, "err replace link: address already in use|ss -ulpnH 'sport = :8285'"},
		{"another VXLAN device", vxlan, inUse, "", reasons{holders: []kernel.Holder{{Addr: any4, Kernel: true}}, vxlans: v9},
			"reason the kernel has UDP port 8472 for the VXLAN device v9|ip link del v9"},
		{"another VXLAN device, processes are hidden", vxlan, inUse, "", reasons{holders: []kernel.Holder{{Addr: any4}}, vxlans: v9},
			"reason the kernel has UDP port 8472 for the VXLAN device v9|ip link del v9"},
		{"another tunnel of the kernel", vxlan, inUse, "", reasons{holders: []kernel.Holder{{Addr: any4, Kernel: true}}},
			"reason the kernel has UDP port 8472 at 0.0.0.0, for a tunnel such as FOU or WireGuard|"},
		{"a user's process, beside a VXLAN device that is down", vxlan, inUse, "", reasons{holders: []kernel.Holder{{Addr: any4, UID: 33}}, vxlans: v9},
			"reason a process of uid 33, or the kernel has UDP port 8472 at 0.0.0.0|ss -ulpnH 'sport = :8472'"},
		{"the VNI", vxlan, unix.EEXIST, "", reasons{vxlans: v9}, "reason the VXLAN device v9 has VNI 1 and port 8472|ip link del v9"},
		{"the VNI, out of sight", vxlan, unix.EEXIST, "", reasons{}, "reason a VXLAN device with VNI 1 and port 8472 was created in this network namespace and moved to another|"},
		{"a TAP", tun, unix.EINVAL, "", reasons{tun: kernel.TUN{TAP: true}}, "reason flannel0 is a TAP device, which carries Ethernet frames|ip link del flannel0"},
		{"several queues", tun, unix.EINVAL, "", reasons{tun: kernel.TUN{MultiQueue: true}}, "reason flannel0 is a TUN device with several queues|ip link del flannel0"},
		{"another kind", vxlan, nil, "a device of that name", reasons{}, "object link flannel.1 reason a device of that name|ip link del flannel.1"},
		{"a route", route, nil, "the network takes the addresses", reasons{}, "object route 10.42.0.0/16 dev flannel0 reason the network takes the addresses|"},
		{"anything else", vxlan, errors.New("out of memory"), "", reasons{}, "object link flannel.1 err out of memory|"},
	} {
		got := missingCondition(reconcile.Missing{Op: c.op, Err: c.err, Reason: c.reason}, c.reasons)
		words, command, _ := strings.Cut(c.want, "|")
		if said := strings.Trim(fmt.Sprint(got.Fields), "[]"); got.Severity != condition.Severe || !strings.Contains(said, words) || got.Command != command {
			t.Errorf("%s: %s|%s, want %s", c.name, said, got.Command, c.want)
		}
	}
}
