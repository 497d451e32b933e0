package kernel

import (
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/netlink"
)

func init() {
	register(dataplane.KindAddr, &handler{
		read:       func(g *reader) error { return g.onLinks("addresses", g.addrs) },
		request:    (*requests).addr,
		existsErrs: []unix.Errno{unix.EEXIST},

		groups:   []int{unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR},
		messages: []uint16{unix.RTM_NEWADDR, unix.RTM_DELADDR},
		event:    (*Watch).addrEvent,
	})
}

func (r *requests) addr(op dataplane.Op, index int) {
	a, _ := dataplane.KindAddr.Of(op)
	ip := a.Prefix.Addr()
	r.verb(op.Verb, unix.RTM_NEWADDR, unix.RTM_DELADDR)
	r.addrHeader(family(ip), a.Prefix.Bits(), index)
	r.Addr(unix.IFA_LOCAL, ip)
	r.Addr(unix.IFA_ADDRESS, ip)
}

// addrHeader writes struct ifaddrmsg.
func (r *requests) addrHeader(family uint8, bits, index int) {
	r.Put8(family, uint8(bits), 0, unix.RT_SCOPE_UNIVERSE)
	r.Put32(uint32(index))
}

// addrsRequest returns a request for the addresses of a link, or of all links if index is 0.
func addrsRequest(index int) *requests {
	r := one(unix.RTM_GETADDR, 0)
	r.addrHeader(unix.AF_UNSPEC, 0, index)
	return r
}

func (g *reader) addrs(name string, index int) error {
	var found []netip.Prefix
	err := g.k.conn.Dump(&addrsRequest(index).Requests, func() { found = nil }, func(b []byte) {
		if a, ok := parseAddr(b); ok && a.index == index {
			found = append(found, a.prefix)
		}
	})
	for _, p := range found {
		g.s.Addrs[dataplane.Addr{Link: name, Prefix: p}] = struct{}{}
	}
	return err
}

// addrEntry is an address of a link as the kernel reports it.
type addrEntry struct {
	prefix       netip.Prefix
	index, flags int
}

func parseAddr(b []byte) (a addrEntry, ok bool) {
	if len(b) < unix.SizeofIfAddrmsg {
		return a, false
	}
	m := nl.DeserializeIfAddrmsg(b)
	var local, peer netip.Addr
	a.index, a.flags = int(m.Index), int(m.Flags)
	for kind, v := range netlink.After(b, unix.SizeofIfAddrmsg).All() {
		switch kind {
		case unix.IFA_LOCAL:
			local = v.Addr()
		case unix.IFA_ADDRESS: // the remote end of a point-to-point link
			peer = v.Addr()
		case unix.IFA_FLAGS:
			a.flags = v.Number()
		}
	}
	if !local.IsValid() {
		local = peer
	}
	a.prefix = netip.PrefixFrom(local, int(m.Prefixlen))
	return a, a.prefix.IsValid()
}
