package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/netlink"
)

// Nexthop objects exist since Linux 5.3 (linux/nexthop.h). The kernel removes an object with its
// link, and the routes through it with the object; the link event is the only one.

// protoForeign replaces the protocol of an object that has our protocol number but that we have not
// created, so that it is neither replaced nor deleted.
const protoForeign = unix.RTPROT_UNSPEC

func init() {
	register(dataplane.KindNextHop, &handler{
		read:    (*reader).nextHops,
		request: (*requests).nextHop,

		groups:   []int{unix.RTNLGRP_NEXTHOP},
		optional: true,
		messages: []uint16{unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP},
		event:    (*Watch).nextHopEvent,
	})
}

// nextHop writes a request about a nexthop object.
func (r *requests) nextHop(op dataplane.Op, index int) {
	id, h := dataplane.KindNextHop.Of(op)
	r.verb(op.Verb, unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP)
	if op.Verb == dataplane.Del { // the kernel accepts nothing but the ID
		r.nextHopHeader(unix.Nhmsg{})
		r.Uint32(unix.NHA_ID, id)
		return
	}
	m := unix.Nhmsg{Family: family(h.Via), Protocol: uint8(h.Proto)}
	if h.OnLink {
		m.Flags = unix.RTNH_F_ONLINK
	}
	r.nextHopHeader(m)
	r.Uint32(unix.NHA_ID, id)
	r.Uint32(unix.NHA_OIF, uint32(index))
	r.Addr(unix.NHA_GATEWAY, h.Via)
}

// nextHopHeader writes struct nhmsg.
func (r *requests) nextHopHeader(m unix.Nhmsg) {
	r.Put8(m.Family, m.Scope, m.Protocol, 0)
	r.Put32(m.Flags)
}

// parseNextHop parses a nexthop object. An object that is not a gateway on a link, such as a group,
// is returned without both, and never with our protocol number.
func parseNextHop(b []byte) (id uint32, h dataplane.NextHop, index int, ok bool) {
	if len(b) < unix.SizeofNhmsg {
		return 0, h, 0, false
	}
	h.Proto = int(b[2])
	h.OnLink = binary.NativeEndian.Uint32(b[4:])&unix.RTNH_F_ONLINK != 0
	odd := false
	for kind, v := range netlink.After(b, unix.SizeofNhmsg).All() {
		switch kind {
		case unix.NHA_ID:
			id = uint32(v.Number())
		case unix.NHA_OIF:
			index = v.Number()
		case unix.NHA_GATEWAY:
			h.Via = v.Addr()
		default:
			odd = true
		}
	}
	if odd || index == 0 || !h.Via.IsValid() {
		h = dataplane.NextHop{Proto: h.Proto}
		index = 0
		if h.Proto == dataplane.ProtoFlannel {
			h.Proto = protoForeign
		}
	}
	return id, h, index, id != 0
}

// nextHops lists the nexthop objects. The map of the State is nil if the kernel does not support
// them.
func (g *reader) nextHops() error {
	if !slices.Contains(families(g.scope.Networks), unix.AF_INET) {
		return nil
	}
	if g.s.NextHops = nil; g.k.noNextHops.Load() {
		return nil
	}
	type entry struct {
		id    uint32
		hop   dataplane.NextHop
		index int
	}
	var unnamed []entry // on links whose names cannot be read during the list
	put := func(id uint32, h dataplane.NextHop) {
		if g.scope.InRange(id) {
			g.s.NextHops[id] = h
		} else {
			g.otherHops[id] = h
		}
	}
	r := one(unix.RTM_GETNEXTHOP, 0)
	r.nextHopHeader(unix.Nhmsg{})
	err := g.k.conn.Dump(&r.Requests, func() {
		g.s.NextHops, g.otherHops, unnamed = map[uint32]dataplane.NextHop{}, map[uint32]dataplane.NextHop{}, nil
	}, func(b []byte) {
		id, h, index, ok := parseNextHop(b)
		if !ok {
			return
		}
		h.Link, ok = g.names[index]
		if ok || index == 0 {
			put(id, h)
		} else {
			unnamed = append(unnamed, entry{id, h, index})
		}
	})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		g.k.noNextHops.Store(true)
		g.s.NextHops = nil
		return nil
	}
	if err != nil {
		return fmt.Errorf("list nexthops: %w", err)
	}
	for _, e := range unnamed {
		if e.hop.Link, err = g.nameOf(e.index); err != nil {
			return err
		}
		if e.hop.Link != "" {
			put(e.id, e.hop)
		}
	}
	return nil
}
