package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/wait"
	"flanneld/pkg/tunnel"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// transfer sends n bytes each way at once; both sides compare SHA-256.
func (p *pair) transfer(t *testing.T, ctx context.Context, n int64) {
	t.Helper()
	n /= int64(wait.Slow())
	var both sync.WaitGroup
	both.Go(func() {
		if _, err := p.ca.Transfer(ctx, &p.cb.Endpoint, n); err != nil {
			t.Error(err)
		}
	})
	both.Go(func() {
		if _, err := p.cb.Transfer(ctx, &p.ca.Endpoint, n); err != nil {
			t.Error(err)
		}
	})
	both.Wait()
}

// stop ends both ends, a first, and returns what they have counted.
func (p *pair) stop(t *testing.T, ctx context.Context) (a, b tunnel.Stats) {
	t.Helper()
	// One after the other: what the first has sent, the second has received.
	for i, stats := range []*tunnel.Stats{&a, &b} {
		proc := []*lab.Process{p.procA, p.procB}[i]
		if code, err := proc.Stop(ctx); err != nil || code != 0 {
			t.Fatalf("end of the tunnel: exit code %d, %v\n%s", code, err, proc.Logs())
		}
		text := lastLine(proc)
		if err := json.Unmarshal([]byte(text), stats); err != nil {
			t.Fatalf("%v in %q", err, text)
		}
	}
	return a, b
}

func TestTransferWithAllOffloads(t *testing.T) {
	offloads := func(i int) tunnel.Offloads {
		return tunnel.Offloads{TUN: i&1 != 0, UDPSegment: i&2 != 0, UDPGRO: i&4 != 0}
	}
	var cases [][2]tunnel.Offloads
	for i := range 8 {
		cases = append(cases, [2]tunnel.Offloads{offloads(i), offloads(7 - i)})
	}
	cases = append(cases, [2]tunnel.Offloads{offloads(7), offloads(7)}, [2]tunnel.Offloads{offloads(0), offloads(0)})
	ctx, l := newLab(t, len(cases), 4*time.Minute)
	for i, c := range cases {
		t.Run(fmt.Sprintf("%+v %+v", c[0], c[1]), func(t *testing.T) {
			p := newPair(t, l, i, 1472)
			p.start(t, c[0], c[1])
			p.wait(t, ctx)
			p.transfer(t, ctx, 4<<20)
			a, b := p.stop(t, ctx)
			for _, s := range []tunnel.Stats{a, b} {
				for _, d := range s.Drops {
					if d.Packets > 0 && d.Reason != tunnel.NotIPv4 { // router solicitations
						t.Errorf("%s: %d packets dropped", d.Reason, d.Packets)
					}
				}
			}
			// One was once missing. The last ones may still lie in the socket when b ends; none is
			// counted twice.
			if sent, received := a.Peers[0].Sent.Packets, b.Peers[0].Received.Packets; received > sent || sent-received > 10 {
				t.Errorf("%d packets sent, %d received", sent, received)
			}
		})
	}
}

