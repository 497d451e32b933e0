package tunnel

import (
	"bytes"
	"testing"
)

// BenchmarkForward is of single packets, without system calls: those of one stream, and those of
// several peers by turns.
func BenchmarkForward(b *testing.B) {
	peers := [][4]byte{{10, 77, 2, 2}, {10, 77, 3, 2}}
	for name, every := range map[string]int{"one peer": 1, "by turns": len(peers)} {
		work := func(change func(peer [4]byte, s *tcpSpec)) (fresh, work [][]byte) {
			fresh = tcpRun(64, 1420, func(i int, s *tcpSpec) { change(peers[i%every], s) })
			for _, p := range fresh {
				work = append(work, bytes.Clone(p))
			}
			return fresh, work
		}
		b.Run("out/"+name, func(b *testing.B) {
			tunnel := New(NewTable(testOverlay()))
			x := newTransmitter(tunnel, newFakeDevice(b), &silentSocket{}, nil)
			x.state = tunnel.state.Load()
			fresh, work := work(func(peer [4]byte, s *tcpSpec) { s.src, s.dst = hostA, peer })
			b.ReportAllocs()
			for b.Loop() {
				for i, p := range work {
					copy(p[:20], fresh[i])
					if err := x.packet(&Packet{Data: p}); err != nil {
						b.Fatal(err)
					}
				}
				if err := x.flush(); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("in/"+name, func(b *testing.B) {
			tunnel := New(NewTable(testOverlay()))
			r := newReceiver(tunnel, &silentDevice{newFakeDevice(b)}, &silentSocket{}, nil)
			r.state, r.batch.peer = tunnel.state.Load(), none
			fresh, work := work(func(peer [4]byte, s *tcpSpec) { s.src, s.dst = peer, hostA })
			var batch []Datagram
			for i, p := range work {
				batch = append(batch, datagram([]string{"192.0.2.2", "192.0.2.3"}[i%every], p))
				batch[i].Data = p
			}
			b.ReportAllocs()
			for b.Loop() {
				for i := range batch {
					copy(work[i][:20], fresh[i])
					if err := r.datagram(&batch[i]); err != nil {
						b.Fatal(err)
					}
				}
				r.count(none, 0)
				if err := r.coalescer.flush(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
