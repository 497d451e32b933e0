package nftables

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/netlink"
)

const (
	// addressType is the data type of IPv4 addresses in nft(8) (TYPE_IPADDR), which determines how
	// nft(8) prints elements.
	addressType = 7
	// lockBatch is the number of elements per message. An element has 16 bytes, and an attribute at
	// most 64 KiB.
	lockBatch = 1000
	// vxlanVNI is the offset of the VNI of a VXLAN packet from the UDP header, in bytes.
	vxlanVNI = 8 + 4
)

// lockBase is a base chain of a lock, with its only rule.
type lockBase struct {
	name string
	at   place
	rule func(firewall.Lock) netlink.Attrs
}

// lockChains returns the base chains of a lock. They come before all filters, which then have less
// to do, and after source NAT.
func lockChains() []lockBase {
	return []lockBase{
		{"input", place{"filter", unix.NF_INET_LOCAL_IN, -10}, lockInput},
		{"translated", place{"filter", unix.NF_INET_POST_ROUTING, 110}, lockTranslated},
	}
}

// lockAttrs returns an attribute that identifies the table.
func lockAttrs(network netip.Prefix, kind uint16) netlink.Attrs {
	return netlink.Attrs{}.Text(kind, lockPrefix+network.String())
}

// deleteLock returns a message that deletes the table.
func deleteLock(network netip.Prefix) message {
	return message{unix.NFT_MSG_DELTABLE, 0, IPv4, lockAttrs(network, unix.NFTA_TABLE_NAME)}
}

// createLock returns messages that create the table with an empty set.
func createLock(l firewall.Lock) (ms []message) {
	add := func(kind, flags uint16, body netlink.Attrs) {
		ms = append(ms, message{kind, flags, IPv4, body})
	}
	add(unix.NFT_MSG_NEWTABLE, create, lockAttrs(l.Network, unix.NFTA_TABLE_NAME).
		Uint32BE(unix.NFTA_TABLE_FLAGS, 0))
	add(unix.NFT_MSG_NEWSET, create, lockAttrs(l.Network, unix.NFTA_SET_TABLE).
		Text(unix.NFTA_SET_NAME, lockSet).
		Uint32BE(unix.NFTA_SET_FLAGS, 0).
		Uint32BE(unix.NFTA_SET_KEY_TYPE, addressType).
		Uint32BE(unix.NFTA_SET_KEY_LEN, 4).
		Uint32BE(unix.NFTA_SET_ID, 1))
	for _, c := range lockChains() {
		add(unix.NFT_MSG_NEWCHAIN, create, lockAttrs(l.Network, unix.NFTA_CHAIN_TABLE).
			Text(unix.NFTA_CHAIN_NAME, c.name).
			Uint32BE(unix.NFTA_CHAIN_POLICY, nfAccept).
			Nest(unix.NFTA_CHAIN_HOOK, c.at.hookAttrs()).
			Text(unix.NFTA_CHAIN_TYPE, c.at.kind))
		rule := lockAttrs(l.Network, unix.NFTA_RULE_TABLE).
			Text(unix.NFTA_RULE_CHAIN, c.name).
			Nest(unix.NFTA_RULE_EXPRESSIONS, c.rule(l))
		add(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, rule)
	}
	return ms
}

// expressions is a list of expressions under construction.
type expressions struct{ netlink.Attrs }

func (x *expressions) add(name string, data netlink.Attrs) {
	e := netlink.Attrs{}.Text(unix.NFTA_EXPR_NAME, name)
	x.Attrs = x.Nest(unix.NFTA_LIST_ELEM, e.Nest(unix.NFTA_EXPR_DATA, data))
}

// tunnel adds a match for packets that only the network's tunnel receives.
func (x *expressions) tunnel(l firewall.Lock) {
	matchPort(x.add, l.Port)
	if !l.Bound {
		x.add("payload", payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, vxlanVNI, 3))
		x.add("cmp", compare(unix.NFT_CMP_EQ, binary.BigEndian.AppendUint32(nil, l.VNI)[1:]))
	}
}

// peer adds a match for an address that is, or is not, in the set.
func (x *expressions) peer(offset int, flags uint32) {
	x.add("payload", payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, 4))
	x.add("lookup", netlink.Attrs{}.
		Text(unix.NFTA_LOOKUP_SET, lockSet).
		Uint32BE(unix.NFTA_LOOKUP_SREG, register).
		Uint32BE(unix.NFTA_LOOKUP_FLAGS, flags))
}

func (x *expressions) drop() netlink.Attrs {
	x.add("counter", counter())
	x.add("immediate", verdict(nfDrop))
	return x.Attrs
}

// lockInput returns the rule for packets to this host, in the syntax of nft(8):
//
//	udp dport 8472 @th,96,24 1 ip saddr != @peers counter drop
//	ip daddr 192.0.2.7 udp dport 8285 ip saddr != @peers counter drop
func lockInput(l firewall.Lock) netlink.Attrs {
	var x expressions
	if l.Bound {
		matchAddress(x.add, firewall.In(netip.PrefixFrom(l.Local, l.Local.BitLen())), IPv4.destination())
	}
	x.tunnel(l)
	x.peer(IPv4.source(), unix.NFT_LOOKUP_F_INV)
	return x.drop()
}

// lockTranslated returns the rule for packets that leave with a translated source address. The
// tunnel's own packets may be translated, and so may those of peers that this host routes for:
//
//	udp dport 8472 @th,96,24 1 ip daddr @peers ip saddr != @peers ct status snat
//	    ct original ip saddr != 192.0.2.7 counter drop
func lockTranslated(l firewall.Lock) netlink.Attrs {
	const snat = 1 << 4 // IPS_SRC_NAT of enum ip_conntrack_status
	var x expressions
	x.tunnel(l)
	x.peer(IPv4.destination(), 0)
	x.peer(IPv4.source(), unix.NFT_LOOKUP_F_INV)
	x.add("ct", load(unix.NFTA_CT_DREG).Uint32BE(unix.NFTA_CT_KEY, unix.NFT_CT_STATUS))
	x.add("bitwise", and(binary.NativeEndian.AppendUint32(nil, snat)))
	x.add("cmp", compare(unix.NFT_CMP_NEQ, make([]byte, 4)))
	x.add("ct", load(unix.NFTA_CT_DREG).
		Uint32BE(unix.NFTA_CT_KEY, unix.NFT_CT_SRC_IP).
		Bytes(unix.NFTA_CT_DIRECTION, []byte{0}))
	x.add("cmp", compare(unix.NFT_CMP_NEQ, l.Local.AsSlice()))
	return x.drop()
}

// lockElements returns messages that add addresses to the set or remove them.
func lockElements(network netip.Prefix, kind uint16, peers []netip.Addr) (ms []message) {
	m := message{kind: kind, family: IPv4}
	if kind == unix.NFT_MSG_NEWSETELEM {
		m.flags = unix.NLM_F_CREATE
	}
	for some := range slices.Chunk(peers, lockBatch) {
		var list netlink.Attrs
		for _, a := range some {
			key := netlink.Attrs{}.Addr(unix.NFTA_DATA_VALUE, a)
			list = list.Nest(unix.NFTA_LIST_ELEM, netlink.Attrs{}.Nest(unix.NFTA_SET_ELEM_KEY, key))
		}
		m.body = lockAttrs(network, unix.NFTA_SET_ELEM_LIST_TABLE).
			Text(unix.NFTA_SET_ELEM_LIST_SET, lockSet).
			Nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, list)
		ms = append(ms, m)
	}
	return ms
}
