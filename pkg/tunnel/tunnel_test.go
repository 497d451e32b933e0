package tunnel

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab/wait"
)

// A rig is a running tunnel between fakes.
type rig struct {
	*Tunnel
	device *fakeDevice
	socket *fakeSocket
	icmp   packets
	ended  chan error
}

// packets collects written packets.
type packets struct{ ch chan []byte }

func (p packets) Write(b []byte) (int, error) {
	select {
	case p.ch <- bytes.Clone(b):
	default:
	}
	return len(b), nil
}

func (packets) Close() error { return nil }

func newRig(t *testing.T) *rig {
	return &rig{New(NewTable(testOverlay())), newFakeDevice(t), newFakeSocket(), packets{make(chan []byte, 100)}, make(chan error, 1)}
}

func startRig(t *testing.T) *rig {
	r := newRig(t)
	r.start(t)
	return r
}

func (r *rig) start(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go func() { r.ended <- r.Run(ctx, Endpoints{r.device, r.socket, r.icmp}) }()
}

func (r *rig) dropped(why Reason) (packets uint64) {
	for _, d := range r.Stats().Drops {
		if d.Reason == why {
			packets += d.Packets
		}
	}
	return packets
}

// to returns a packet of container 10.77.1.2 to another address.
func to(dst string, s tcpSpec) tcpSpec {
	s.src, s.dst = hostA, netip.MustParseAddr(dst).As4()
	return s
}

// forwarded is what a packet is after the hop through the tunnel.
func forwarded(p Packet) (out [][]byte) {
	for _, seg := range naiveSplit(p.Data, p.Offload) {
		seg = bytes.Clone(seg)
		seg[8]--
		if p.Offload.NeedsChecksum {
			fix(seg)
		}
		fixHeader(seg)
		out = append(out, seg)
	}
	return out
}

func TestForwardsOut(t *testing.T) {
	plain := func(s tcpSpec) Packet { return Packet{Data: s.packet()} }
	batch := []Packet{
		plain(to("10.77.2.2", tcpSpec{payload: 100})),
		partial(to("10.77.2.2", tcpSpec{payload: 65000, options: timestamps}).packet(), GSOTCP4, 1420),
		partial(to("10.77.2.2", tcpSpec{payload: 65000, seq: 65000}).packet(), GSOTCP4, 1432),
		partial(to("10.77.3.2", tcpSpec{payload: 1000}).packet(), GSONone, 0),
		plain(to("10.77.3.2", tcpSpec{payload: 1000})),
		plain(to("10.77.3.2", tcpSpec{payload: 1000})),
		plain(to("10.77.3.2", tcpSpec{payload: 0})),
		plain(to("10.77.3.2", tcpSpec{payload: 1000})),
		partial(udpPacket(1, 30000), GSOUDP, 1400),
		partial(to("10.77.2.2", tcpSpec{payload: 64000}).packet(), GSOTCP4, 40), // 1600 segments: more than a batch's room
		{Data: fragments()[1]},
		{Data: icmpEcho(50)},
	}
	want := map[string][][]byte{}
	for _, p := range batch {
		peer := "192.0.2.2:8285"
		if p.Data[18] == 3 {
			peer = "192.0.2.3:8285"
		}
		want[peer] = append(want[peer], forwarded(p)...)
	}
	for _, max := range []int{1, 64} {
		r := newRig(t)
		r.socket.max = max
		r.device.batches <- batch
		r.start(t)
		for peer, packets := range want {
			wait.True(t, "packets to "+peer, func() bool { return len(r.socket.to(peer)) >= len(packets) })
			got := r.socket.to(peer)
			for i := range packets {
				if !bytes.Equal(got[i], packets[i]) {
					t.Fatalf("%d segments a message, to %s, packet %d:\n got %x\nwant %x", max, peer, i, head(got[i]), head(packets[i]))
				}
				if err := wrong(got[i]); err != nil {
					t.Fatalf("to %s, packet %d: %v", peer, i, err)
				}
			}
		}
		var packets, octets uint64
		for _, p := range r.Stats().Peers {
			packets, octets = packets+p.Sent.Packets, octets+p.Sent.Bytes
		}
		var wantOctets uint64
		for _, list := range want {
			for _, p := range list {
				wantOctets += uint64(len(p))
			}
		}
		if n := uint64(len(want["192.0.2.2:8285"]) + len(want["192.0.2.3:8285"])); packets != n || octets != wantOctets {
			t.Errorf("counted %d packets of %d bytes, want %d of %d", packets, octets, n, wantOctets)
		}
		if max == 64 && r.socket.messages > 50 {
			t.Errorf("%d messages for %d packets", r.socket.messages, packets)
		}
	}
}

