package nftables

import (
	"bytes"
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/netlink"
)

// registers hold what a rule has loaded. Each bit is known or unknown.
type registers struct {
	bytes [registerBytes]byte
	known [registerBytes]byte // masks
}

const registerBytes = 64

// registerOffset returns the offset of a register. Registers are numbered twice, in units of 16 and
// of 4 bytes (enum nft_registers).
func registerOffset(register uint32) int {
	switch {
	case register >= unix.NFT_REG_1 && register <= unix.NFT_REG_4:
		return int(register-unix.NFT_REG_1) * 16
	case register >= unix.NFT_REG32_00 && register <= unix.NFT_REG32_15:
		return int(register-unix.NFT_REG32_00) * 4
	}
	return registerBytes
}

// store sets a register. Like the kernel, it pads the last 4 bytes with zeros.
func (r *registers) store(register uint32, v []byte) {
	from := registerOffset(register)
	v = append(slices.Clone(v), 0, 0, 0)
	n := copy(r.bytes[from:], v[:len(v)&^3])
	for i := range n {
		r.known[from+i] = 0xff
	}
}

// forget marks a register as unknown. A value may be longer than one register.
func (r *registers) forget(register uint32) {
	clear(r.known[registerOffset(register):])
}

// load returns bytes and masks of the bits that are known. Beyond the registers nothing is.
func (r *registers) load(register uint32, n int) (v, known []byte) {
	from := registerOffset(register)
	if n <= 0 || from+n > registerBytes {
		return make([]byte, max(n, 0)), make([]byte, max(n, 0))
	}
	return r.bytes[from : from+n], r.known[from : from+n]
}

// loadKnown returns bytes and whether all of them are known.
func (r *registers) loadKnown(register uint32, n int) (v []byte, known bool) {
	v, mask := r.load(register, n)
	return v, len(v) > 0 && !slices.ContainsFunc(mask, func(m byte) bool { return m != 0xff })
}

// compare evaluates a comparison. Values are different if a known bit is.
func (r *registers) compare(register, op uint32, with []byte) firewall.Met {
	have, mask := r.load(register, len(with))
	known, differ := len(with) > 0, false
	for i := range with {
		known = known && mask[i] == 0xff
		differ = differ || (have[i]^with[i])&mask[i] != 0
	}
	const less, same, more = 1 << 0, 1 << 1, 1 << 2
	met := [...]int{
		unix.NFT_CMP_EQ: same, unix.NFT_CMP_LT: less, unix.NFT_CMP_GT: more,
		unix.NFT_CMP_NEQ: less | more, unix.NFT_CMP_LTE: less | same, unix.NFT_CMP_GTE: same | more,
	}
	switch {
	case op >= uint32(len(met)):
		return firewall.Maybe
	case differ && op == unix.NFT_CMP_EQ:
		return firewall.No
	case differ && op == unix.NFT_CMP_NEQ:
		return firewall.Yes
	}
	return metIf(met[op]>>(bytes.Compare(have, with)+1)&1 == 1, known)
}

// eval evaluates one expression. It reports whether the rule continues after it, and whether the
// expression is known, and has no verdict.
func (v *evaluator) eval(r *registers, x expression) (met firewall.Met, known bool) {
	a := func(kind uint16) uint32 { return x.data[kind].Uint32BE() }
	set := func(to uint32, value []byte) (firewall.Met, bool) {
		if r.forget(to); value != nil {
			r.store(to, value)
		}
		return firewall.Yes, true
	}
	switch x.name {
	case "counter", "log", "last", "notrack", "dup":
		return firewall.Yes, true
	case "limit", "quota", "connlimit", "dynset":
		return firewall.Maybe, true
	case "meta": // without a destination, register 0, they set a property, and load nothing
		return set(a(unix.NFTA_META_DREG), v.metaValue(a(unix.NFTA_META_KEY)))
	case "ct":
		to, key := a(unix.NFTA_CT_DREG), a(unix.NFTA_CT_KEY)
		if set(to, v.ctValue(key)); key == unix.NFT_CT_STATUS {
			r.keep(to, ^uint32(statusUnknown))
		}
		return firewall.Yes, true
	case "fib":
		return set(a(unix.NFTA_FIB_DREG), v.fibValue(a(unix.NFTA_FIB_RESULT), a(unix.NFTA_FIB_FLAGS)))
	case "payload":
		offset, length := a(unix.NFTA_PAYLOAD_OFFSET), a(unix.NFTA_PAYLOAD_LEN)
		v.loadPayload(r, a(unix.NFTA_PAYLOAD_DREG), a(unix.NFTA_PAYLOAD_BASE), int(offset), int(length))
		return firewall.Yes, true
	case "bitwise":
		r.mask(x.data)
		return firewall.Yes, true
	case "byteorder":
		r.swap(x.data)
		return firewall.Yes, true
	case "cmp":
		with := x.data[unix.NFTA_CMP_DATA].Map()[unix.NFTA_DATA_VALUE]
		return r.compare(a(unix.NFTA_CMP_SREG), a(unix.NFTA_CMP_OP), with), true
	case "range":
		low := x.data[unix.NFTA_RANGE_FROM_DATA].Map()[unix.NFTA_DATA_VALUE]
		high := x.data[unix.NFTA_RANGE_TO_DATA].Map()[unix.NFTA_DATA_VALUE]
		have, known := r.loadKnown(a(unix.NFTA_RANGE_SREG), len(low))
		within := bytes.Compare(have, low) >= 0 && bytes.Compare(have, high) <= 0
		return metIf(within == (a(unix.NFTA_RANGE_OP) == unix.NFT_RANGE_EQ), known), true
	case "match":
		return compatMatch(v.packet, x.data), true
	case "exthdr", "socket", "hash", "numgen", "rt", "osf", "tunnel", "xfrm", "inner", "flow_offload":
		*r = registers{} // they may have loaded any register
		return firewall.Maybe, true
	}
	return firewall.Maybe, false
}

