package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
)

// receiveBatch is the maximum number of datagrams of a Receive.
const receiveBatch = 16

// A receiver forwards packets from the peers to the device.
type receiver struct {
	tunnel    *Tunnel
	device    Device
	socket    Socket
	icmp      icmpSender
	coalescer coalescer
	datagrams []Datagram

	state *state // of this batch
	host  uint32 // sender of the present datagram
	port  uint16 // source port of the present datagram
	last  struct {
		pair uint64
		peer int32
		ok   bool
	}
	batch struct { // consecutive packets of one peer that are not counted yet
		peer            int32
		packets, octets int
	}
}

func newReceiver(t *Tunnel, d Device, s Socket, w io.Writer) *receiver {
	r := &receiver{
		tunnel: t, device: d, socket: s,
		icmp: newICMPSender(t, w), datagrams: make([]Datagram, receiveBatch),
	}
	tcp, udp := d.SuperPackets()
	r.coalescer.init(tcp, udp, r.write)
	return r
}

func (r *receiver) run() error {
	for {
		n, err := r.socket.Receive(r.datagrams)
		if err != nil {
			return fmt.Errorf("receive datagrams: %w", err)
		}
		r.state = r.tunnel.state.Load()
		r.batch.peer = none
		for i := range r.datagrams[:n] {
			if err := r.datagram(&r.datagrams[i]); err != nil {
				return err
			}
		}
		r.count(none, 0)
		if err := r.coalescer.flush(); err != nil {
			return err
		}
		// The calls above do not yield the processor, which may be the only one of the program. If
		// it is not, yielding costs 13 % of the processor time of a TCP stream and adds nothing to
		// a round trip.
		runtime.Gosched()
	}
}

// datagram splits a datagram that the kernel has merged into packets.
func (r *receiver) datagram(d *Datagram) error {
	r.host, r.port, r.last.ok = word(d.Source.Addr()), d.Source.Port(), false
	if d.Truncated {
		r.tunnel.counters.in.drop(Oversize, 1)
		return nil
	}
	size := d.SegmentSize
	if size <= 0 {
		size = len(d.Data)
	}
	for data := d.Data; ; {
		n := min(size, len(data))
		if err := r.packet(data[:n:n]); err != nil {
			return err
		}
		if data = data[n:]; len(data) == 0 {
			return nil
		}
	}
}

// packet filters one packet and passes it to the coalescer.
func (r *receiver) packet(packet []byte) error {
	counters := &r.tunnel.counters.in
	if headerLen(packet) == 0 {
		// An invalid packet of an unknown host counts as UnknownSource.
		if _, known := r.state.table.hosts[r.host]; !known && !r.state.table.overlay.AllowUnknownSources {
			counters.drop(UnknownSource, 1)
		} else {
			counters.drop(dropReason(packet), 1)
		}
		return nil
	}
	if pair := hosts(packet); !r.last.ok || r.last.pair != pair {
		peer, why, ok := r.state.table.admit(r.host, r.port, source(packet), destination(packet))
		if !ok {
			counters.drop(why, 1)
			return nil
		}
		r.last.pair, r.last.peer, r.last.ok = pair, peer, true
	}
	r.count(r.last.peer, len(packet))
	switch {
	case !headerIntact(packet):
		counters.drop(BadChecksum, 1)
		return nil
	case len(packet) > r.state.table.overlay.MTU:
		counters.drop(Oversize, 1)
		if binary.BigEndian.Uint16(packet[offFragment:])&flagDF != 0 {
			mtu := uint16(r.state.table.overlay.MTU)
			r.icmp.send(r.state, icmpError{icmpUnreachable, codeFragmentation, mtu}, packet)
		}
		return nil
	case packet[offTTL] <= 1:
		counters.drop(TTLExceeded, 1)
		r.icmp.send(r.state, icmpError{kind: icmpTimeExceeded}, packet)
		return nil
	}
	decrementTTL(packet)
	return r.coalescer.add(packet)
}

// count counts packets of one peer, and updates the counters when the peer changes.
func (r *receiver) count(peer int32, octets int) {
	b := &r.batch
	if b.peer != peer {
		if b.peer != none {
			r.state.peers[b.peer].rcvd.add(b.packets, b.octets)
			r.tunnel.counters.in.all.add(b.packets, b.octets)
		}
		b.peer, b.packets, b.octets = peer, 0, 0
	}
	b.packets++
	b.octets += octets
}

// write writes a packet, or a super-packet of len(parts) packets, to the device.
func (r *receiver) write(o Offload, parts [][]byte) error {
	switch err := r.device.Write(o, parts); {
	case err == nil:
	case errors.Is(err, ErrDeviceGone):
		return fmt.Errorf("write to device: %w", err)
	default:
		r.tunnel.counters.in.drop(DeviceRefused, len(parts))
	}
	return nil
}
