package tunnel

import (
	"net/netip"
	"testing"
)

// A collector stores the ICMP errors that are sent.
type collector [][]byte

func (c *collector) Write(p []byte) (int, error) {
	*c = append(*c, append([]byte{}, p...))
	return len(p), nil
}

// FuzzTransmit passes data of a device with any header to the transmitter: all sent packets are
// complete IPv4 packets, each to the peer of its destination, and each error is well-formed.
func FuzzTransmit(f *testing.F) {
	header := func(o Offload, p []byte) []byte {
		b := make([]byte, offloadLen, offloadLen+len(p))
		o.encode(b)
		return append(b, p...)
	}
	toPeer := func(p []byte) []byte {
		copy(p[16:], []byte{10, 77, 2, 9})
		return fix(p)
	}
	f.Add(header(Offload{}, toPeer(icmpEcho(9))))
	f.Add(header(Offload{}, icmpEcho(9)))
	f.Add(header(Offload{NeedsChecksum: true}, toPeer(icmpEcho(9)))) // of the IP header
	f.Add(header(Offload{GSO: GSOTCP4, GSOSize: 100, HeaderLen: 40, NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16}, toPeer(tcpSpec{payload: 1000}.packet())))
	f.Add(header(Offload{GSO: GSOUDP, GSOSize: 10, HeaderLen: 28, NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 6}, toPeer(udpPacket(1, 95))))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < offloadLen || len(data) > readRoom {
			return // no read returns less or more
		}
		var p Packet
		p.decode(data, true)
		whole := len(p.Data)
		if headerLen(p.Data) > 0 && whole%2 == 0 { // the fuzzer can't compute checksums
			fixHeader(p.Data)
		}
		socket, errors := newFakeSocket(), &collector{}
		x := newTransmitter(New(NewTable(testOverlay())), newFakeDevice(t), socket, errors)
		x.state = x.tunnel.state.Load()
		if err := x.packet(&p); err != nil {
			t.Fatal(err)
		}
		if err := x.flush(); err != nil {
			t.Fatal(err)
		}
		for to, packets := range socket.sent {
			for _, sent := range packets {
				ihl := headerLen(sent)
				if ihl == 0 || len(sent) > whole {
					t.Fatalf("% x of %d bytes became % x", data, whole, sent)
				}
				d := netip.AddrFrom4([4]byte(sent[16:20]))
				if peer, ok := naiveLookup(testOverlay().Peers, d); !ok || peer.Addr != to {
					t.Errorf("% x for %s is sent to %s", sent, d, to)
				}
			}
		}
		for _, e := range *errors {
			if headerLen(e) != ipv4HeaderLen || wrong(e) != nil || naiveSum(e[ipv4HeaderLen:], 0) != 0xffff || len(e) > maxICMP {
				t.Errorf("% x is answered by % x", data, e)
			}
		}
		if len(*errors) > 1 || len(*errors) == 1 && len(socket.sent) > 0 {
			t.Errorf("% x is sent and answered, or answered twice", data)
		}
	})
}