// sets returns the effects of an expression.
func (x expression) sets() firewall.Effects {
	a := func(kind uint16) uint32 { return x.data[kind].Uint32BE() }
	switch {
	case x.name == "notrack":
		return firewall.SetsTracking
	case x.name == "meta" && a(unix.NFTA_META_SREG) != 0 && a(unix.NFTA_META_KEY) == unix.NFT_META_MARK:
		return firewall.SetsMark
	case x.name == "payload" && a(unix.NFTA_PAYLOAD_SREG) != 0 && a(unix.NFTA_PAYLOAD_BASE) != unix.NFT_PAYLOAD_LL_HEADER:
		// TTL and type of service do not matter here.
		if end := a(unix.NFTA_PAYLOAD_OFFSET) + a(unix.NFTA_PAYLOAD_LEN); a(unix.NFTA_PAYLOAD_BASE) != unix.NFT_PAYLOAD_NETWORK_HEADER || end > 9 {
			return firewall.SetsHeader
		}
	}
	return 0
}

func metIf(met, known bool) firewall.Met {
	switch {
	case !known:
		return firewall.Maybe
	case met:
		return firewall.Yes
	}
	return firewall.No
}

// metaValue returns the packet's value of a meta key, or nil if it is unknown.
func (v *evaluator) metaValue(key uint32) []byte {
	p := v.packet
	family, protocol := byte(IPv6), uint16(unix.ETH_P_IPV6)
	known := p.Dst
	if !known.IsValid() {
		known = p.Src
	}
	if known.Is4() {
		family, protocol = byte(IPv4), unix.ETH_P_IP
	}
	index := func(i int) []byte {
		if i == 0 {
			return nil
		}
		return binary.NativeEndian.AppendUint32(nil, uint32(i))
	}
	name := func(s string) []byte {
		if s == "" {
			return nil
		}
		return append([]byte(s), make([]byte, max(0, unix.IFNAMSIZ-len(s)))...)
	}
	switch {
	case key == unix.NFT_META_NFPROTO && known.IsValid():
		return []byte{family}
	case key == unix.NFT_META_PROTOCOL && known.IsValid():
		return binary.BigEndian.AppendUint16(nil, protocol)
	case key == unix.NFT_META_L4PROTO && p.Protocol != 0:
		return []byte{p.Protocol}
	case key == unix.NFT_META_IIFNAME:
		return name(p.In)
	case key == unix.NFT_META_OIFNAME:
		return name(p.Out)
	case key == unix.NFT_META_IIF && p.In != "":
		return index(p.InIndex)
	case key == unix.NFT_META_OIF && p.Out != "":
		return index(p.OutIndex)
	case key == unix.NFT_META_PKTTYPE && !p.FromHost:
		return []byte{unix.PACKET_HOST}
	case key == unix.NFT_META_MARK && p.Unmarked:
		return make([]byte, 4)
	}
	return nil
}

// Bits of ct state are as in enum ip_conntrack_info.
const (
	stateInvalid     = 1 << 0
	stateEstablished = 1 << 1
	stateNew         = 1 << 3
)

// statusUnknown are bits of a new connection's status (IPS_SRC_NAT_DONE and higher ones) that
// depend on which hooks have seen it.
const statusUnknown = ^uint32(0x7f)

// trackingState returns the packet's bit of ct state, if it is known.
func trackingState(p firewall.Packet) (bit uint32, known bool) {
	switch {
	case p.Tracking == firewall.NotYet:
		return stateInvalid, true
	case p.Tracking == firewall.Tracked && p.Reply:
		return stateEstablished, true
	}
	return stateNew, p.Tracking == firewall.Tracked
}

// ctValue returns the value of a ct key, or nil if it is unknown.
func (v *evaluator) ctValue(key uint32) []byte {
	state, known := trackingState(v.packet)
	switch {
	case !known:
	case key == unix.NFT_CT_STATE:
		return binary.NativeEndian.AppendUint32(nil, state)
	case key == unix.NFT_CT_STATUS && state == stateNew: // not translated, not answered
		return make([]byte, 4)
	case key == unix.NFT_CT_DIRECTION && state != stateInvalid:
		if v.packet.Reply {
			return []byte{1}
		}
		return []byte{0}
	}
	return nil
}