func TestDropsOut(t *testing.T) {
	r := startRig(t)
	bad := tcpSpec{payload: 9}.packet()
	bad[3]++
	r.device.batches <- []Packet{
		{Data: to("10.77.9.9", tcpSpec{}).packet()},
		{Data: to("10.77.2.2", tcpSpec{ttl: 1}).packet()},
		{Data: to("224.0.0.251", tcpSpec{}).packet()},
		{Data: bad},
		{Data: damaged(to("10.77.2.2", tcpSpec{}).packet())},
		{Data: damaged(to("10.77.2.2", tcpSpec{ttl: 1}).packet())},
		{Data: to("10.77.2.255", tcpSpec{ttl: 1}).packet()},
		{Data: []byte{0x60, 0, 0, 0}},
		{Data: []byte{0x45}},
		{Data: nil},
		{Data: udpPacket(1, 9), Offload: Offload{NeedsChecksum: true, ChecksumStart: 36, ChecksumOffset: 0}},
		{Data: udpPacket(1, 9), Offload: Offload{GSO: GSOTCP4, GSOSize: 9}},
	}
	for why, n := range map[Reason]uint64{NoRoute: 2, TTLExceeded: 2, NotIPv4: 1, Malformed: 5, BadChecksum: 2} {
		wait.True(t, why.String(), func() bool { return r.dropped(why) == n })
	}
	unreachable, exceeded := <-r.icmp.ch, <-r.icmp.ch
	if unreachable[20] != 3 || unreachable[21] != 0 || exceeded[20] != 11 {
		t.Errorf("ICMP errors %x and %x", unreachable, exceeded)
	}
	if source(exceeded) != 0x0a4d0100 || destination(exceeded) != 0x0a4d0102 {
		t.Errorf("ICMP error from %x to %x", source(exceeded), destination(exceeded))
	}
	if n := len(r.icmp.ch); n != 0 {
		t.Errorf("%d more ICMP errors", n)
	}
}

// TestRefusedSegmentation: a peer to which the kernel cannot segment gets packets one by one for
// half a minute, by a monotonic clock.
func TestRefusedSegmentation(t *testing.T) {
	r := newRig(t)
	var clock atomic.Int64
	r.clock = func() time.Duration { return time.Duration(clock.Load()) }
	r.start(t)
	r.socket.mu.Lock()
	r.socket.refuse = ErrNoSegmentation
	r.socket.fail = map[netip.Addr]bool{netip.MustParseAddr("192.0.2.3"): true}
	r.socket.mu.Unlock()
	super := partial(to("10.77.2.2", tcpSpec{payload: 14205}).packet(), GSOTCP4, 1420)
	lost := partial(to("10.77.3.2", tcpSpec{payload: 14205}).packet(), GSOTCP4, 1420)
	r.device.batches <- []Packet{super, lost, super}
	wait.True(t, "packets one by one", func() bool { return len(r.socket.to("192.0.2.2:8285")) == 22 })
	for i, p := range r.socket.to("192.0.2.2:8285") {
		if want := forwarded(super)[i%11]; !bytes.Equal(p, want) {
			t.Errorf("packet %d: got %x, want %x", i, head(p), head(want))
		}
	}
	if n := r.dropped(SendFailed); n != 11 {
		t.Errorf("%d packets counted as not sent, want 11", n)
	}
	s := r.Stats()
	if !s.Peers[0].Unsegmented || s.Peers[1].Unsegmented {
		t.Errorf("peers without segmentation: %v %v", s.Peers[0].Unsegmented, s.Peers[1].Unsegmented)
	}
	// It is remembered: the next ones are not tried as one message.
	r.socket.mu.Lock()
	r.socket.refuse = errors.New("tried again")
	r.socket.mu.Unlock()
	r.device.batches <- []Packet{super}
	wait.True(t, "packets of the second batch", func() bool { return len(r.socket.to("192.0.2.2:8285")) == 33 })
	clock.Add(int64(unsegmentedFor))
	if r.Stats().Peers[0].Unsegmented {
		t.Error("no segmentation for longer than it was to be left alone")
	}
	r.socket.mu.Lock()
	r.socket.refuse, r.socket.messages = nil, 0
	r.socket.mu.Unlock()
	r.device.batches <- []Packet{super}
	wait.True(t, "packets of the third batch", func() bool { return len(r.socket.to("192.0.2.2:8285")) == 44 })
	if n := r.socket.messages; n != 1 {
		t.Errorf("%d messages when the time is over, want 1", n)
	}
}

