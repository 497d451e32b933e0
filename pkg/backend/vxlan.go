package backend

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
	"flanneld/pkg/netconf"
)

func init() { backends["vxlan"] = newVXLAN }

// vxlan carries packets in kernel VXLAN (RFC 7348). As commands, with VNI 1, our subnet
// 10.42.7.0/24 and a peer 10.42.9.0/24 at 198.51.100.9 with VTEP MAC M:
//
//	ip link add flannel.1 type vxlan id 1 dev eth0 local 198.51.100.7 dstport 8472 nolearning
//	ip link set flannel.1 mtu 1450 up
//	sysctl -w net.ipv6.conf.flannel.1.accept_ra=0
//	ip addr add 10.42.7.0/32 dev flannel.1
//	bridge fdb replace M dev flannel.1 dst 198.51.100.9 self permanent
//	ip neigh replace 10.42.9.0 lladdr M dev flannel.1 nud permanent
//	ip route replace 10.42.9.0/24 via 10.42.9.0 dev flannel.1 onlink
//
// Follow a packet to 10.42.9.5: the route sends it to the gateway 10.42.9.0, the neighbour entry
// resolves the gateway to M, and the FDB entry sends frames for M to 198.51.100.9. All entries are
// permanent, so traffic does not depend on the daemon. With DirectRouting, a peer on the uplink's
// link gets a plain route instead.
type vxlan struct {
	device        string
	vni           int
	port          int
	gbp           bool
	learning      bool
	directRouting bool
	mtu           int // of the underlay, if less than the uplink's; 0 for the uplink's
}

const (
	// vxlanOverhead is the size of the outer IPv4, UDP, VXLAN and inner Ethernet headers.
	vxlanOverhead = 20 + 8 + 8 + 14
	// vxlanPort is the Linux kernel's default, which is older than IANA's 4789.
	vxlanPort = 8472
	// vxlanMaxVNI limits flannel.<VNI> to the 15 characters of a device name. The protocol allows
	// up to 16777215.
	vxlanMaxVNI = 9_999_999
	// minMTU is the minimum MTU of an IPv4 link (RFC 791).
	minMTU = 68
	// minMTU6 is the minimum MTU of an IPv6 link (RFC 8200). Below it the kernel removes IPv6 from
	// the device, including its sysctls (net/ipv6/addrconf.c, addrconf_notify).
	minMTU6 = 1280
)

func newVXLAN(c netconf.Config) (Backend, error) {
	f := c.Backend
	b := &vxlan{
		vni:           f.Int("VNI", 1, 0, vxlanMaxVNI),
		port:          cmp.Or(f.Int("Port", 0, 0, 65535), vxlanPort),
		gbp:           f.Bool("GBP", false),
		learning:      f.Bool("Learning", false),
		directRouting: f.Bool("DirectRouting", false),
		mtu:           f.Int("MTU", 0, 0, 65535),
	}
	b.device = fmt.Sprintf("flannel.%d", b.vni)
	if least := minMTU + vxlanOverhead; b.mtu != 0 && b.mtu < least {
		f.Fail("MTU", fmt.Sprintf("0 (the uplink's) or %d to 65535", least))
	}
	return b, f.Err()
}

// MTU returns at most what the uplink can carry, because the kernel rejects more.
func (b *vxlan) MTU(h host.Facts) int {
	return min(cmp.Or(b.mtu, h.MTU), h.MTU) - vxlanOverhead
}

// Attrs publishes the MAC that peers may already know: that of the existing device, else that of
// the previous lease, else one derived from the public IP and the VNI, so that it survives the loss
// of both. If another host has it, the next MAC is used.
func (b *vxlan) Attrs(h host.Facts, previous lease.Attrs, others []lease.Lease) (lease.Attrs, error) {
	if b.MTU(h) < minMTU {
		return lease.Attrs{}, fmt.Errorf("MTU %d of %s leaves no room for VXLAN: at least %d is needed", h.MTU, h.Uplink, minMTU+vxlanOverhead)
	}
	mac := dataplane.MAC(h.MACs[b.device])
	if mac == (dataplane.MAC{}) || mac[0]&1 != 0 {
		var err error
		if mac, err = vtepMAC(previous); err != nil || previous.BackendType != "vxlan" {
			mac = derivedMAC(h.PublicIP, b.vni)
		}
	}
	for range others { // each can occupy one MAC
		if !slices.ContainsFunc(others, func(l lease.Lease) bool { return hasMAC(l, mac) }) {
			break
		}
		mac = nextMAC(mac, h.PublicIP, b.vni)
	}
	return lease.Attrs{
		PublicIP:    h.PublicIP,
		BackendType: "vxlan",
		BackendData: fmt.Sprintf(`{"VNI":%d,"VtepMAC":"%s"}`, b.vni, mac),
	}, nil
}