// keep forgets all bits of a 4 byte register but some.
func (r *registers) keep(register uint32, bits uint32) {
	from := registerOffset(register)
	for i, m := range binary.NativeEndian.AppendUint32(nil, bits) {
		if from+i < registerBytes {
			r.known[from+i] &= m
		}
	}
}

// fibValue returns the result of a fib lookup of one of the packet's addresses, or nil if it is
// unknown.
func (v *evaluator) fibValue(result, flags uint32) []byte {
	local, a := v.packet.ToHost, v.packet.Dst
	if flags == unix.NFTA_FIB_F_SADDR {
		local, a = v.packet.FromHost, v.packet.Src
	}
	switch {
	case result != unix.NFT_FIB_RESULT_ADDRTYPE || flags != unix.NFTA_FIB_F_SADDR && flags != unix.NFTA_FIB_F_DADDR:
	case local:
		return binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)
	case a.IsValid():
		return binary.NativeEndian.AppendUint32(nil, unix.RTN_UNICAST)
	}
	return nil
}

// loadPayload loads a part of the packet's headers into a register.
func (v *evaluator) loadPayload(r *registers, to, base uint32, offset, n int) {
	r.forget(to)
	from := registerOffset(to)
	if offset < 0 || n < 0 || n > registerBytes-from {
		return
	}
	r.store(to, make([]byte, n))
	clear(r.known[from : from+n])
	put := func(at int, b []byte) { // b is at an offset of the header
		for i := range b {
			if to := at + i - offset; to >= 0 && to < n {
				r.bytes[from+to], r.known[from+to] = b[i], 0xff
			}
		}
	}
	p := v.packet
	switch {
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && p.Dst.IsValid():
		family, protocol := IPv6, 6
		if p.Dst.Is4() {
			family, protocol = IPv4, 9
		}
		if p.Protocol != 0 {
			put(protocol, []byte{p.Protocol})
		}
		put(family.source(), p.Src.AsSlice())
		put(family.destination(), p.Dst.AsSlice())
	case base != unix.NFT_PAYLOAD_TRANSPORT_HEADER:
	case p.Protocol == unix.IPPROTO_ICMP:
		put(0, []byte{p.ICMPType, 0})
	default:
		for i, port := range []uint16{p.SrcPort, p.DstPort} {
			if port != 0 {
				put(2*i, binary.BigEndian.AppendUint16(nil, port))
			}
		}
		if p.Protocol == unix.IPPROTO_TCP {
			put(13, []byte{p.TCPFlags()})
		}
	}
}

// mask evaluates AND and XOR. The result of other operations is unknown.
func (r *registers) mask(b map[uint16]netlink.Value) {
	n := int(b[unix.NFTA_BITWISE_LEN].Uint32BE())
	mask := b[unix.NFTA_BITWISE_MASK].Map()[unix.NFTA_DATA_VALUE]
	flip := b[unix.NFTA_BITWISE_XOR].Map()[unix.NFTA_DATA_VALUE]
	from, to := registerOffset(b[unix.NFTA_BITWISE_SREG].Uint32BE()), registerOffset(b[unix.NFTA_BITWISE_DREG].Uint32BE())
	const operation = 6 // NFTA_BITWISE_OP; 0: mask and flip
	if b[operation].Uint32BE() != 0 || n < 0 || len(mask) != n || len(flip) != n ||
		max(from, to)+n > registerBytes {
		r.forget(b[unix.NFTA_BITWISE_DREG].Uint32BE())
		return
	}
	for i := range n {
		// Bits that are masked out are known to be 0.
		r.known[to+i] = r.known[from+i] | ^mask[i]
		r.bytes[to+i] = r.bytes[from+i]&mask[i] ^ flip[i]
	}
}

// swap converts numbers between the byte orders of the machine and of the network.
func (r *registers) swap(b map[uint16]netlink.Value) {
	n, size := int(b[unix.NFTA_BYTEORDER_LEN].Uint32BE()), int(b[unix.NFTA_BYTEORDER_SIZE].Uint32BE())
	from, to := registerOffset(b[unix.NFTA_BYTEORDER_SREG].Uint32BE()), registerOffset(b[unix.NFTA_BYTEORDER_DREG].Uint32BE())
	if n <= 0 || size <= 0 || n%size != 0 || max(from, to)+n > registerBytes {
		r.forget(b[unix.NFTA_BYTEORDER_DREG].Uint32BE())
		return
	}
	v, known := slices.Clone(r.bytes[from:from+n]), slices.Clone(r.known[from:from+n])
	if binary.NativeEndian.Uint16([]byte{0, 1}) != 1 {
		for i := 0; i < n; i += size {
			slices.Reverse(v[i : i+size])
			slices.Reverse(known[i : i+size])
		}
	}
	copy(r.bytes[to:], v)
	copy(r.known[to:], known)
}