// datagram wraps packets of a host as the kernel's GRO does.
func datagram(host string, packets ...[]byte) Datagram {
	d := Datagram{Source: netip.AddrPortFrom(netip.MustParseAddr(host), 8285), Data: bytes.Join(packets, nil)}
	if len(packets) > 1 {
		d.SegmentSize = len(packets[0])
	}
	return d
}

// from returns a packet of an address to container 10.77.1.2.
func from(src string, s tcpSpec) []byte {
	s.src, s.dst = netip.MustParseAddr(src).As4(), hostA
	return s.packet()
}

func TestForwardsIn(t *testing.T) {
	r := startRig(t)
	incoming := func(_ int, s *tcpSpec) { s.src, s.dst = [4]byte{10, 77, 2, 2}, hostA }
	run := tcpRun(40, 1420, incoming)
	other := from("10.77.3.2", tcpSpec{payload: 100})
	client := from("198.51.100.7", tcpSpec{payload: 100, flags: flagSYN})
	r.socket.batches <- []Datagram{
		datagram("192.0.2.2", run[:20]...), datagram("192.0.2.3", bytes.Clone(other)), datagram("192.0.2.2", run[20:]...),
		datagram("192.0.2.3", bytes.Clone(client)),
	}
	var want [][]byte
	for _, p := range append(run, other, client) {
		want = append(want, forwarded(Packet{Data: p})...)
	}
	wait.True(t, "packets", func() bool { return len(r.device.packets()) >= len(want) })
	samePackets(t, r.device.packets(), want)
	if r.device.writes != 3 {
		t.Errorf("%d writes, want 3", r.device.writes)
	}
	s := r.Stats()
	if s.Peers[0].Received != (Count{40, 40 * 1472}) || s.Peers[1].Received.Packets != 2 || s.Received.Packets != 42 {
		t.Errorf("counted %+v", s.Peers)
	}
}

// damaged is a packet whose header checksum is wrong.
func damaged(p []byte) []byte {
	p[10]++
	return p
}

// broadcast is a packet for all of our subnet, in need of a checksum.
func broadcast(p []byte) []byte {
	copy(p[16:], []byte{10, 77, 1, 255})
	return p
}

