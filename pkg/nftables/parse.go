package nftables

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/netlink"
)

// expression is an expression of a rule in a listing.
type expression struct {
	name string
	data map[uint16]netlink.Value
}

func parseExpressions(b []byte) []expression {
	var list []expression
	for kind, v := range netlink.Attrs(b).All() {
		if kind != unix.NFTA_LIST_ELEM {
			continue
		}
		e := netlink.Attrs(v).Map()
		list = append(list, expression{e[unix.NFTA_EXPR_NAME].Text(), e[unix.NFTA_EXPR_DATA].Map()})
	}
	return list
}

// parseComment returns the comment in a rule's user data, a sequence of items of type, length and
// value.
func parseComment(b []byte) string {
	for len(b) >= 2 && int(b[1]) <= len(b)-2 {
		kind, v := b[0], b[2:2+int(b[1])]
		if kind == commentType {
			return netlink.Value(v).Text()
		}
		b = b[2+len(v):]
	}
	return ""
}

// ruleParser parses a rule's expressions one after the other.
type ruleParser struct {
	rest   []expression
	table  Family
	result rule
	udp    bool // the packet is UDP
}

// parseRule parses a rule. It accepts all forms that rule.expressions writes, and iptables-nft's
// comment match; ok is false for anything else, which another program has written.
func parseRule(table Family, list []expression, userData []byte) (_ rule, ok bool) {
	r := ruleParser{rest: list, table: table}
	if table != unix.NFPROTO_INET {
		r.result.Family = table
	}
	r.result.Comment = parseComment(userData)
	for len(r.rest) > 1 {
		if !r.parseStep() {
			return rule{}, false
		}
	}
	if len(r.rest) == 0 || !r.parseVerdict() || r.udp != (r.result.Port != 0) ||
		r.result.Family != IPv4 && r.result.Family != IPv6 {
		return rule{}, false
	}
	return r.result, true
}

// addresses returns the addresses in a rule of any form, in a table of one family.
func addresses(table Family, list []expression) rule {
	r := ruleParser{result: rule{Family: table}}
	for i, e := range list {
		if e.name == "payload" {
			r.rest = list[i:]
			r.parseAddress()
		}
	}
	return r.result
}

// next consumes the next expression if it has this name.
func (r *ruleParser) next(name string) (map[uint16]netlink.Value, bool) {
	if len(r.rest) == 0 || r.rest[0].name != name {
		return nil, false
	}
	data := r.rest[0].data
	r.rest = r.rest[1:]
	return data, true
}

func (r *ruleParser) parseStep() bool {
	switch r.rest[0].name {
	case "meta":
		return r.parseMeta()
	case "payload":
		if r.rest[0].data[unix.NFTA_PAYLOAD_BASE].Uint32BE() == unix.NFT_PAYLOAD_TRANSPORT_HEADER {
			return r.parsePort()
		}
		return r.parseAddress()
	case "counter":
		r.next("counter")
		first := !r.result.Counter
		r.result.Counter = true
		return first
	case "match":
		m, _ := r.next("match")
		r.result.Comment = m[unix.NFTA_MATCH_INFO].Text()
		return m[unix.NFTA_MATCH_NAME].Text() == "comment"
	}
	return false
}

func (r *ruleParser) parseMeta() bool {
	m, _ := r.next("meta")
	from := m[unix.NFTA_META_DREG].Uint32BE()
	if from == 0 {
		return false
	}
	switch m[unix.NFTA_META_KEY].Uint32BE() {
	case unix.NFT_META_NFPROTO:
		with, ok := r.parseEqual(from, 1)
		if !ok || r.result.Family != 0 {
			return false
		}
		r.result.Family = Family(with[0])
		return true
	case unix.NFT_META_L4PROTO:
		with, ok := r.parseEqual(from, 1)
		first := !r.udp
		r.udp = true
		return first && ok && with[0] == unix.IPPROTO_UDP
	case unix.NFT_META_MARK:
		mask, _ := r.parseMask(from)
		with, ok := r.parseEqual(from, 4)
		if !ok || !bytes.Equal(with, mask) || r.result.Mark != 0 {
			return false
		}
		r.result.Mark = binary.NativeEndian.Uint32(mask)
		return true
	}
	return false
}

// parsePort parses a comparison of the destination port.
func (r *ruleParser) parsePort() bool {
	p, _ := r.next("payload")
	if p[unix.NFTA_PAYLOAD_OFFSET].Uint32BE() != udpDstPort ||
		p[unix.NFTA_PAYLOAD_LEN].Uint32BE() != 2 || r.result.Port != 0 {
		return false
	}
	with, ok := r.parseEqual(p[unix.NFTA_PAYLOAD_DREG].Uint32BE(), 2)
	if !ok {
		return false
	}
	r.result.Port = binary.BigEndian.Uint16(with)
	return r.result.Port != 0
}

