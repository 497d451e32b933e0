package nftables

import (
	"bytes"
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/netlink"
)

// registers hold what a rule has loaded. Each byte is known or unknown.
type registers struct {
	bytes [registerBytes]byte
	known [registerBytes]bool
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
		r.known[from+i] = true
	}
}

// forget marks a register of up to 16 bytes as unknown.
func (r *registers) forget(register uint32) {
	from := registerOffset(register)
	clear(r.known[from:min(from+16, registerBytes)])
}

// load returns bytes and whether all of them are known.
func (r *registers) load(register uint32, n int) (v []byte, known bool) {
	from := registerOffset(register)
	if n <= 0 || from+n > registerBytes {
		return nil, false
	}
	return r.bytes[from : from+n], !slices.Contains(r.known[from:from+n], false)
}

// eval evaluates one expression. It reports whether the rule continues after it.
func (v *evaluator) eval(r *registers, x expression) firewall.Met {
	a := func(kind uint16) uint32 { return x.data[kind].Uint32BE() }
	set := func(to uint32, value []byte) firewall.Met {
		if r.forget(to); value != nil {
			r.store(to, value)
		}
		return firewall.Yes
	}
	switch x.name {
	case "counter", "log", "objref", "last", "notrack":
		return firewall.Yes
	case "meta": // without a destination, register 0, they set a property, and load nothing
		return set(a(unix.NFTA_META_DREG), v.metaValue(a(unix.NFTA_META_KEY)))
	case "ct":
		return set(a(unix.NFTA_CT_DREG), ctValue(a(unix.NFTA_CT_KEY)))
	case "fib":
		return set(a(unix.NFTA_FIB_DREG), v.fibValue(a(unix.NFTA_FIB_RESULT), a(unix.NFTA_FIB_FLAGS)))
	case "payload":
		offset, length := a(unix.NFTA_PAYLOAD_OFFSET), a(unix.NFTA_PAYLOAD_LEN)
		v.loadPayload(r, a(unix.NFTA_PAYLOAD_DREG), a(unix.NFTA_PAYLOAD_BASE), int(offset), int(length))
		return firewall.Yes
	case "bitwise":
		r.mask(x.data)
		return firewall.Yes
	case "byteorder":
		r.swap(x.data)
		return firewall.Yes
	case "cmp":
		with := x.data[unix.NFTA_CMP_DATA].Map()[unix.NFTA_DATA_VALUE]
		have, known := r.load(a(unix.NFTA_CMP_SREG), len(with))
		const less, same, more = 1 << 0, 1 << 1, 1 << 2
		met := [...]int{
			unix.NFT_CMP_EQ: same, unix.NFT_CMP_LT: less, unix.NFT_CMP_GT: more,
			unix.NFT_CMP_NEQ: less | more, unix.NFT_CMP_LTE: less | same, unix.NFT_CMP_GTE: same | more,
		}
		if op := a(unix.NFTA_CMP_OP); op < uint32(len(met)) {
			return metIf(met[op]>>(bytes.Compare(have, with)+1)&1 == 1, known)
		}
	case "range":
		low := x.data[unix.NFTA_RANGE_FROM_DATA].Map()[unix.NFTA_DATA_VALUE]
		high := x.data[unix.NFTA_RANGE_TO_DATA].Map()[unix.NFTA_DATA_VALUE]
		have, known := r.load(a(unix.NFTA_RANGE_SREG), len(low))
		within := bytes.Compare(have, low) >= 0 && bytes.Compare(have, high) <= 0
		return metIf(within == (a(unix.NFTA_RANGE_OP) == unix.NFT_RANGE_EQ), known)
	case "match":
		return compatMatch(v.packet, x.data)
	}
	return firewall.Maybe
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
	if p.Dst.Is4() {
		family, protocol = byte(IPv4), unix.ETH_P_IP
	}
	name := func(s string) []byte {
		if s == "" {
			return nil
		}
		return append([]byte(s), make([]byte, max(0, unix.IFNAMSIZ-len(s)))...)
	}
	switch key {
	case unix.NFT_META_NFPROTO:
		return []byte{family}
	case unix.NFT_META_PROTOCOL:
		return binary.BigEndian.AppendUint16(nil, protocol)
	case unix.NFT_META_L4PROTO:
		return []byte{p.Protocol}
	case unix.NFT_META_IIFNAME:
		return name(p.In)
	case unix.NFT_META_OIFNAME:
		return name(p.Out)
	case unix.NFT_META_PKTTYPE:
		return []byte{unix.PACKET_HOST}
	}
	return nil
}

// Bits of ct state and the like are as in enum ip_conntrack_info.
const stateNew = 1 << 3

// ctValue returns the value of a ct key for the first packet of a connection, or nil if it is
// unknown.
func ctValue(key uint32) []byte {
	switch key {
	case unix.NFT_CT_STATE:
		return binary.NativeEndian.AppendUint32(nil, stateNew)
	case unix.NFT_CT_STATUS: // not translated, not answered
		return make([]byte, 4)
	case unix.NFT_CT_DIRECTION:
		return []byte{0}
	}
	return nil
}

// fibValue returns the result of a fib lookup of the packet's destination, or nil if it is unknown.
func (v *evaluator) fibValue(result, flags uint32) []byte {
	if result == unix.NFT_FIB_RESULT_ADDRTYPE && flags&unix.NFTA_FIB_F_DADDR != 0 && v.packet.ToHost {
		return binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)
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
				r.bytes[from+to], r.known[from+to] = b[i], true
			}
		}
	}
	p := v.packet
	switch base {
	case unix.NFT_PAYLOAD_NETWORK_HEADER:
		family, protocol := IPv6, 6
		if p.Dst.Is4() {
			family, protocol = IPv4, 9
		}
		put(protocol, []byte{p.Protocol})
		put(family.source(), p.Src.AsSlice())
		put(family.destination(), p.Dst.AsSlice())
	case unix.NFT_PAYLOAD_TRANSPORT_HEADER:
		for i, port := range []uint16{p.SrcPort, p.DstPort} {
			if port != 0 {
				put(2*i, binary.BigEndian.AppendUint16(nil, port))
			}
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
		r.known[to+i] = r.known[from+i] || mask[i] == 0
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
