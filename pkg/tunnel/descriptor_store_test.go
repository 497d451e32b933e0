package tunnel

import (
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"flanneld/pkg/kernel"
	"flanneld/pkg/lab/netns"
	"flanneld/pkg/systemd"
)

// TestTUNOfOverlay: each row is what a host has, and which device the overlay of 10.42.0.0/16,
// before that 10.44.0.0/16, gets.
func TestTUNOfOverlay(t *testing.T) {
	if testing.Short() {
		t.Skip("makes TUN devices, which needs root and no qemu between: it does not translate netlink messages about them for s390x")
	}
	type device struct {
		name, addr string
		busy, tap  bool // another program has it; it is not a TUN
	}
	for _, c := range []struct {
		name    string
		devices []device
		stored  string
		want    string
		fails   bool
	}{
		{name: "nothing", want: "flannel0"},
		{name: "another network's daemon", devices: []device{{name: "flannel0", addr: "10.43.1.0", busy: true}}, want: "flannel1"},
		{name: "another one that just starts", devices: []device{{name: "flannel0", busy: true}}, want: "flannel1"},
		{name: "two others", devices: []device{{name: "flannel0", busy: true}, {name: "flannel1", addr: "10.43.1.0"}}, want: "flannel2"},
		{name: "left by another network", devices: []device{{name: "flannel0", addr: "10.43.1.0"}}, want: "flannel1"},
		{name: "left by an earlier release of ours", devices: []device{{name: "flannel1", addr: "10.42.1.0"}}, want: "flannel1"},
		{name: "of an original that still ends", devices: []device{{name: "flannel0", addr: "10.42.1.0", busy: true}}, want: "flannel0", fails: true},
		{name: "left by the former network", devices: []device{{name: "flannel0", addr: "10.44.1.0"}}, want: "flannel0"},
		{name: "the former network is another's now", devices: []device{{name: "flannel0", addr: "10.44.1.0", busy: true}}, want: "flannel1"},
		{name: "stored", stored: "flannel3", want: "flannel3"},
		{name: "stored for another network", devices: []device{{name: "flannel0", addr: "10.43.1.0"}}, stored: "flannel0", want: "flannel1"},
		{name: "stored beside another's", devices: []device{{name: "flannel0", busy: true}}, stored: "flannel1", want: "flannel1"},
		{name: "a TAP device", devices: []device{{name: "flannel0", tap: true}}, want: "flannel0", fails: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			netns.Enter(t)
			fds := systemd.NewDescriptors(slog.New(slog.DiscardHandler))
			defer fds.Close()
			s := descriptorStore{fds}
			for _, d := range c.devices {
				mode := netlink.TuntapMode(netlink.TUNTAP_MODE_TUN)
				if d.tap {
					mode = netlink.TUNTAP_MODE_TAP
				}
				link := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: d.name}, Mode: mode}
				if err := netlink.LinkAdd(link); err != nil {
					t.Fatal(err)
				}
				if d.addr != "" {
					if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(d.addr), Mask: net.CIDRMask(32, 32)}}); err != nil {
						t.Fatal(err)
					}
				}
				if d.busy {
					other, err := OpenTUN(d.name, Offloads{})
					if err != nil {
						t.Fatal(err)
					}
					defer other.Close()
				}
			}
			if c.stored != "" {
				if err := s.tryTUN(c.stored); err != nil {
					t.Fatal(err)
				}
			}
			k, err := kernel.New()
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			inv, err := k.Inventory(kernel.Wanted{})
			if err != nil {
				t.Fatal(err)
			}
			got := s.chooseTUN(inv, netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.44.0.0/16"))
			if err := s.tryTUN(got); got != c.want || (err != nil) != c.fails {
				t.Errorf("%s, %v; want %s", got, err, c.want)
			}
			link, err := netlink.LinkByName(got)
			if err != nil {
				t.Fatal(err)
			}
			addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range addrs {
				if a.IP[0] != 10 || a.IP[1] != 42 {
					t.Errorf("it has %s of another network", a.IPNet)
				}
			}
			if n := len(s.Names()); n > 1 {
				t.Errorf("%d devices are kept", n)
			}
		})
	}
}
