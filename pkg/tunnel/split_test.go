package tunnel

import (
	"bytes"
	"fmt"
	"testing"
)

// splitAll cuts a packet with the splitter.
func splitAll(p Packet) (out [][]byte, ok bool) {
	var s splitter
	data := bytes.Clone(p.Data)
	ihl := headerLen(data)
	if ihl == 0 || !s.init(data, ihl, p.Offload) {
		return nil, false
	}
	for more := true; more; more = len(s.payload) > 0 {
		h := make([]byte, len(s.header))
		payload := s.next(h)
		out = append(out, append(h, payload...))
	}
	return out, true
}

var timestamps = []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}

func TestSplitEqualsOracle(t *testing.T) {
	routerAlert := []byte{148, 4, 0, 0}
	tests := map[string]Packet{
		"many":            partial(tcpSpec{payload: 60000}.packet(), GSOTCP4, 1420),
		"exact multiple":  partial(tcpSpec{payload: 2840}.packet(), GSOTCP4, 1420),
		"short last":      partial(tcpSpec{payload: 2841}.packet(), GSOTCP4, 1420),
		"one":             partial(tcpSpec{payload: 1420}.packet(), GSOTCP4, 1420),
		"less than one":   partial(tcpSpec{payload: 7}.packet(), GSOTCP4, 1420),
		"no payload":      partial(tcpSpec{}.packet(), GSOTCP4, 1420),
		"odd":             partial(tcpSpec{payload: 5001}.packet(), GSOTCP4, 997),
		"tiny":            partial(tcpSpec{payload: 33}.packet(), GSOTCP4, 1),
		"options":         partial(tcpSpec{payload: 9000, options: timestamps}.packet(), GSOTCP4, 1408),
		"most options":    partial(tcpSpec{payload: 9000, options: make([]byte, 40), ipExtra: make([]byte, 40)}.packet(), GSOTCP4, 1408),
		"IP options":      partial(tcpSpec{payload: 9000, ipExtra: routerAlert}.packet(), GSOTCP4, 1408),
		"FIN PSH":         partial(tcpSpec{payload: 9000, flags: flagACK | flagFIN | flagPSH}.packet(), GSOTCP4, 1408),
		"CWR":             partial(tcpSpec{payload: 9000, flags: flagACK | flagCWR | flagECE}.packet(), GSOTCP4|GSOECN, 1408),
		"CWR PSH one":     partial(tcpSpec{payload: 900, flags: flagACK | flagCWR | flagPSH}.packet(), GSOTCP4|GSOECN, 1408),
		"sequence wraps":  partial(tcpSpec{payload: 9000, seq: 0xfffffff0}.packet(), GSOTCP4, 1408),
		"ID wraps":        partial(tcpSpec{payload: 9000, id: 0xfffe, mayFragment: true}.packet(), GSOTCP4, 1408),
		"TOS":             partial(tcpSpec{payload: 9000, tos: 0xb9, ttl: 2}.packet(), GSOTCP4, 1408),
		"longest":         partial(tcpSpec{payload: 65495}.packet(), GSOTCP4, 1420),
		"UDP":             partial(udpPacket(9, 9000), GSOUDP, 1400),
		"UDP short last":  partial(udpPacket(9, 2801), GSOUDP, 1400),
		"UDP tiny":        partial(udpPacket(65535, 7), GSOUDP, 1),
		"TCP checksum ok": {Offload{GSO: GSOTCP4, GSOSize: 1000}, tcpSpec{payload: 5000}.packet()},
	}
	zero := udpPacket(1, 5000)
	zero[26], zero[27] = 0, 0
	tests["UDP without checksum"] = Packet{Offload{GSO: GSOUDP, GSOSize: 1000}, fix(zero)}
	for name, p := range tests {
		t.Run(name, func(t *testing.T) {
			got, ok := splitAll(p)
			if !ok {
				t.Fatal("refused")
			}
			want := naiveSplit(p.Data, p.Offload)
			if len(got) != len(want) {
				t.Fatalf("%d segments, want %d", len(got), len(want))
			}
			for i := range got {
				if !bytes.Equal(got[i], want[i]) {
					t.Errorf("segment %d:\n got %x\nwant %x", i, head(got[i]), head(want[i]))
				}
				if err := wrong(got[i]); err != nil {
					t.Errorf("segment %d: %v", i, err)
				}
			}
		})
	}
}

