package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
)

func TestSurroundingsAreWhatOthersSetUp(t *testing.T) {
	for _, nextHops := range []bool{false, true} {
		t.Run(fmt.Sprint("nexthops ", nextHops), func(t *testing.T) {
			b := newBed(t)
			r := chance(t)
			want := wantPeers(r, vxlanLink(r), 20)
			b.nextHops = nextHops
			b.pass(want)
			b.must(b.other.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}}))
			b.must(b.other.LinkSetUp(b.link("docker0")))
			up, docker := b.up(), b.link("docker0").Attrs().Index
			gateway := net.ParseIP("192.0.2.9")
			// The stale route is first, so the kernel keeps using it.
			b.must(b.other.RouteAdd(&netlink.Route{Dst: ipnet("10.5.1.0/24"), Gw: gateway, LinkIndex: up}))
			b.must(b.other.AddrAdd(b.link("docker0"), &netlink.Addr{IPNet: ipnet("10.5.1.1/24")}))
			b.must(b.other.RouteAdd(&netlink.Route{Dst: ipnet("10.5.250.0/24"), Type: unix.RTN_UNREACHABLE, Priority: 7}))
			b.must(b.other.RouteAdd(&netlink.Route{Dst: ipnet("10.5.251.0/24"), Gw: gateway, LinkIndex: up, Protocol: dataplane.ProtoFlannel}))
			b.must(b.other.RouteAdd(&netlink.Route{Dst: ipnet("10.6.0.0/16"), Gw: gateway, LinkIndex: up}))
			b.must(b.other.RouteAdd(&netlink.Route{Dst: ipnet("10.5.252.0/24"), LinkIndex: docker, Table: 100}))
			b.must(b.other.RouteAdd(&netlink.Route{Dst: ipnet("10.5.253.0/24"), MultiPath: []*netlink.NexthopInfo{
				{LinkIndex: up, Gw: gateway}, {LinkIndex: up, Gw: net.ParseIP("192.0.2.10")}}}))
			s, err := b.k.Surroundings(dataplane.Scope{Networks: []netip.Prefix{network}}.Inside, []string{overlay})
			b.must(err)
			var got []string
			for _, l := range s.Links {
				got = append(got, fmt.Sprint(l.Name, " ", l.Kind, " ", l.Addrs))
				if wantMTU := map[string]int{"docker0": 1500, "lo": 65536, "flannel.1": 1450}[l.Name]; wantMTU != 0 && l.MTU != wantMTU {
					t.Errorf("MTU of %s: %d", l.Name, l.MTU)
				}
			}
			for _, p := range s.Paths {
				got = append(got, strings.TrimSpace(fmt.Sprintf("%s kernel=%v", p, p.Kernel)))
			}
			slices.Sort(got[:len(s.Links)])
			wanted := []string{
				"docker0 bridge [10.5.1.1/24]", "flannel.1 vxlan [10.5.1.0/32]", "lo device [127.0.0.1/8]", uplink + " veth [192.0.2.1/24]",
				"10.5.1.0/24 via 192.0.2.9 dev " + uplink + " kernel=false",
				"10.5.1.0/24 dev docker0 kernel=true",
				"unreachable 10.5.250.0/24 metric 7 kernel=false",
				"10.5.253.0/24 kernel=false",
			}
			if !slices.Equal(got, wanted) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(wanted, "\n"))
			}
			// What a finding suggests takes the first away.
			b.must(b.other.RouteDel(&netlink.Route{Dst: ipnet("10.5.1.0/24"), Gw: gateway, LinkIndex: up}))
			s, err = b.k.Surroundings(dataplane.Scope{Networks: []netip.Prefix{network}}.Inside, []string{overlay})
			b.must(err)
			if s.Paths[0].Iface != "docker0" {
				t.Errorf("then the first is %s", s.Paths[0])
			}
		})
	}
}

