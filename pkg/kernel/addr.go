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
		read: func(g *reader) error { return g.onLinks("addresses", g.addrs) },
		request: func(r *requests, op dataplane.Op, index int) {
			a, _ := dataplane.KindAddr.Of(op)
			r.addr(op.Verb, a, index)
		},
		existsErrs: []unix.Errno{unix.EEXIST},

		groups:   []int{unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR},
		messages: []uint16{unix.RTM_NEWADDR, unix.RTM_DELADDR},
		event:    (*Watch).addrEvent,
	})
}

func (r *requests) addr(verb dataplane.Verb, a dataplane.Addr, index int) {
	ip := a.Prefix.Addr()
	r.verb(verb, unix.RTM_NEWADDR, unix.RTM_DELADDR)
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
		if p, i, _, ok := parseAddr(b); ok && i == index {
			found = append(found, p)
		}
	})
	for _, p := range found {
		g.s.Addrs[dataplane.Addr{Link: name, Prefix: p}] = struct{}{}
	}
	return err
}

// parseAddr parses an address of a link.
func parseAddr(b []byte) (p netip.Prefix, index int, flags int, ok bool) {
	if len(b) < unix.SizeofIfAddrmsg {
		return p, 0, 0, false
	}
	m := nl.DeserializeIfAddrmsg(b)
	var local, peer netip.Addr
	flags = int(m.Flags)
	for kind, v := range netlink.After(b, unix.SizeofIfAddrmsg).All() {
		switch kind {
		case unix.IFA_LOCAL:
			local = v.Addr()
		case unix.IFA_ADDRESS: // the remote end of a point-to-point link
			peer = v.Addr()
		case unix.IFA_FLAGS:
			flags = v.Number()
		}
	}
	if !local.IsValid() {
		local = peer
	}
	p = netip.PrefixFrom(local, int(m.Prefixlen))
	return p, int(m.Index), flags, p.IsValid()
}
