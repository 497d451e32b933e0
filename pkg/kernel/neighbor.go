package kernel

import (
	"encoding/binary"
	"maps"
	"net/netip"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/netlink"
)

func init() {
	register(dataplane.KindNeigh, &handler{
		read:    func(g *reader) error { return g.onLinks("neighbours", g.neighs) },
		request: (*requests).neigh,
		limit:   limitOfNeighs,

		groups:   []int{unix.RTNLGRP_NEIGH}, // and of FDB entries
		messages: []uint16{unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH},
		event:    (*Watch).neighborEvent,
	})
}

// limitOfNeighs explains "neighbor table overflow" (net/core/neighbour.c, neigh_alloc). Since Linux
// 5.0 permanent entries are not counted.
func limitOfNeighs(op dataplane.Op) (unix.Errno, string) {
	version := "6"
	if k, _ := dataplane.KindNeigh.Of(op); k.IP.Is4() {
		version = "4"
	}
	return unix.ENOBUFS, "sysctl net.ipv" + version + ".neigh.default.gc_thresh3 limits the neighbours of all links"
}

func (r *requests) neigh(op dataplane.Op, index int) {
	k, mac := dataplane.KindNeigh.Of(op)
	r.verb(op.Verb, unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH)
	r.neighHeader(unix.NdMsg{Family: family(k.IP), Ifindex: int32(index), State: unix.NUD_PERMANENT, Type: unix.RTN_UNICAST})
	r.Addr(unix.NDA_DST, k.IP)
	if op.Verb != dataplane.Del {
		r.Bytes(unix.NDA_LLADDR, mac[:])
	}
}

// neighHeader writes struct ndmsg.
func (r *requests) neighHeader(m unix.NdMsg) {
	r.Put8(m.Family, 0)
	r.Put16(0)
	r.Put32(uint32(m.Ifindex))
	r.Put16(m.State)
	r.Put8(m.Flags, m.Type)
}

func (g *reader) neighs(name string, index int) error {
	reset := func() {
		maps.DeleteFunc(g.s.Neighs, func(k dataplane.NeighKey, _ dataplane.MAC) bool { return k.Link == name })
	}
	return g.k.neighbors(unix.AF_UNSPEC, index, reset, func(n neighbor) {
		if n.permanent() && n.dst.IsValid() && n.family != unix.AF_BRIDGE {
			g.s.Neighs[dataplane.NeighKey{Link: name, IP: n.dst}] = n.mac
		}
	})
}

// neighbors lists the neighbour table or the FDB of one link.
func (k *Kernel) neighbors(family uint8, index int, reset func(), each func(neighbor)) error {
	r := one(unix.RTM_GETNEIGH, 0)
	r.neighHeader(unix.NdMsg{Family: family})
	r.Uint32(unix.NDA_IFINDEX, uint32(index))
	return k.conn.Dump(&r.Requests, reset, func(b []byte) {
		if n, ok := parseNeighbor(b); ok && n.index == index {
			each(n)
		}
	})
}

// neighbor is an entry of a neighbour table or of an FDB.
type neighbor struct {
	family, index int
	state         int // NUD_*
	self          bool
	dst           netip.Addr
	mac           dataplane.MAC
	other         bool // an FDB entry with its own port, VNI or device
	hasAge        bool // it has an age, which only the driver's own notifications contain
}

func (n neighbor) permanent() bool { return n.state&unix.NUD_PERMANENT != 0 }

func parseNeighbor(b []byte) (n neighbor, ok bool) {
	if len(b) < unix.SizeofNdMsg {
		return n, false
	}
	n.family = int(b[0])
	n.index = int(int32(binary.NativeEndian.Uint32(b[4:])))
	n.state = int(binary.NativeEndian.Uint16(b[8:]))
	n.self = b[10]&unix.NTF_SELF != 0
	for kind, v := range netlink.After(b, unix.SizeofNdMsg).All() {
		switch kind {
		case unix.NDA_DST:
			n.dst = v.Addr()
		case unix.NDA_LLADDR:
			n.mac = v.MAC()
		case unix.NDA_CACHEINFO:
			n.hasAge = true
		case unix.NDA_PORT, unix.NDA_VNI, unix.NDA_IFINDEX, ndaNextHop:
			n.other = true
		}
	}
	return n, true
}

const ndaNextHop = 13 // NDA_NH_ID of linux/neighbour.h