func TestDropsIn(t *testing.T) {
	r := startRig(t)
	good := from("10.77.2.2", tcpSpec{payload: 100})
	longer := append(bytes.Clone(good), 0)
	r.socket.batches <- []Datagram{
		datagram("192.0.2.9", bytes.Clone(good)),
		datagram("192.0.2.9", []byte("garbage")),
		datagram("192.0.2.3", bytes.Clone(good)),
		{Source: netip.MustParseAddrPort("192.0.2.2:8286"), Data: bytes.Clone(good)},
		{Source: netip.MustParseAddrPort("192.0.2.2:1024"), Data: bytes.Join([][]byte{good, good}, nil), SegmentSize: len(good)},
		datagram("192.0.2.2", damaged(from("10.77.2.2", tcpSpec{payload: 100}))),
		datagram("192.0.2.2", damaged(from("10.77.2.2", tcpSpec{payload: 1433}))),
		datagram("192.0.2.2", damaged(from("10.77.2.2", tcpSpec{ttl: 1}))),
		datagram("192.0.2.2", fix(broadcast(from("10.77.2.2", tcpSpec{ttl: 1})))),
		datagram("192.0.2.2", fix(broadcast(from("10.77.2.2", tcpSpec{payload: 1433})))),
	}
	r.socket.batches <- []Datagram{
		datagram("192.0.2.2", to("10.77.3.2", tcpSpec{}).packet()),
		datagram("192.0.2.2", longer),
		datagram("192.0.2.2", good[:50]),
		datagram("192.0.2.2", nil),
		datagram("192.0.2.2", []byte{0x60, 1, 2}),
		datagram("192.0.2.2", from("10.77.2.2", tcpSpec{payload: 1433})),
		datagram("192.0.2.2", from("10.77.2.2", tcpSpec{ttl: 1})),
		{Source: netip.MustParseAddrPort("192.0.2.2:8285"), Data: bytes.Clone(good), Truncated: true},
		datagram("192.0.2.2", bytes.Clone(good)),
	}
	for why, n := range map[Reason]uint64{
		UnknownSource: 2, SpoofedSource: 2, Malformed: 3, NotIPv4: 1, Oversize: 3, TTLExceeded: 2, BadChecksum: 3, SourcePort: 3,
	} {
		wait.True(t, why.String(), func() bool { return r.dropped(why) == n })
	}
	wait.True(t, "the good packet", func() bool { return len(r.device.packets()) == 1 })
	big, exceeded := <-r.icmp.ch, <-r.icmp.ch
	if big[20] != 3 || big[21] != 4 || int(big[26])<<8|int(big[27]) != 1472 || destination(big) != 0x0a4d0202 {
		t.Errorf("fragmentation needed: %x", big)
	}
	if exceeded[20] != 11 {
		t.Errorf("time exceeded: %x", exceeded)
	}
	if n := len(r.icmp.ch); n != 0 {
		t.Errorf("%d more ICMP errors", n)
	}
	r.device.mu.Lock()
	r.device.fail = unix.EIO
	r.device.mu.Unlock()
	r.socket.batches <- []Datagram{datagram("192.0.2.2", bytes.Clone(good))}
	wait.True(t, "refusal", func() bool { return r.dropped(DeviceRefused) == 1 })
}

func TestSwapKeepsCounters(t *testing.T) {
	r := startRig(t)
	send := func() { r.device.batches <- []Packet{{Data: to("10.77.3.2", tcpSpec{}).packet()}} }
	send()
	wait.True(t, "the packet", func() bool { return r.Stats().Peers[1].Sent.Packets == 1 })
	o := testOverlay()
	o.Peers = append([]Peer{{netip.MustParsePrefix("10.77.8.0/24"), netip.MustParseAddrPort("192.0.2.8:8285")}}, o.Peers[1:]...)
	r.Swap(NewTable(o))
	s := r.Stats()
	if len(s.Peers) != 3 || s.Peers[0].Sent.Packets != 0 || s.Peers[1].Peer != o.Peers[1] || s.Peers[1].Sent.Packets != 1 {
		t.Errorf("after the swap: %+v", s.Peers)
	}
	r.device.batches <- []Packet{{Data: to("10.77.2.2", tcpSpec{}).packet()}, {Data: to("10.77.8.2", tcpSpec{}).packet()}}
	wait.True(t, "the new peer's packet", func() bool { return len(r.socket.to("192.0.2.8:8285")) == 1 })
	if n := r.dropped(NoRoute); n != 1 {
		t.Errorf("%d packets without a route, want 1: the peer is gone", n)
	}
	if s := r.Stats(); s.Sent.Packets != 2 || s.Sent.Bytes != s.Peers[0].Sent.Bytes+s.Peers[1].Sent.Bytes {
		t.Errorf("sent %+v, to peers %+v", s.Sent, s.Peers)
	}
}

