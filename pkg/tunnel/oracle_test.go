package tunnel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
)

// This file is the naive implementation that the fast one is compared with: everything is computed
// again, byte by byte.

// naiveSum is the ones' complement sum of RFC 1071, as the RFC describes it.
func naiveSum(b []byte, s uint32) uint16 {
	for i := 0; i < len(b); i += 2 {
		word := uint32(b[i]) << 8
		if i+1 < len(b) {
			word |= uint32(b[i+1])
		}
		if s += word; s > 0xffff {
			s -= 0xffff
		}
	}
	return uint16(s)
}

func naivePseudo(p []byte, ihl int) uint32 {
	pseudo := append([]byte{}, p[12:20]...)
	pseudo = append(pseudo, 0, p[9])
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(p)-ihl))
	return uint32(naiveSum(pseudo, 0))
}

// fix sets lengths and checksums of a packet. A UDP checksum of zero stays zero.
func fix(p []byte) []byte {
	ihl := int(p[0]&15) * 4
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	fixHeader(p)
	l4 := p[ihl:]
	if binary.BigEndian.Uint16(p[6:])&0x3fff != 0 {
		return p // a fragment
	}
	at := 0
	switch {
	case p[9] == protoTCP && len(l4) >= 20:
		at = 16
	case p[9] == protoUDP && len(l4) >= 8:
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
		if at = 6; l4[6] == 0 && l4[7] == 0 {
			return p
		}
	default:
		return p
	}
	l4[at], l4[at+1] = 0, 0
	check := ^naiveSum(l4, naivePseudo(p, ihl))
	if check == 0 && p[9] == protoUDP {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(l4[at:], check)
	return p
}

func fixHeader(p []byte) {
	p[10], p[11] = 0, 0
	binary.BigEndian.PutUint16(p[10:], ^naiveSum(p[:int(p[0]&15)*4], 0))
}

// wrong returns errors in a packet's lengths and checksums.
func wrong(p []byte) error {
	ihl := int(p[0]&15) * 4
	if n := int(binary.BigEndian.Uint16(p[2:])); n != len(p) {
		return fmt.Errorf("total length %d of %d bytes", n, len(p))
	}
	if s := naiveSum(p[:ihl], 0); s != 0xffff {
		return fmt.Errorf("header checksum: sum %#x", s)
	}
	l4 := p[ihl:]
	if binary.BigEndian.Uint16(p[6:])&0x3fff != 0 || p[9] != protoTCP && p[9] != protoUDP {
		return nil
	}
	if p[9] == protoUDP {
		if n := int(binary.BigEndian.Uint16(l4[4:])); n != len(l4) {
			return fmt.Errorf("UDP length %d of %d bytes", n, len(l4))
		}
		if l4[6] == 0 && l4[7] == 0 {
			return nil
		}
	}
	if s := naiveSum(l4, naivePseudo(p, ihl)); s != 0xffff {
		return fmt.Errorf("transport checksum: sum %#x", s)
	}
	return nil
}

// naiveSplit cuts a super-packet as the kernel does.
func naiveSplit(p []byte, o Offload) (out [][]byte) {
	if o.GSO == GSONone {
		return [][]byte{p}
	}
	ihl := int(p[0]&15) * 4
	hl := ihl + 8
	if p[9] == protoTCP {
		hl = ihl + int(p[ihl+12]>>4)*4
	}
	id, payload := binary.BigEndian.Uint16(p[4:]), p[hl:]
	for sent := 0; ; {
		n := min(int(o.GSOSize), len(payload)-sent)
		seg := append(bytes.Clone(p[:hl]), payload[sent:sent+n]...)
		binary.BigEndian.PutUint16(seg[4:], id+uint16(len(out)))
		if p[9] == protoTCP {
			seq := binary.BigEndian.Uint32(p[ihl+4:])
			binary.BigEndian.PutUint32(seg[ihl+4:], seq+uint32(sent))
			if sent > 0 {
				seg[ihl+13] &^= flagCWR
			}
			if sent+n < len(payload) {
				seg[ihl+13] &^= flagFIN | flagPSH
			}
		} else if o.NeedsChecksum {
			seg[ihl+6] = 1 // not zero, so that fix computes it
		}
		out = append(out, fix(seg))
		if sent += n; sent >= len(payload) {
			return out
		}
	}
}

// partial returns a packet or super-packet in the kernel's form: with the sum of the pseudo header
// in place of the transport checksum.
func partial(p []byte, gso GSO, size int) Packet {
	p = fix(bytes.Clone(p))
	ihl := int(p[0]&15) * 4
	o := Offload{NeedsChecksum: true, GSO: gso, GSOSize: uint16(size), ChecksumStart: uint16(ihl), ChecksumOffset: 6}
	if p[9] == protoTCP {
		o.ChecksumOffset = 16
	}
	binary.BigEndian.PutUint16(p[ihl+int(o.ChecksumOffset):], uint16(naivePseudo(p, ihl)))
	return Packet{o, p}
}

// kernelTakes returns the packets that the kernel makes of a Write, after checking its
// requirements.
func kernelTakes(t testing.TB, o Offload, parts [][]byte) [][]byte {
	t.Helper()
	p := bytes.Join(parts, nil)
	if o == (Offload{}) {
		if len(parts) != 1 {
			t.Fatalf("a plain packet of %d parts", len(parts))
		}
		return [][]byte{p}
	}
	if len(p) > 65535 || int(binary.BigEndian.Uint16(p[2:])) != len(p) || naiveSum(p[:20], 0) != 0xffff || p[0] != 0x45 {
		t.Fatalf("super-packet of %d bytes has the header %x", len(p), p[:20])
	}
	at, hl, gso := 16, 0, GSOTCP4
	if p[9] == protoUDP {
		at, hl, gso = 6, 28, GSOUDP
	} else {
		hl = 20 + int(p[32]>>4)*4
	}
	want := Offload{NeedsChecksum: true, GSO: gso, HeaderLen: uint16(hl), GSOSize: o.GSOSize, ChecksumStart: 20, ChecksumOffset: uint16(at)}
	if o != want {
		t.Fatalf("offload %+v, want %+v", o, want)
	}
	if got, want := binary.BigEndian.Uint16(p[20+at:]), uint16(naivePseudo(p, 20)); got != want {
		t.Fatalf("partial checksum %#x, want %#x", got, want)
	}
	out := naiveSplit(p, o)
	if len(out) != len(parts) || len(out) < 2 {
		t.Fatalf("super-packet of %d parts is cut into %d", len(parts), len(out))
	}
	return out
}

// flowOf returns the flow within which the order of packets is preserved.
func flowOf(p []byte) string {
	flow := string(p[9:10]) + string(p[12:20])
	ihl := int(p[0]&15) * 4
	if (p[9] == protoTCP || p[9] == protoUDP) && len(p) >= ihl+4 && binary.BigEndian.Uint16(p[6:])&0x3fff == 0 {
		flow += string(p[ihl : ihl+4])
	}
	return flow
}

// samePackets compares packets flow by flow. The ID of packets that must not be fragmented is not
// compared.
func samePackets(t testing.TB, got, want [][]byte) {
	t.Helper()
	flows := func(packets [][]byte) map[string][][]byte {
		m := map[string][][]byte{}
		for _, p := range packets {
			if q := bytes.Clone(p); q[6]&0x40 != 0 {
				// The error of the header checksum is preserved, the ID is ignored.
				bad := naiveSum(q[:int(q[0]&15)*4], 0) != 0xffff
				q[4], q[5] = 0, 0
				if !bad {
					fixHeader(q)
				}
				m[flowOf(q)] = append(m[flowOf(q)], q)
			} else {
				m[flowOf(q)] = append(m[flowOf(q)], q)
			}
		}
		return m
	}
	if len(got) != len(want) {
		t.Errorf("%d packets, want %d", len(got), len(want))
	}
	g, w := flows(got), flows(want)
	for flow, packets := range w {
		for i, p := range packets {
			if i >= len(g[flow]) {
				t.Fatalf("flow %x: %d packets, want %d", flow, len(g[flow]), len(packets))
			}
			if !bytes.Equal(g[flow][i], p) {
				t.Fatalf("flow %x, packet %d:\n got %x\nwant %x", flow, i, head(g[flow][i]), head(p))
			}
		}
	}
}

func head(p []byte) []byte { return p[:min(len(p), 100)] }

// tcpSpec describes a TCP packet; zero fields get ordinary values.
type tcpSpec struct {
	src, dst         [4]byte
	sport, dport     uint16
	seq, ack         uint32
	flags, tos, ttl  byte
	id               uint16
	mayFragment      bool
	options, ipExtra []byte // multiples of 4
	window           uint16
	payload          int
}

var (
	hostA = [4]byte{10, 77, 1, 2}
	hostB = [4]byte{10, 77, 2, 2}
)

func (s tcpSpec) packet() []byte {
	ihl := 20 + len(s.ipExtra)
	if s.src == ([4]byte{}) {
		s.src, s.dst = hostA, hostB
	}
	if s.ttl == 0 {
		s.ttl = 64
	}
	if s.flags == 0 {
		s.flags = flagACK
	}
	p := []byte{byte(0x40 + ihl/4), s.tos, 0, 0, byte(s.id >> 8), byte(s.id), 0x40, 0, s.ttl, protoTCP, 0, 0}
	if s.mayFragment {
		p[6] = 0
	}
	p = append(append(append(p, s.src[:]...), s.dst[:]...), s.ipExtra...)
	p = binary.BigEndian.AppendUint16(p, 40000+s.sport)
	p = binary.BigEndian.AppendUint16(p, 80+s.dport)
	p = binary.BigEndian.AppendUint32(p, s.seq)
	p = binary.BigEndian.AppendUint32(p, s.ack)
	p = append(p, byte(20+len(s.options))<<2, s.flags)
	p = binary.BigEndian.AppendUint16(p, 500+s.window)
	p = append(p, 0, 0, 0, 0)
	p = append(p, s.options...)
	return fix(append(p, fill(s.payload, s.seq)...))
}

// udpPacket returns a UDP packet without DF.
func udpPacket(id uint16, payload int) []byte {
	p := []byte{0x45, 0, 0, 0, byte(id >> 8), byte(id), 0, 0, 64, protoUDP, 0, 0}
	p = append(append(p, hostA[:]...), hostB[:]...)
	p = append(p, 0x9c, 0x40, 0, 53, 0, 0, 0, 1)
	return fix(append(p, fill(payload, uint32(id))...))
}

// fill returns n bytes that depend on position and seed.
func fill(n int, seed uint32) []byte {
	b, x := make([]byte, n), seed*2654435761+1
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}
