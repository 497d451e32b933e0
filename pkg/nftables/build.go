package nftables

import (
	"encoding/binary"
	"net"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/netlink"
)

// register is the register that our expressions use.
const register = unix.NFT_REG_1

// Verdicts of netfilter. The additional ones of nftables are in x/sys/unix, as negative numbers.
const (
	nfDrop   = 0
	nfAccept = 1
)

// commentType is the type of a rule's comment among its user data (NFTNL_UDATA_RULE_COMMENT of
// libnftnl).
const commentType = 0

// rule is a rule that this package can write and parse.
type rule struct {
	firewall.Rule
	// Family is the family of the packets that the rule matches.
	Family  Family
	Comment string
	// Counter is set if the rule has a counter. iptables-nft writes one in every rule, and expects
	// it.
	Counter bool
}

func newRule(family Family, hook firewall.Hook, r firewall.Rule) rule {
	return rule{Rule: r, Family: family, Comment: hook.Comment(), Counter: true}
}

// codeOf returns the code of a verdict, if it is no NAT.
func codeOf(v firewall.Verdict) (code int32, ok bool) {
	switch v {
	case firewall.Accept:
		return nfAccept, true
	case firewall.Return:
		return unix.NFT_RETURN, true
	case firewall.Discard:
		return nfDrop, true
	}
	return 0, false
}

// expressions returns the rule in the form that iptables-nft writes. In a table of family inet, the
// first expressions compare the packet's family.
func (r rule) expressions(table Family) netlink.Attrs {
	var x expressions
	if table == unix.NFPROTO_INET {
		x.meta(unix.NFT_META_NFPROTO)
		x.compare(unix.NFT_CMP_EQ, []byte{byte(r.Family)})
	}
	if r.Mark != 0 {
		mark := binary.NativeEndian.AppendUint32(nil, r.Mark)
		x.meta(unix.NFT_META_MARK)
		x.and(mark)
		x.compare(unix.NFT_CMP_EQ, mark)
	}
	x.address(r.Src, r.Family.source())
	x.address(r.Dst, r.Family.destination())
	if r.Port != 0 {
		x.port(r.Port)
	}
	if r.Counter {
		x.counter()
	}
	switch code, ok := codeOf(r.Verdict); {
	case ok:
		x.verdict(code)
	case r.Verdict == firewall.Masquerade:
		x.add("masq", nil)
	default:
		x.add("masq", netlink.Attrs{}.Uint32BE(unix.NFTA_MASQ_FLAGS, unix.NF_NAT_RANGE_PROTO_RANDOM_FULLY))
	}
	return x.Attrs
}

// source returns the offset of the source address in the network header, in bytes.
func (f Family) source() int {
	if f == IPv4 {
		return 12
	}
	return 8
}

func (f Family) destination() int { return f.source() + f.bits()/8 }

// expressions is a list of expressions under construction.
type expressions struct{ netlink.Attrs }

func (x *expressions) add(name string, data netlink.Attrs) {
	e := netlink.Attrs{}.Text(unix.NFTA_EXPR_NAME, name)
	x.Attrs = x.Nest(unix.NFTA_LIST_ELEM, e.Nest(unix.NFTA_EXPR_DATA, data))
}

func load(kind uint16) netlink.Attrs { return netlink.Attrs{}.Uint32BE(kind, register) }

// meta loads a property of the packet into the register.
func (x *expressions) meta(key uint32) {
	x.add("meta", load(unix.NFTA_META_DREG).Uint32BE(unix.NFTA_META_KEY, key))
}

// payload loads bytes of a header into the register.
func (x *expressions) payload(base uint32, offset, length int) {
	x.add("payload", load(unix.NFTA_PAYLOAD_DREG).
		Uint32BE(unix.NFTA_PAYLOAD_BASE, base).
		Uint32BE(unix.NFTA_PAYLOAD_OFFSET, uint32(offset)).
		Uint32BE(unix.NFTA_PAYLOAD_LEN, uint32(length)))
}

// and masks the register.
func (x *expressions) and(mask []byte) {
	x.add("bitwise", load(unix.NFTA_BITWISE_SREG).
		Uint32BE(unix.NFTA_BITWISE_DREG, register).
		Uint32BE(unix.NFTA_BITWISE_LEN, uint32(len(mask))).
		Nest(unix.NFTA_BITWISE_MASK, netlink.Attrs{}.Bytes(unix.NFTA_DATA_VALUE, mask)).
		Nest(unix.NFTA_BITWISE_XOR, netlink.Attrs{}.Bytes(unix.NFTA_DATA_VALUE, make([]byte, len(mask)))))
}

// compare compares the register.
func (x *expressions) compare(op uint32, with []byte) {
	x.add("cmp", load(unix.NFTA_CMP_SREG).
		Uint32BE(unix.NFTA_CMP_OP, op).
		Nest(unix.NFTA_CMP_DATA, netlink.Attrs{}.Bytes(unix.NFTA_DATA_VALUE, with)))
}

// udpDstPort is the offset of the destination port in a UDP header (RFC 768), in bytes.
const udpDstPort = 2

// port matches UDP packets to a port.
func (x *expressions) port(port uint16) {
	x.meta(unix.NFT_META_L4PROTO)
	x.compare(unix.NFT_CMP_EQ, []byte{unix.IPPROTO_UDP})
	x.payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, udpDstPort, 2)
	x.compare(unix.NFT_CMP_EQ, binary.BigEndian.AppendUint16(nil, port))
}

// address matches an address at an offset of the network header: it compares the bytes of the
// prefix, or the masked address if the prefix does not end at a byte.
func (x *expressions) address(m firewall.Match, offset int) {
	if !m.Prefix.IsValid() {
		return
	}
	address, bits := m.Prefix.Addr().AsSlice(), m.Prefix.Bits()
	whole := bits%8 == 0
	if whole {
		address = address[:bits/8]
	}
	x.payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, len(address))
	if !whole {
		x.and(net.CIDRMask(bits, m.Prefix.Addr().BitLen()))
	}
	op := uint32(unix.NFT_CMP_EQ)
	if m.Not {
		op = unix.NFT_CMP_NEQ
	}
	x.compare(op, address)
}

func (x *expressions) counter() {
	x.add("counter", netlink.Attrs{}.
		Uint64BE(unix.NFTA_COUNTER_BYTES, 0).
		Uint64BE(unix.NFTA_COUNTER_PACKETS, 0))
}

func (x *expressions) verdict(code int32) {
	x.add("immediate", netlink.Attrs{}.
		Uint32BE(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT).
		Nest(unix.NFTA_IMMEDIATE_DATA, netlink.Attrs{}.
			Nest(unix.NFTA_DATA_VERDICT, netlink.Attrs{}.Uint32BE(unix.NFTA_VERDICT_CODE, uint32(code)))))
}

// userData returns the comment as nft(8) encodes it. iptables-nft treats it like its own comment
// match, which would need a kernel module.
func (r rule) userData() []byte {
	return append(append([]byte{commentType, byte(len(r.Comment) + 1)}, r.Comment...), 0)
}

// request returns a message that adds the rule to a chain: after the rule with the handle, or, if
// that is 0, at the head or at the end.
func (r rule) request(c chainName, flags uint16, behind uint64) message {
	body := c.ruleAttrs()
	if behind != 0 {
		body = body.Uint64BE(unix.NFTA_RULE_POSITION, behind)
	}
	body = body.
		Nest(unix.NFTA_RULE_EXPRESSIONS, r.expressions(c.family)).
		Bytes(unix.NFTA_RULE_USERDATA, r.userData())
	return message{unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE | flags, c.family, body}
}
