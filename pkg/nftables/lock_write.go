package nftables

import (
	"encoding/binary"
	"fmt"
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
	text func(firewall.Lock) string // the rule in the syntax of nft(8)
}

// lockChains returns the base chains of a lock. They come before all filters, which then have less
// to do, and after source NAT.
func lockChains() []lockBase {
	return []lockBase{
		{"input", place{"filter", unix.NF_INET_LOCAL_IN, -10}, lockInput, lockInputText},
		{"translated", place{"filter", unix.NF_INET_POST_ROUTING, 110}, lockTranslated, lockTranslatedText},
	}
}

// createLock returns messages that create the table with an empty set.
func createLock(l firewall.Lock) []message {
	name := lockTable(l.Network)
	set := netlink.Attrs{}.
		Text(unix.NFTA_SET_TABLE, name).
		Text(unix.NFTA_SET_NAME, lockSet).
		Uint32BE(unix.NFTA_SET_FLAGS, 0).
		Uint32BE(unix.NFTA_SET_KEY_TYPE, addressType).
		Uint32BE(unix.NFTA_SET_KEY_LEN, 4).
		Uint32BE(unix.NFTA_SET_ID, 1)
	ms := []message{createTable(IPv4, name), {unix.NFT_MSG_NEWSET, create, IPv4, set}}
	for _, c := range lockChains() {
		in := chainName{IPv4, name, c.name}
		rule := in.ruleAttrs().Nest(unix.NFTA_RULE_EXPRESSIONS, c.rule(l))
		ms = append(ms, in.create(c.at),
			message{unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE | unix.NLM_F_APPEND, IPv4, rule})
	}
	return ms
}

// tunnel adds a match for packets that only the network's tunnel receives.
func (x *expressions) tunnel(l firewall.Lock) {
	x.port(l.Port)
	if !l.Bound {
		x.payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, vxlanVNI, 3)
		x.compare(unix.NFT_CMP_EQ, binary.BigEndian.AppendUint32(nil, l.VNI)[1:])
	}
}

// peer adds a match for an address that is, or is not, in the set.
func (x *expressions) peer(offset int, flags uint32) {
	x.payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, 4)
	x.add("lookup", netlink.Attrs{}.
		Text(unix.NFTA_LOOKUP_SET, lockSet).
		Uint32BE(unix.NFTA_LOOKUP_SREG, register).
		Uint32BE(unix.NFTA_LOOKUP_FLAGS, flags))
}

func (x *expressions) drop() netlink.Attrs {
	x.counter()
	x.verdict(nfDrop)
	return x.Attrs
}

// lockInputText returns the rule for packets to this host in the syntax of nft(8):
//
//	udp dport 8472 @th,96,24 1 ip saddr != @peers counter drop
//	ip daddr 192.0.2.7 udp dport 8285 ip saddr != @peers counter drop
func lockInputText(l firewall.Lock) string {
	to := ""
	if l.Bound {
		to = fmt.Sprintf("ip daddr %s ", l.Local)
	}
	return to + tunnelText(l) + "ip saddr != @peers counter drop"
}

// tunnelText returns the match for packets that only the network's tunnel receives.
func tunnelText(l firewall.Lock) string {
	if l.Bound {
		return fmt.Sprintf("udp dport %d ", l.Port)
	}
	return fmt.Sprintf("udp dport %d @th,%d,24 %d ", l.Port, 8*vxlanVNI, l.VNI)
}

// lockInput returns the rule of lockInputText.
func lockInput(l firewall.Lock) netlink.Attrs {
	var x expressions
	if l.Bound {
		x.address(firewall.In(netip.PrefixFrom(l.Local, l.Local.BitLen())), IPv4.destination())
	}
	x.tunnel(l)
	x.peer(IPv4.source(), unix.NFT_LOOKUP_F_INV)
	return x.drop()
}

// lockTranslatedText returns the rule for packets that leave with a translated source address. The
// tunnel's own packets may be translated, and so may those of peers that this host routes for:
//
//	udp dport 8472 @th,96,24 1 ip daddr @peers ip saddr != @peers ct status snat
//	    ct original ip saddr != 192.0.2.7 counter drop
func lockTranslatedText(l firewall.Lock) string {
	return tunnelText(l) + fmt.Sprintf("ip daddr @peers ip saddr != @peers ct status snat ct original ip saddr != %s counter drop", l.Local)
}

// lockTranslated returns the rule of lockTranslatedText.
func lockTranslated(l firewall.Lock) netlink.Attrs {
	const snat = 1 << 4 // IPS_SRC_NAT of enum ip_conntrack_status
	var x expressions
	x.tunnel(l)
	x.peer(IPv4.destination(), 0)
	x.peer(IPv4.source(), unix.NFT_LOOKUP_F_INV)
	x.add("ct", load(unix.NFTA_CT_DREG).Uint32BE(unix.NFTA_CT_KEY, unix.NFT_CT_STATUS))
	x.and(binary.NativeEndian.AppendUint32(nil, snat))
	x.compare(unix.NFT_CMP_NEQ, make([]byte, 4))
	x.add("ct", load(unix.NFTA_CT_DREG).
		Uint32BE(unix.NFTA_CT_KEY, unix.NFT_CT_SRC_IP).
		Bytes(unix.NFTA_CT_DIRECTION, []byte{0}))
	x.compare(unix.NFT_CMP_NEQ, l.Local.AsSlice())
	return x.drop()
}

// lockEdits returns messages that add addresses to the set and remove others.
func lockEdits(network netip.Prefix, add, remove []netip.Addr) (ms []message) {
	edit := func(kind, flags uint16, peers []netip.Addr) {
		for some := range slices.Chunk(peers, lockBatch) {
			var list netlink.Attrs
			for _, a := range some {
				key := netlink.Attrs{}.Addr(unix.NFTA_DATA_VALUE, a)
				list = list.Nest(unix.NFTA_LIST_ELEM, netlink.Attrs{}.Nest(unix.NFTA_SET_ELEM_KEY, key))
			}
			ms = append(ms, message{kind, flags, IPv4, netlink.Attrs{}.
				Text(unix.NFTA_SET_ELEM_LIST_TABLE, lockTable(network)).
				Text(unix.NFTA_SET_ELEM_LIST_SET, lockSet).
				Nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, list)})
		}
	}
	edit(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, add)
	edit(unix.NFT_MSG_DELSETELEM, 0, remove)
	return ms
}