// parseAddress parses a comparison of an address with a prefix.
func (r *ruleParser) parseAddress() bool {
	p, _ := r.next("payload")
	from := p[unix.NFTA_PAYLOAD_DREG].Uint32BE()
	family := r.result.Family
	base := p[unix.NFTA_PAYLOAD_BASE].Uint32BE()
	if from == 0 || base != unix.NFT_PAYLOAD_NETWORK_HEADER || family != IPv4 && family != IPv6 {
		return false
	}
	m := &r.result.Src
	switch int(p[unix.NFTA_PAYLOAD_OFFSET].Uint32BE()) {
	case family.source():
	case family.destination():
		m = &r.result.Dst
	default:
		return false
	}
	length := int(p[unix.NFTA_PAYLOAD_LEN].Uint32BE())
	ones := 8 * length
	if mask, ok := r.parseMask(from); ok {
		if len(mask) != length {
			return false
		}
		ones, _ = net.IPMask(mask).Size() // 0 if it is not contiguous
	}
	with, not, ok := r.parseCompare(from)
	if !ok || len(with) != length || 8*length > family.bits() || ones == 0 || m.Prefix.IsValid() {
		return false
	}
	full := make([]byte, family.bits()/8)
	copy(full, with)
	a, _ := netip.AddrFromSlice(full)
	*m = firewall.Match{Prefix: netip.PrefixFrom(a, ones), Not: not}
	return m.Prefix == m.Prefix.Masked()
}

// parseMask consumes an AND with a mask, if that is the next expression.
func (r *ruleParser) parseMask(from uint32) (mask []byte, ok bool) {
	b, ok := r.next("bitwise")
	if !ok {
		return nil, false
	}
	mask = b[unix.NFTA_BITWISE_MASK].Map()[unix.NFTA_DATA_VALUE]
	flip := b[unix.NFTA_BITWISE_XOR].Map()[unix.NFTA_DATA_VALUE]
	const operation = 6 // NFTA_BITWISE_OP; 0: mask and flip
	ok = b[unix.NFTA_BITWISE_SREG].Uint32BE() == from &&
		b[unix.NFTA_BITWISE_DREG].Uint32BE() == from &&
		b[operation].Uint32BE() == 0 && len(mask) > 0 && bytes.Equal(flip, make([]byte, len(mask)))
	if !ok {
		return nil, true // invalid mask
	}
	return mask, true
}

// parseEqual parses a comparison for equality with n bytes.
func (r *ruleParser) parseEqual(from uint32, n int) (with []byte, ok bool) {
	with, not, ok := r.parseCompare(from)
	return with, ok && !not && len(with) == n
}

func (r *ruleParser) parseCompare(from uint32) (with []byte, not, ok bool) {
	c, ok := r.next("cmp")
	if !ok || c[unix.NFTA_CMP_SREG].Uint32BE() != from {
		return nil, false, false
	}
	op := c[unix.NFTA_CMP_OP].Uint32BE()
	if op != unix.NFT_CMP_EQ && op != unix.NFT_CMP_NEQ {
		return nil, false, false
	}
	return c[unix.NFTA_CMP_DATA].Map()[unix.NFTA_DATA_VALUE], op == unix.NFT_CMP_NEQ, true
}

func (r *ruleParser) parseVerdict() bool {
	if m, ok := r.next("masq"); ok {
		r.result.Verdict = firewall.Masquerade
		if m[unix.NFTA_MASQ_FLAGS].Uint32BE() == unix.NF_NAT_RANGE_PROTO_RANDOM_FULLY {
			r.result.Verdict = firewall.MasqueradeRandom
			return len(m) == 1
		}
		return len(m) == 0
	}
	code, _, ok := r.rest[0].verdict()
	for _, v := range []firewall.Verdict{firewall.Accept, firewall.Return, firewall.Discard} {
		if c, _ := codeOf(v); ok && c == code {
			r.result.Verdict = v
			return true
		}
	}
	return false
}

// verdict returns the verdict of an immediate expression.
func (e expression) verdict() (code int32, chain string, ok bool) {
	register := e.data[unix.NFTA_IMMEDIATE_DREG]
	if e.name != "immediate" || len(register) != 4 || register.Uint32BE() != unix.NFT_REG_VERDICT {
		return 0, "", false
	}
	v := e.data[unix.NFTA_IMMEDIATE_DATA].Map()[unix.NFTA_DATA_VERDICT].Map()
	if len(v[unix.NFTA_VERDICT_CODE]) != 4 {
		return 0, "", false
	}
	return int32(v[unix.NFTA_VERDICT_CODE].Uint32BE()), v[unix.NFTA_VERDICT_CHAIN].Text(), true
}
