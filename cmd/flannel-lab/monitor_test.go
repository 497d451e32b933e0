package main

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/netlink"
)

// message returns a message as the kernel sends it.
func message(kind uint16, header []byte, attributes netlink.Attrs) []byte {
	var r netlink.Requests
	r.Begin(kind, 0)
	r.Put8(header...)
	r.Attrs(attributes)
	return r.Datagram(0, 1, 0)
}

func number32(v int) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(v)) }

func linkMessage(kind uint16, index int, name string) []byte {
	header := make([]byte, unix.SizeofIfInfomsg)
	copy(header[4:], number32(index))
	return message(kind, header, netlink.Attrs{}.Text(unix.IFLA_IFNAME, name))
}

func neighMessage(kind uint16, family byte, index int, state uint16, dst netip.Addr, mac dataplane.MAC) []byte {
	header := make([]byte, unix.SizeofNdMsg)
	header[0] = family
	copy(header[4:], number32(index))
	binary.NativeEndian.PutUint16(header[8:], state)
	return message(kind, header, netlink.Attrs{}.Addr(unix.NDA_DST, dst).Bytes(unix.NDA_LLADDR, mac[:]))
}

func routeMessage(kind uint16, index int, dst netip.Addr) []byte {
	header := make([]byte, unix.SizeofRtMsg)
	header[4], header[7] = unix.RT_TABLE_MAIN, unix.RTN_UNICAST
	return message(kind, header, netlink.Attrs{}.Addr(unix.RTA_DST, dst).Uint32(unix.RTA_OIF, uint32(index)))
}

func TestMonitorCountsDifferingObjects(t *testing.T) {
	m := &monitor{network: netip.MustParsePrefix(manyNetwork), link: vxlanLink, have: objects{}, want: objects{}}
	p, other := numberedPeer(7), returned(7)
	m.expect(true, p.inKernel("vxlan"))
	neigh, fdb := byte(unix.AF_INET), byte(unix.AF_BRIDGE)
	gw := p.subnet.Addr()
	for i, step := range []struct {
		message   []byte
		differing int
	}{
		{neighMessage(unix.RTM_NEWNEIGH, neigh, 5, unix.NUD_PERMANENT, gw, p.mac), 3}, // the link is not known yet
		{linkMessage(unix.RTM_NEWLINK, 5, vxlanLink), 3},
		{neighMessage(unix.RTM_NEWNEIGH, neigh, 5, unix.NUD_PERMANENT, gw, p.mac), 2},
		{neighMessage(unix.RTM_NEWNEIGH, neigh, 4, unix.NUD_PERMANENT, gw, other.mac), 2}, // on another link
		{neighMessage(unix.RTM_NEWNEIGH, fdb, 5, unix.NUD_PERMANENT, p.public, p.mac), 1},
		{routeMessage(unix.RTM_NEWROUTE, 4, gw), 1},
		{routeMessage(unix.RTM_NEWROUTE, 5, netip.MustParseAddr("192.0.2.0")), 1},
		{routeMessage(unix.RTM_NEWROUTE, 5, gw), 0},
		{neighMessage(unix.RTM_NEWNEIGH, neigh, 5, unix.NUD_FAILED, gw, p.mac), 1},
		{neighMessage(unix.RTM_DELNEIGH, neigh, 5, unix.NUD_FAILED, gw, p.mac), 1},
		{neighMessage(unix.RTM_NEWNEIGH, neigh, 5, unix.NUD_PERMANENT, gw, other.mac), 1}, // another MAC
		{neighMessage(unix.RTM_NEWNEIGH, neigh, 5, unix.NUD_PERMANENT, gw, p.mac), 0},
		{neighMessage(unix.RTM_NEWNEIGH, fdb, 5, unix.NUD_PERMANENT, p.public, other.mac), 1}, // one too many
		{neighMessage(unix.RTM_DELNEIGH, fdb, 5, unix.NUD_PERMANENT, p.public, other.mac), 0},
		{routeMessage(unix.RTM_DELROUTE, 5, gw), 1},
		{routeMessage(unix.RTM_NEWROUTE, 5, gw), 0},
		{linkMessage(unix.RTM_DELLINK, 5, vxlanLink), 3},
	} {
		before, was := m.since, m.differing
		m.handle(step.message)
		if m.differing != step.differing {
			t.Fatalf("after message %d, %d objects differ, want %d", i, m.differing, step.differing)
		}
		if became := was > 0 && m.differing == 0; became != m.since.After(before) {
			t.Errorf("after message %d, nothing differs since %v, before that since %v", i, m.since, before)
		}
	}
	m.expect(false, p.inKernel("vxlan"))
	if m.differing != 0 || time.Since(m.since) > time.Minute {
		t.Errorf("with nothing wanted, %d objects differ since %v", m.differing, m.since)
	}
}