func derivedMAC(ip netip.Addr, vni int) dataplane.MAC {
	return localMAC(fmt.Appendf(nil, "flannel vxlan %d %s", vni, ip))
}

// nextMAC returns the MAC to use when another host has mac.
func nextMAC(mac dataplane.MAC, ip netip.Addr, vni int) dataplane.MAC {
	return localMAC(fmt.Appendf(nil, "flannel vxlan %d %s not %s", vni, ip, mac))
}

// hasMAC reports whether a lease publishes a MAC. A text search rules out most leases quickly.
func hasMAC(l lease.Lease, mac dataplane.MAC) bool {
	text := mac.String()
	if !strings.Contains(l.BackendData, text) && !strings.Contains(l.BackendData, strings.ToUpper(text)) {
		return false
	}
	theirs, err := vtepMAC(l.Attrs)
	return err == nil && theirs == mac
}

func localMAC(seed []byte) dataplane.MAC {
	sum := sha256.Sum256(seed)
	mac := dataplane.MAC(sum[:6])
	mac[0] = mac[0]&^1 | 2 // unicast, locally administered (IEEE 802)
	return mac
}

// vtepMAC returns the MAC in a lease's BackendData.
func vtepMAC(a lease.Attrs) (dataplane.MAC, error) {
	if a.BackendData == "" {
		return dataplane.MAC{}, fault("BackendData is missing", "")
	}
	// This fast path suffices for nearly all leases. Errors are determined below.
	var quick struct{ VtepMAC dataplane.MAC }
	if json.Unmarshal([]byte(a.BackendData), &quick) == nil && quick.VtepMAC != (dataplane.MAC{}) {
		return quick.VtepMAC, nil
	}
	f, err := netconf.ParseFields([]byte(a.BackendData), "BackendData.")
	if err != nil {
		return dataplane.MAC{}, fault("BackendData has no VtepMAC", "BackendData %v", err)
	}
	mac, err := dataplane.ParseMAC(f.String("VtepMAC", ""))
	if err := cmp.Or(f.Err(), err); err != nil {
		return dataplane.MAC{}, fault("BackendData has no VtepMAC", "%v", err)
	}
	return mac, nil
}

func (b *vxlan) Base(h host.Facts, own lease.Lease) dataplane.State {
	s := dataplane.NewState()
	// Our own lease was written by Attrs. If it was damaged since, the device keeps its MAC.
	mac, _ := vtepMAC(own.Attrs)
	s.Links[b.device] = dataplane.Link{
		Kind: dataplane.KindVXLAN, VNI: b.vni, Parent: h.Uplink, Local: h.Addr, Port: b.port,
		GBP: b.gbp, Learning: b.learning, MAC: mac, MTU: b.MTU(h), Up: true,
	}
	if h.IPv6 && b.MTU(h) >= minMTU6 {
		s.Sysctls["net/ipv6/conf/"+b.device+"/accept_ra"] = "0"
	}
	s.Addrs[dataplane.Addr{Link: b.device, Prefix: netip.PrefixFrom(own.Subnets.V4().Addr(), 32)}] = struct{}{}
	return s
}

// vtep is the claim for the MAC of a VXLAN device: frames to a MAC go to one host only.
type vtep struct{ dataplane.MAC }

func (vtep) Kind() string { return "VTEP MAC" }

func (b *vxlan) Accept(_ host.Facts, l *lease.Lease) (Peer, error) {
	if err := sameType(l, "vxlan"); err != nil {
		return Peer{}, err
	}
	mac, err := vtepMAC(l.Attrs)
	if err != nil {
		return Peer{}, err
	}
	return newPeer(l, vtep{mac}), nil
}

// Via returns the interface of the link that this host and a peer share, if DirectRouting is on.
func (b *vxlan) Via(h host.Facts, l *lease.Lease) string {
	if b.directRouting {
		if iface, ok := h.OnLink(l.PublicIP); ok {
			return iface
		}
	}
	return b.device
}

func (b *vxlan) Add(s dataplane.State, h host.Facts, p Peer) {
	if device := b.Via(h, p.Lease); device != b.device {
		s.Routes[dataplane.RouteKey{Dst: p.Subnets.V4(), Link: device}] = dataplane.Route{Via: p.PublicIP, Proto: dataplane.ProtoFlannel}
		return
	}
	gw := p.Subnets.V4().Addr()
	its, _ := p.Claims[1].(vtep)
	s.FDB[dataplane.FDB{Link: b.device, MAC: its.MAC, Dst: p.PublicIP}] = struct{}{}
	s.Neighs[dataplane.NeighKey{Link: b.device, IP: gw}] = its.MAC
	s.Routes[dataplane.RouteKey{Dst: p.Subnets.V4(), Link: b.device}] = dataplane.Route{Via: gw, OnLink: true, Proto: dataplane.ProtoBoot}
}