// TestSmallPathMTU lets a router on the way, or the sender's own route, have a smaller MTU than the
// device allows for.
func TestSmallPathMTU(t *testing.T) {
	t.Run("route", func(t *testing.T) {
		ctx, l := newLab(t, 1, time.Minute)
		p := newPair(t, l, 0, 1472)
		for _, side := range [][2]*lab.Host{{p.a, p.b}, {p.b, p.a}} {
			err := side[0].Do(func() error {
				uplink, err := netlink.LinkByName(side[0].Uplink)
				if err != nil {
					return err
				}
				dst := &net.IPNet{IP: side[1].Addr.AsSlice(), Mask: net.CIDRMask(32, 32)}
				return netlink.RouteAdd(&netlink.Route{LinkIndex: uplink.Attrs().Index, Dst: dst, MTU: 1300})
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		p.start(t, tunnel.AllOffloads(), tunnel.AllOffloads())
		p.wait(t, ctx)
		p.transfer(t, ctx, 4<<20)
		if a, b := p.stop(t, ctx); !a.Peers[0].Unsegmented || !b.Peers[0].Unsegmented {
			t.Error("segmentation was not given up")
		}
	})
	t.Run("router", func(t *testing.T) {
		ctx, l := newLabWith(t, lab.Options{Hosts: 2, Racks: 2}, time.Minute)
		err := l.Fabric.Do(func() error {
			for _, name := range []string{"rack1", "rack2"} {
				bridge, err := netlink.LinkByName(name)
				if err != nil {
					return err
				}
				if err := netlink.LinkSetMTU(bridge, 1300); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		p := newPair(t, l, 0, 1472)
		p.start(t, tunnel.AllOffloads(), tunnel.AllOffloads())
		p.wait(t, ctx)
		p.transfer(t, ctx, 4<<20)
		p.stop(t, ctx)
	})
}

// TestICMPReachesContainers sends what must be answered by an ICMP error.
func TestICMPReachesContainers(t *testing.T) {
	ctx, l := newLab(t, 1, time.Minute)
	p := newPair(t, l, 0, 1472)
	p.start(t, tunnel.AllOffloads(), tunnel.AllOffloads())
	p.wait(t, ctx)

	for _, test := range []struct {
		to         netip.Addr
		ttl        int
		from       netip.Addr
		kind, code byte
	}{
		{netip.MustParseAddr("10.77.200.1"), 64, p.ownA.Addr(), 3, 0}, // no peer has it
		{p.cb.Addr, 2, p.ownA.Addr(), 11, 0},                          // ends in the sending tunnel
		{p.cb.Addr, 3, p.ownB.Addr(), 11, 0},                          // ends in the receiving one
	} {
		from, message, err := p.icmpError(test.to, test.ttl)
		if err != nil || from != test.from || message[0] != test.kind || message[1] != test.code {
			t.Errorf("echo to %s with TTL %d: %x from %s, %v; want type %d code %d from %s", test.to, test.ttl, message, from, err,
				test.kind, test.code, test.from)
		}
	}
	p.stop(t, ctx)
}

// icmpError sends an echo request and returns the error message that comes back.
func (p *pair) icmpError(to netip.Addr, ttl int) (from netip.Addr, message []byte, err error) {
	var conn net.PacketConn
	err = p.ca.Do(func() (err error) {
		conn, err = net.ListenPacket("ip4:1", p.ca.Addr.String())
		return err
	})
	if err != nil {
		return from, nil, err
	}
	defer conn.Close()
	if err := ipv4.NewPacketConn(conn).SetTTL(ttl); err != nil {
		return from, nil, err
	}
	echo := []byte{8, 0, 0xf7, 0xfd, 0, 1, 0, 1}
	if _, err := conn.WriteTo(echo, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return from, nil, err
	}
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	for b := make([]byte, 1500); ; {
		n, sender, err := conn.ReadFrom(b)
		if err != nil {
			return from, []byte{0, 0}, err
		}
		if n > 1 && (b[0] == 3 || b[0] == 11) {
			from, _ = netip.AddrFromSlice(sender.(*net.IPAddr).IP.To4())
			return from, b[:n], nil
		}
	}
}

// TestStranger sends 20,000 datagrams to the port from a host that is no peer.
func TestStranger(t *testing.T) {
	ctx, l := newLabWith(t, lab.Options{Hosts: 3}, 2*time.Minute)
	p := newPair(t, l, 0, 1472)
	p.start(t, tunnel.AllOffloads(), tunnel.AllOffloads())
	p.wait(t, ctx)
	before, err := p.procB.Usage()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.Hosts[2].NS.DialContext(ctx, "udp4", netip.AddrPortFrom(p.b.Addr, 8285).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	pinger, err := p.ca.StartPinger(p.cb.Addr, 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	const datagrams = 20000
	for i := range datagrams {
		b := make([]byte, []int{rand.IntN(20), 20 + rand.IntN(1400), 2000 + rand.IntN(60000)}[min(2, i%20/9)])
		for j := range min(64, len(b)) {
			b[j] = byte(rand.Uint32())
		}
		if i%2 == 0 && len(b) >= 20 {
			b[0], b[2], b[3], b[8] = 0x45, byte(len(b)>>8), byte(len(b)), 64
			copy(b[12:], []byte{10, 77, 1, 2, 10, 77, 2, 2}) // as if from the peer's container
		}
		for conn != nil {
			if _, err := conn.Write(b); !errors.Is(err, unix.ENOBUFS) {
				break
			}
		}
		if i%4 == 0 { // so that the kernel's own queues don't overflow
			p.cb.Ping(ctx, p.ca.Addr, lab.PingOptions{})
		}
	}
	if s := pinger.Stop(); s.Lost > 0 {
		t.Errorf("%d of %d pings lost", s.Lost, s.Sent)
	}
	p.transfer(t, ctx, 1<<20)
	after, err := p.procB.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if grown := after.RSS - before.RSS; grown > 8<<20 {
		t.Errorf("memory grew by %d bytes", grown)
	}
	_, b := p.stop(t, ctx)
	i := slices.IndexFunc(b.Drops, func(d tunnel.Drop) bool { return d.Reason == tunnel.UnknownSource })
	if n := b.Drops[i].Packets; n < datagrams*99/100 {
		t.Errorf("%d of %d datagrams counted as a stranger's: %+v", n, datagrams, b.Drops)
	}
}
