package tunnel

import (
	"encoding/binary"
	"math/bits"
)

// sum returns the ones' complement sum of b (RFC 1071), padded with a zero byte to an even length.
// The loads are in host byte order: the sum of byte-swapped words is the byte-swapped sum, so that
// one swap at the end suffices.
func sum(b []byte) uint16 {
	var s, carry uint64
	for len(b) >= 64 {
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[0:8]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[8:16]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[16:24]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[24:32]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[32:40]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[40:48]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[48:56]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[56:64]), carry)
		b = b[64:]
	}
	for len(b) >= 8 {
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b), carry)
		b = b[8:]
	}
	if len(b) > 0 {
		var tail [8]byte
		copy(tail[:], b)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(tail[:]), carry)
	}
	s, carry = bits.Add64(s, 0, carry)
	s += carry
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	var word [2]byte
	binary.NativeEndian.PutUint16(word[:], fold(uint32(s>>16+s&0xffff)))
	return binary.BigEndian.Uint16(word[:])
}

// fold folds the carries of a sum of 16-bit words.
func fold(s uint32) uint16 {
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s)
}

// pseudoHeader returns the sum of the pseudo header that TCP and UDP checksums cover (RFC 9293,
// section 3.1): both addresses, the protocol and the length of the transport header and its
// payload.
func pseudoHeader(packet []byte, length int) uint32 {
	src, dst := source(packet), destination(packet)
	return src>>16 + src&0xffff + dst>>16 + dst&0xffff + uint32(packet[offProtocol]) + uint32(length)
}

// finishChecksum completes a checksum as VIRTIO_NET_HDR_F_NEEDS_CSUM requests: the checksum field
// already contains the sum of the pseudo header, and the sum from start to the end of the packet is
// missing.
func finishChecksum(packet []byte, start, offset int) bool {
	if start+offset+2 > len(packet) {
		return false
	}
	check := ^sum(packet[start:])
	if check == 0 {
		check = 0xffff // equivalent, but 0 means "no checksum" in UDP (RFC 768)
	}
	binary.BigEndian.PutUint16(packet[start+offset:], check)
	return true
}
