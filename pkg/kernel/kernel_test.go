package kernel

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/lab/netns"
)

const (
	uplink  = "up0"
	overlay = "flannel.1"
	foreign = "other.9" // a foreign VXLAN device
	timeout = 10 * time.Second
)

var (
	network  = netip.MustParsePrefix("10.5.0.0/16")
	uplinkIP = netip.MustParseAddr("192.0.2.1")
)

// bed is a network namespace with an uplink, seen by two parties: k, which is
// tested, and other, which stands for everybody else on the host.
type bed struct {
	t     testing.TB
	k     *Kernel
	other *netlink.Handle

	networks []netip.Prefix
	nextHops bool // passes make routes by way of nexthop objects
	spread   bool // of different scopes
}

// newBed creates a namespace that exists as long as its descriptors.
func newBed(t testing.TB) *bed {
	t.Helper()
	b := &bed{t: t, networks: []netip.Prefix{network}}
	b.must(netns.New(t).Do(func() (err error) {
		if b.k, err = New(); err == nil {
			b.other, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		}
		return err
	}))
	t.Cleanup(func() { b.k.Close() })
	t.Cleanup(b.other.Close)
	b.uplink()
	return b
}

// uplink creates the interface that carries the overlay.
func (b *bed) uplink() {
	b.t.Helper()
	b.must(b.other.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: uplink, MTU: 1500}, PeerName: "up1"}))
	for _, name := range []string{uplink, "up1"} {
		b.must(b.other.LinkSetUp(b.link(name)))
	}
	b.must(b.other.AddrAdd(b.link(uplink), &netlink.Addr{IPNet: ipnet("192.0.2.1/24")}))
}

func (b *bed) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// up returns the index of the uplink.
func (b *bed) up() int { return b.link(uplink).Attrs().Index }

func (b *bed) link(name string) netlink.Link {
	b.t.Helper()
	l, err := b.other.LinkByName(name)
	b.must(err)
	return l
}

func (b *bed) snapshot(scope dataplane.Scope) dataplane.State {
	b.t.Helper()
	s, err := b.k.Snapshot(scope)
	b.must(err)
	return s
}

// diff is what a pass would do.
func (b *bed) diff(want dataplane.State) *dataplane.Delta {
	b.t.Helper()
	scope := want.ScopeOf(b.networks)
	scope.NextHops, scope.Spread = b.nextHops, b.spread
	return dataplane.Diff(want, b.snapshot(scope), scope, true)
}

func (b *bed) watch(scope dataplane.Scope) *Watch {
	b.t.Helper()
	w, err := b.k.Watch(b.t.Context(), scope)
	b.must(err)
	return w
}

// withPeers is a bed after a pass for a number of peers.
func withPeers(t *testing.T, peers int) (*bed, dataplane.State) {
	t.Helper()
	b, r := newBed(t), chance(t)
	want := wantPeers(r, vxlanLink(r), peers)
	b.pass(want)
	return b, want
}

// pass does what the reconciler does, once.
func (b *bed) pass(want dataplane.State) []dataplane.Op {
	b.t.Helper()
	delta := b.diff(want)
	for _, c := range delta.Conflicts {
		b.t.Errorf("conflict: %s: %s", c.Op, c.Reason)
	}
	ops := slices.Collect(delta.Ops())
	for i, err := range b.k.Apply(ops) {
		if err != nil {
			b.t.Errorf("%s: %v", ops[i], err)
		}
	}
	return ops
}

// settled fails the test when a pass would still change something.
func (b *bed) settled(want dataplane.State) {
	b.t.Helper()
	if ops := slices.Collect(b.diff(want).Ops()); len(ops) > 0 {
		b.t.Fatalf("the second pass is not empty:\n%s", commands(ops))
	}
}

func commands(ops []dataplane.Op) string {
	var lines []string
	for _, op := range ops[:min(len(ops), 8)] {
		lines = append(lines, op.String())
	}
	if more := len(ops) - len(lines); more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(lines, "\n")
}

