package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
)

// Nexthop objects (linux/nexthop.h, ip-nexthop(8)) are in kernels from 5.3 on.

// nhmsg is struct nhmsg.
type nhmsg struct {
	family, protocol uint8
	flags            uint32 // RTNH_F_*
}

// sizeofNhmsg has the family, the scope, the protocol, a reserved byte, and the flags.
const sizeofNhmsg = 8

func (m nhmsg) Len() int { return sizeofNhmsg }

// Serialize implements nl.NetlinkRequestData.
func (m nhmsg) Serialize() []byte {
	return binary.NativeEndian.AppendUint32([]byte{m.family, 0, m.protocol, 0}, m.flags)
}

func nextHopRequest(verb dataplane.Verb, id uint32, h dataplane.NextHop, index int) *nl.NetlinkRequest {
	if verb == dataplane.Del {
		r := request(unix.RTM_DELNEXTHOP, 0, nhmsg{})
		add(r, unix.NHA_ID, nl.Uint32Attr(id))
		return r
	}
	m := nhmsg{family: uint8(family(h.Via)), protocol: uint8(h.Proto)}
	if h.OnLink {
		m.flags = unix.RTNH_F_ONLINK
	}
	r := request(unix.RTM_NEWNEXTHOP, replace, m)
	add(r, unix.NHA_ID, nl.Uint32Attr(id))
	add(r, unix.NHA_OIF, nl.Uint32Attr(uint32(index)))
	add(r, unix.NHA_GATEWAY, h.Via.AsSlice())
	return r
}

// parseNextHop reads an object. One that is not just a gateway, such as a group,
// has neither a gateway nor a protocol, so that nobody takes it for ours.
func parseNextHop(b []byte) (id uint32, h dataplane.NextHop, index int, ok bool) {
	if len(b) < sizeofNhmsg {
		return 0, h, 0, false
	}
	h.Proto = int(b[2])
	h.OnLink = binary.NativeEndian.Uint32(b[4:])&unix.RTNH_F_ONLINK != 0
	plain := true
	for kind, v := range attrs(b, sizeofNhmsg) {
		switch kind {
		case unix.NHA_ID:
			id = uint32(number(v))
		case unix.NHA_OIF:
			index = number(v)
		case unix.NHA_GATEWAY:
			h.Via = address(v)
		default:
			plain = false
		}
	}
	if !plain || !h.Via.IsValid() || index == 0 {
		h.Via, h.Proto = netip.Addr{}, unix.RTPROT_UNSPEC
	}
	return id, h, index, id != 0
}

// readNextHops fills s with the objects whose ids are in the scope's range, and
// gives all others, for what routes of the network may name.
func (k *Kernel) readNextHops(s *dataplane.State, scope dataplane.Scope, n names) (others map[uint32]dataplane.NextHop, err error) {
	if s.NextHops = nil; k.noNextHops.Load() || !scope.Network.Addr().Is4() {
		return nil, nil
	}
	var indexes map[uint32]int
	var found map[uint32]dataplane.NextHop
	err = k.conn.dump(request(unix.RTM_GETNEXTHOP, 0, nhmsg{}), func() {
		indexes, found = map[uint32]int{}, map[uint32]dataplane.NextHop{}
	}, func(b []byte) {
		if id, h, index, ok := parseNextHop(b); ok {
			indexes[id], found[id] = index, h
		}
	})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		k.noNextHops.Store(true)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list nexthops: %w", err)
	}
	s.NextHops, others = map[uint32]dataplane.NextHop{}, map[uint32]dataplane.NextHop{}
	for id, h := range found {
		if index := indexes[id]; index != 0 {
			if h.Link, err = n.of(index); err != nil {
				return nil, err
			}
		}
		if scope.InRange(id) {
			s.NextHops[id] = h
		} else {
			others[id] = h
		}
	}
	return others, nil
}
