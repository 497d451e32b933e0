package tunnel

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
)

// Bits of the byte before each datagram of FuzzReceive's input.
const (
	fuzzHost     = 0x03 // outer source
	fuzzTCP      = 0x04 // a well-formed packet is made of the bytes: the fuzzer can't compute checksums
	fuzzUDP      = 0x08
	fuzzContinue = 0x10 // with the sequence number or ID that follows the last packet
	fuzzGRO      = 0x20 // some datagrams in one
)

// fuzzDatagrams returns datagrams from the fuzzer's bytes: a byte of bits, a byte of length, the
// bytes.
func fuzzDatagrams(data []byte) (ds []Datagram) {
	var next uint32
	var id uint16
	for len(data) >= 2 && len(ds) < receiveBatch {
		bits, n := data[0], int(data[1])
		data = data[2:]
		b := data[:min(n, len(data))]
		data = data[len(b):]
		host := []string{"192.0.2.2", "192.0.2.3", "192.0.2.9", "192.0.2.2"}[bits&fuzzHost]
		count := 1
		if bits&fuzzGRO != 0 {
			count = 3
		}
		var packets [][]byte
		for range count {
			p := bytes.Clone(b)
			switch {
			case bits&fuzzTCP != 0 && len(b) > 4:
				s := tcpSpec{payload: len(b), id: id, tos: b[0] & 1, mayFragment: b[0]&2 != 0, src: [4]byte{10, 77, b[2]%3 + 2, 2}, dst: hostA}
				if s.seq = next; bits&fuzzContinue == 0 {
					s.seq = uint32(b[1])
				}
				if s.flags = flagACK; b[0]&4 != 0 {
					s.flags |= b[3]
				}
				p = s.packet()
				next = s.seq + uint32(len(b))
				id++
			case bits&fuzzUDP != 0 && len(b) > 4:
				p = udpPacket(id, len(b))
				copy(p[12:], []byte{10, 77, b[2]%3 + 2, 2, 10, 77, 1, 2})
				p = fix(p)
				id++
			}
			packets = append(packets, p)
		}
		ds = append(ds, datagram(host, packets...))
	}
	return ds
}

// naiveReceive is what should come of datagrams: the packets written, and the drops.
func naiveReceive(o Overlay, ds []Datagram) (out [][]byte, drops [reasons]uint64) {
	for _, d := range ds {
		data := d.Data
		for first := true; first || len(data) > 0; first = false {
			n := len(data)
			if d.SegmentSize > 0 {
				n = min(n, d.SegmentSize)
			}
			p := data[:n]
			data = data[n:]
			if why := naiveDrop(o, d.Source.Addr(), p); why != reasons {
				drops[why]++
				continue
			}
			p = bytes.Clone(p)
			decrementTTL(p) // its own test compares it with the definition
			fixHeader(p)
			out = append(out, p)
		}
	}
	return out, drops
}

func naiveDrop(o Overlay, host netip.Addr, p []byte) Reason {
	known := false
	for _, peer := range o.Peers {
		known = known || peer.Addr.Addr() == host
	}
	switch {
	case !known:
		return UnknownSource
	case len(p) > 0 && p[0]>>4 != 4:
		return NotIPv4
	case len(p) < 20 || p[0]&15 < 5 || len(p) < int(p[0]&15)*4 || int(binary.BigEndian.Uint16(p[2:])) != len(p):
		return Malformed
	}
	src, dst := netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
	owner, owned := naiveLookup(o.Peers, src)
	switch {
	case owned && owner.Addr.Addr() != host, !owned && o.Network.Contains(src):
		return SpoofedSource
	case !o.Own.Contains(dst):
		return ForeignDestination
	case naiveSum(p[:int(p[0]&15)*4], 0) != 0xffff:
		return BadChecksum
	case len(p) > o.MTU:
		return Oversize
	case p[8] <= 1:
		return TTLExceeded
	}
	return reasons
}

// FuzzReceive passes arbitrary datagrams to the receiver: it never panics, and the packets for the
// IP stack, flow by flow, and the drops equal the oracle's.
func FuzzReceive(f *testing.F) {
	long := append([]byte{fuzzTCP | fuzzContinue, 200}, fill(200, 1)...)
	f.Add(bytes.Repeat(long, 5))
	f.Add(append(long, append([]byte{fuzzUDP | fuzzGRO, 90}, fill(90, 2)...)...))
	raw := from("10.77.2.2", tcpSpec{payload: 30})
	f.Add(append([]byte{fuzzGRO, byte(len(raw))}, raw...))
	f.Add([]byte{0, 0, 2, 1, 0x45})
	f.Fuzz(func(t *testing.T, data []byte) {
		ds := fuzzDatagrams(data)
		want, drops := naiveReceive(testOverlay(), ds)
		device := newFakeDevice(t)
		r := newReceiver(New(NewTable(testOverlay())), device, newFakeSocket(), nil)
		r.state = r.tunnel.state.Load()
		r.batch.peer = none
		for i := range ds {
			if err := r.datagram(&ds[i]); err != nil {
				t.Fatal(err)
			}
		}
		r.count(none, 0)
		if err := r.coalescer.flush(); err != nil {
			t.Fatal(err)
		}
		samePackets(t, device.written, want)
		for why, n := range drops {
			if got := r.tunnel.counters.in.drops[why].Load(); got != n {
				t.Errorf("%s: %d drops, want %d", Reason(why), got, n)
			}
		}
	})
}