func TestSplitRefuses(t *testing.T) {
	fragment := tcpSpec{payload: 5000}.packet()
	fragment[6] = flagMF >> 8
	tests := map[string]Packet{
		"no size":        partial(tcpSpec{payload: 5000}.packet(), GSOTCP4, 0),
		"kind for TCP":   partial(tcpSpec{payload: 5000}.packet(), GSOUDP, 100),
		"kind for UDP":   partial(udpPacket(1, 5000), GSOTCP4, 100),
		"unknown kind":   partial(udpPacket(1, 5000), 3, 100),
		"fragment":       {Offload{GSO: GSOTCP4, GSOSize: 100}, fragment},
		"no TCP header":  {Offload{GSO: GSOTCP4, GSOSize: 100}, fix(tcpSpec{}.packet()[:39])},
		"other protocol": {Offload{GSO: GSOTCP4, GSOSize: 100}, icmpEcho(64)},
	}
	for name, p := range tests {
		if out, ok := splitAll(p); ok {
			t.Errorf("%s: cut into %d", name, len(out))
		}
	}
}

func TestSum(t *testing.T) {
	for n := range 300 {
		for _, b := range [][]byte{fill(n, uint32(n)), bytes.Repeat([]byte{0xff}, n), make([]byte, n)} {
			if got, want := sum(b), naiveSum(b, 0); got != want && !(got == 0xffff && want == 0) {
				t.Fatalf("sum of %d bytes: %#x, want %#x", n, got, want)
			}
		}
	}
}

func TestDecrementTTL(t *testing.T) {
	for ttl := 1; ttl < 256; ttl++ {
		for id := 0; id < 65536; id += 257 {
			p := tcpSpec{ttl: byte(ttl), id: uint16(id)}.packet()
			decrementTTL(p)
			if s := naiveSum(p[:20], 0); p[8] != byte(ttl-1) || s != 0xffff {
				t.Fatalf("TTL %d, ID %d: got TTL %d, sum %#x", ttl, id, p[8], s)
			}
		}
	}
}

func TestFinishChecksum(t *testing.T) {
	for n := range 40 {
		for _, p := range []Packet{
			partial(tcpSpec{payload: n}.packet(), GSONone, 0), partial(udpPacket(3, n), GSONone, 0),
		} {
			if !finishChecksum(p.Data, int(p.Offload.ChecksumStart), int(p.Offload.ChecksumOffset)) {
				t.Fatal("refused")
			}
			if err := wrong(p.Data); err != nil {
				t.Fatalf("payload %d: %v", n, err)
			}
		}
	}
	if finishChecksum(make([]byte, 30), 29, 0) || finishChecksum(make([]byte, 30), 65535, 65535) {
		t.Error("a field outside the packet was accepted")
	}
	// A UDP checksum that comes out as zero is sent as all ones.
	p := partial(udpPacket(1, 2), GSONone, 0)
	p.Data[28], p.Data[29] = 0, 0
	rest := naiveSum(p.Data[20:], 0)
	p.Data[28], p.Data[29] = byte(^rest>>8), byte(^rest)
	finishChecksum(p.Data, 20, 6)
	if p.Data[26] != 0xff || p.Data[27] != 0xff {
		t.Errorf("checksum %x", p.Data[26:28])
	}
}

// FuzzSplit cuts arbitrary super-packets: it never panics, and what it cuts equals the oracle's.
func FuzzSplit(f *testing.F) {
	for _, p := range []Packet{
		partial(tcpSpec{payload: 500, options: timestamps}.packet(), GSOTCP4, 100),
		partial(tcpSpec{payload: 500, ipExtra: make([]byte, 8), flags: 0xff}.packet(), GSOTCP4|GSOECN, 7),
		partial(udpPacket(1, 500), GSOUDP, 100),
	} {
		f.Add(p.Data, byte(p.Offload.GSO), p.Offload.GSOSize, true)
	}
	f.Fuzz(func(t *testing.T, data []byte, gso byte, size uint16, checksum bool) {
		p := Packet{Offload{GSO: GSO(gso), GSOSize: size, NeedsChecksum: checksum}, data}
		got, ok := splitAll(p)
		if !ok {
			return
		}
		want := naiveSplit(data, p.Offload)
		if len(got) != len(want) {
			t.Fatalf("%d segments, want %d", len(got), len(want))
		}
		for i := range got {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("segment %d:\n got %x\nwant %x", i, head(got[i]), head(want[i]))
			}
		}
	})
}

func BenchmarkSplit(b *testing.B) {
	for _, size := range []int{1420, 536} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			p := partial(tcpSpec{payload: 64000, options: timestamps}.packet(), GSOTCP4, size)
			work, h := make([]byte, len(p.Data)), make([]byte, maxHeader)
			copy(work, p.Data)
			var s splitter
			b.ReportAllocs()
			b.SetBytes(int64(len(p.Data)))
			for b.Loop() {
				copy(work, p.Data[:60])
				s.init(work, 20, p.Offload)
				for more := true; more; more = len(s.payload) > 0 {
					s.next(h[:52])
				}
			}
		})
	}
}

func icmpEcho(payload int) []byte {
	p := []byte{0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protoICMP, 0, 0}
	p = append(append(p, hostA[:]...), hostB[:]...)
	p = append(p, 8, 0, 0, 0, 0, 1, 0, 1)
	return fix(append(p, fill(payload, 1)...))
}