func TestRunEnds(t *testing.T) {
	r := newRig(t)
	run := func() error { return r.Run(t.Context(), Endpoints{Device: r.device, Socket: r.socket}) }
	r.device.readErr = ErrDeviceGone
	close(r.device.batches)
	if err := run(); !errors.Is(err, ErrDeviceGone) {
		t.Errorf("Run without a device: %v", err)
	}
	// The tunnel continues with another device, also if that one fails in Write.
	r.device, r.socket = newFakeDevice(t), newFakeSocket()
	r.device.fail = ErrDeviceGone
	r.socket.batches <- []Datagram{datagram("192.0.2.2", from("10.77.2.2", tcpSpec{}))}
	if err := run(); !errors.Is(err, ErrDeviceGone) {
		t.Errorf("Run with a device that goes: %v", err)
	}
	r.device, r.socket = newFakeDevice(t), newFakeSocket()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(time.Millisecond, cancel)
	if err := r.Run(ctx, Endpoints{Device: r.device, Socket: r.socket}); err != nil {
		t.Errorf("Run until the context ends: %v", err)
	}
}

// TestStatsHaveAllDrops: those that can occur, each once.
func TestStatsHaveAllDrops(t *testing.T) {
	var names []string
	for _, d := range New(NewTable(testOverlay())).Stats().Drops {
		names = append(names, d.Direction.String()+" "+d.Reason.String())
	}
	want := []string{
		"out not_ipv4", "out malformed", "out bad_checksum", "out ttl_exceeded", "out no_route", "out send_failed",
		"in not_ipv4", "in malformed", "in bad_checksum", "in ttl_exceeded",
		"in unknown_source", "in source_port", "in spoofed_source", "in foreign_destination", "in oversize", "in device_refused",
	}
	if !slices.Equal(names, want) {
		t.Errorf("drops are %q, want %q", names, want)
	}
}

func TestNoAllocations(t *testing.T) {
	device, socket := newFakeDevice(t), &silentSocket{}
	tunnel := New(NewTable(testOverlay()))
	x := newTransmitter(tunnel, device, socket, nil)
	x.state = tunnel.state.Load()
	super := partial(to("10.77.2.2", tcpSpec{payload: 65000}).packet(), GSOTCP4, 1420)
	small := Packet{Data: to("10.77.3.2", tcpSpec{payload: 65}).packet()}
	original := bytes.Clone(super.Data)
	if n := testing.AllocsPerRun(100, func() {
		copy(super.Data, original)
		small.Data[8] = 64
		x.packet(&super)
		x.packet(&small)
		x.flush()
	}); n != 0 {
		t.Errorf("%v allocations for sending", n)
	}
	r := newReceiver(tunnel, &silentDevice{device}, socket, nil)
	r.state = x.state
	run := tcpRun(40, 1420, func(_ int, s *tcpSpec) { s.src, s.dst = [4]byte{10, 77, 2, 2}, hostA })
	d := datagram("192.0.2.2", run...)
	original = bytes.Clone(d.Data)
	if n := testing.AllocsPerRun(100, func() {
		copy(d.Data, original)
		r.batch.peer = none
		r.datagram(&d)
		r.count(none, 0)
		r.coalescer.flush()
	}); n != 0 {
		t.Errorf("%v allocations for receiving", n)
	}
	if n := tunnel.Stats().Peers[0].Received.Packets; n != 101*40 {
		t.Errorf("received %d packets", n)
	}
}

type silentSocket struct{ fakeSocket }

func (*silentSocket) Send(ms []Message) (int, error) { return len(ms), nil }
func (*silentSocket) MaxSegments() int               { return 64 }

type silentDevice struct{ *fakeDevice }

func (*silentDevice) Write(Offload, [][]byte) error { return nil }