func ipnet(s string) *net.IPNet {
	p := netip.MustParsePrefix(s)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// chance is a seeded source; the seed is printed for a repetition.
func chance(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

func randomMAC(r *rand.Rand) (m dataplane.MAC) {
	for i := range m {
		m[i] = byte(r.Uint32())
	}
	m[0] = m[0]&^1 | 2
	return m
}

func vxlanLink(r *rand.Rand) dataplane.Link {
	return dataplane.Link{
		Kind: dataplane.KindVXLAN, VNI: 1, Parent: uplink, Local: uplinkIP, Port: 8472,
		MAC: randomMAC(r), MTU: 1450, Up: true,
	}
}

// wantPeers is what the vxlan backend wants with n peers; about one in ten is
// reached directly.
func wantPeers(r *rand.Rand, link dataplane.Link, n int) dataplane.State {
	s := dataplane.NewState()
	s.Links[overlay] = link
	s.Sysctls["net/ipv6/conf/"+overlay+"/accept_ra"] = "0"
	s.Addrs[dataplane.Addr{Link: overlay, Prefix: netip.MustParsePrefix("10.5.1.0/32")}] = struct{}{}
	macs := map[dataplane.MAC]bool{}
	for _, i := range r.Perm(max(n, 250))[:n] {
		subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(2 + i/16), byte(i % 16 * 16)}), 28)
		if r.IntN(10) == 0 {
			via := netip.AddrFrom4([4]byte{192, 0, 2, byte(2 + r.IntN(250))})
			s.Routes[dataplane.RouteKey{Dst: subnet, Link: uplink}] = dataplane.Route{Via: via, Proto: dataplane.ProtoFlannel}
			continue
		}
		mac := randomMAC(r)
		for macs[mac] {
			mac = randomMAC(r)
		}
		macs[mac] = true
		gw := subnet.Addr()
		s.FDB[dataplane.FDB{Link: overlay, MAC: mac, Dst: netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})}] = struct{}{}
		s.Neighs[dataplane.NeighKey{Link: overlay, IP: gw}] = mac
		s.Routes[dataplane.RouteKey{Dst: subnet, Link: overlay}] = dataplane.Route{Via: gw, OnLink: true, Proto: dataplane.ProtoBoot}
	}
	return s
}

// addVXLAN creates a link as another program, with a limit of addresses.
func (b *bed) addVXLAN(link dataplane.Link, limit int) {
	b.t.Helper()
	b.must(b.other.LinkAdd(&netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: overlay, MTU: link.MTU, HardwareAddr: link.MAC[:]}, VxlanId: link.VNI, Limit: limit,
		VtepDevIndex: b.up(), SrcAddr: uplinkIP.AsSlice(), Port: link.Port,
	}))
}

// strangers creates objects that no pass may change, and returns their description.
func (b *bed) strangers() func() string {
	b.t.Helper()
	b.must(b.other.LinkAdd(&netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: foreign, MTU: 1400}, VxlanId: 9, VtepDevIndex: b.up(), Port: 4789,
	}))
	l := b.link(foreign)
	index := l.Attrs().Index
	b.must(b.other.LinkSetUp(l))
	b.must(b.other.AddrAdd(l, &netlink.Addr{IPNet: ipnet("10.5.250.1/32")}))
	b.must(b.other.AddrAdd(b.link(uplink), &netlink.Addr{IPNet: ipnet("10.5.251.1/32")}))
	mac := []byte{2, 9, 9, 9, 9, 9}
	b.must(b.other.NeighSet(&netlink.Neigh{LinkIndex: index, State: unix.NUD_PERMANENT, IP: ipnet("10.5.250.7/32").IP, HardwareAddr: mac}))
	b.must(b.other.NeighSet(&netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, State: unix.NUD_PERMANENT, Flags: unix.NTF_SELF,
		IP: ipnet("203.0.113.9/32").IP, HardwareAddr: mac}))
	for _, r := range []netlink.Route{
		{Dst: ipnet("10.5.252.0/24"), LinkIndex: index},
		{Dst: ipnet("10.5.253.0/24"), LinkIndex: b.up(), Gw: ipnet("192.0.2.9/32").IP, Priority: 7},
		{Dst: ipnet("10.5.254.0/24"), MultiPath: []*netlink.NexthopInfo{
			{LinkIndex: b.up(), Gw: ipnet("192.0.2.9/32").IP}, {LinkIndex: index},
		}},
		{Dst: ipnet("10.5.0.0/16"), Type: unix.RTN_BLACKHOLE},
		{Dst: ipnet("10.5.255.0/24"), LinkIndex: index, Table: 100},
		{Dst: ipnet("172.16.0.0/12"), LinkIndex: index},
	} {
		b.must(b.other.RouteAdd(&r))
	}
	return func() string { return b.describe(index) }
}

// describe lists everything that is not the overlay's, as text.
func (b *bed) describe(index int) string {
	b.t.Helper()
	var lines []string
	ours := map[int]bool{}
	if l, err := b.other.LinkByName(overlay); err == nil {
		ours[l.Attrs().Index] = true
	}
	routes, err := b.other.RouteListFiltered(unix.AF_INET, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	b.must(err)
	for _, r := range routes {
		if !ours[r.LinkIndex] && r.Protocol != dataplane.ProtoFlannel {
			lines = append(lines, r.String())
		}
	}
	addrs, err := b.other.AddrList(nil, unix.AF_INET)
	b.must(err)
	for _, a := range addrs {
		if !ours[a.LinkIndex] {
			lines = append(lines, fmt.Sprintf("%d %s", a.LinkIndex, a))
		}
	}
	for _, family := range []int{unix.AF_INET, unix.AF_BRIDGE} {
		neighs, err := b.other.NeighList(index, family)
		b.must(err)
		for _, n := range neighs {
			lines = append(lines, fmt.Sprintf("%d %d %s", family, n.State, &n))
		}
	}
	l := b.link(foreign).Attrs()
	lines = append(lines, fmt.Sprint(l.Name, l.MTU, l.HardwareAddr, l.Flags))
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