// TestNoRouteIsThereWithoutItsAddress: docker creates its bridge while the host is read; a route
// that depends on an address of the bridge is not reported as a conflict.
func TestNoRouteIsThereWithoutItsAddress(t *testing.T) {
	b := newBed(t)
	docker := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}}
	done := make(chan error)
	go func() {
		for range 20 {
			err := errors.Join(b.other.LinkAdd(docker), b.other.LinkSetUp(docker))
			for i := range 50 {
				err = errors.Join(err, b.other.AddrAdd(docker, &netlink.Addr{IPNet: ipnet(fmt.Sprintf("10.5.%d.1/24", i+1))}))
			}
			if err = errors.Join(err, b.other.LinkDel(docker)); err != nil {
				done <- err
				return
			}
			docker = &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}}
		}
		done <- nil
	}()
	for came := 0; ; {
		s, err := b.k.Surroundings(dataplane.Scope{Networks: []netip.Prefix{network}}.Inside, nil)
		b.must(err)
		var has []netip.Prefix
		for _, l := range s.Links {
			if l.Name == "docker0" {
				has = l.Addrs
				came++
			}
		}
		for _, p := range s.Paths {
			if p.Iface == "docker0" && !slices.ContainsFunc(has, func(a netip.Prefix) bool { return a.Masked() == p.Dst }) {
				t.Errorf("there is %s without the address that it follows from", p)
			}
		}
		select {
		case err := <-done:
			b.must(err)
			t.Logf("seen with its address %d times", came)
			return
		default:
		}
	}
}

func TestHoldersOfAPort(t *testing.T) {
	b := newBed(t)
	var own *net.UDPConn
	var tcp net.Listener
	b.must(b.k.ns.Do(func() (err error) {
		if own, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP("192.0.2.1"), Port: 8285}); err != nil {
			return err
		}
		tcp, err = net.Listen("tcp", "[::]:8080")
		return err
	}))
	defer own.Close()
	defer tcp.Close()
	b.must(b.other.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "v9"}, VxlanId: 9, Port: 8472, VtepDevIndex: b.up()}))
	b.must(b.other.LinkSetUp(b.link("v9")))
	for _, c := range []struct{ protocol, addr, want string }{
		{"udp", "192.0.2.1:8285", "me"},
		{"udp", "0.0.0.0:8285", "me"},
		{"udp", "192.0.2.2:8285", ""},
		{"udp", "192.0.2.1:8286", ""},
		{"udp", "0.0.0.0:8472", "kernel"},
		{"tcp", "0.0.0.0:8080", "me"},
		{"tcp", "127.0.0.1:8080", "me"},
		{"tcp", "127.0.0.1:8285", ""},
	} {
		holders, err := b.k.Holders(c.protocol, netip.MustParseAddrPort(c.addr))
		b.must(err)
		got := ""
		for _, h := range holders {
			switch {
			case h.PID == os.Getpid() && h.Program == program(os.Getpid()):
				got += "me"
			case h.PID == 0 && h.UID == 0 && h.Kernel == seesAllProcesses():
				got += "kernel"
			default:
				got += h.String()
			}
		}
		if got != c.want {
			t.Errorf("%s %s: %q, want %q", c.protocol, c.addr, got, c.want)
		}
	}
}

// TestSocketAddr: the words of an address are in the order of the host, its port is a number.
func TestSocketAddr(t *testing.T) {
	four, six := "0102A8C0:2118", "00000000000000000000000001000000:205D"
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 { // big-endian
		four, six = "C0A80201:2118", "00000000000000000000000000000001:205D"
	}
	for s, want := range map[string]string{four: "192.168.2.1:8472", six: "[::1]:8285", "local_address": "invalid", "0100007F:": "invalid", "01:1": "invalid", ":": "invalid"} {
		a, err := socketAddr(s)
		got := a.String()
		if err != nil {
			got = "invalid"
		}
		if got != want {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
	}
}

func TestReadTUN(t *testing.T) {
	b := newBed(t)
	for name, flags := range map[string]uint16{"tun0": unix.IFF_TUN, "tap0": unix.IFF_TAP, "mq0": unix.IFF_TUN | unix.IFF_MULTI_QUEUE} {
		var file *os.File
		b.must(b.k.ns.Do(func() error {
			fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			if err != nil {
				return err
			}
			request, err := unix.NewIfreq(name)
			if err == nil {
				request.SetUint16(flags | unix.IFF_NO_PI)
				err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
			}
			file = os.NewFile(uintptr(fd), name)
			return err
		}))
		defer file.Close()
		got, ok, err := b.k.ReadTUN(name)
		b.must(err)
		if want := (TUN{TAP: flags&unix.IFF_TAP != 0, MultiQueue: flags&unix.IFF_MULTI_QUEUE != 0}); !ok || got != want {
			t.Errorf("%s: %+v, %v", name, got, ok)
		}
	}
	for _, name := range []string{uplink, "none"} {
		if _, ok, err := b.k.ReadTUN(name); ok || err != nil {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
}
