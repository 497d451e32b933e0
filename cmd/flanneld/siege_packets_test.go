package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
)

// lost is nil for what may become of a datagram on its way.
func lost(err error) error {
	for _, passing := range []error{unix.ECONNREFUSED, unix.ENOBUFS, unix.EPERM, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EMSGSIZE} {
		if errors.Is(err, passing) {
			return nil
		}
	}
	return err
}

const trapPort = 7777

// A trap is where injected packets are addressed to.
type trap struct {
	mu   sync.Mutex
	seen map[string]int
}

func (s *siege) setTrap(k *lab.Container) *trap {
	s.t.Helper()
	var conn *net.UDPConn
	s.must(k.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: k.Addr.AsSlice(), Port: trapPort})
		return err
	}))
	s.t.Cleanup(func() { conn.Close() })
	t := &trap{seen: map[string]int{}}
	go func() {
		b := make([]byte, 2048)
		for {
			n, err := conn.Read(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				t.mu.Lock()
				t.seen[string(b[:n])]++
				t.mu.Unlock()
			}
		}
	}()
	return t
}

// caught returns the forged datagrams that have arrived, or nil.
func (t *trap) caught() map[string]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.seen) == 0 {
		return nil
	}
	return t.seen
}

// tunnelled puts a packet into what the tunnel of a host takes.
func (s *siege) tunnelled(to *besieged, packet []byte) []byte {
	if s.backend == "vxlan" {
		return inVXLAN(1, to.mac, packet)
	}
	return packet
}

// injectFromStranger is a host that has no lease.
func (s *siege) injectFromStranger(ctx context.Context, n *atomic.Int64) error {
	if s.port == 0 {
		return nil
	}
	return s.inject(ctx, n, &s.stranger.Endpoint, "from a stranger", s.port)
}

// injectFromPeer is a program on a peer that forges packets of any container. With VXLAN it may be
// the peer itself, whose kernel sends from any port.
func (s *siege) injectFromPeer(ctx context.Context, n *atomic.Int64) error {
	if s.backend != "udp" {
		return nil
	}
	return s.inject(ctx, n, &s.daemons[4].Endpoint, "from a peer's other port", 0)
}

// injectFromContainer sends from a container. After masquerading the packets have the host's
// address and may keep their source port, which is the tunnel's here.
func (s *siege) injectFromContainer(ctx context.Context, n *atomic.Int64) error {
	if s.port == 0 {
		return nil
	}
	return sideBySide(2, func(i int) error {
		return s.inject(ctx, n, &s.evil.Endpoint, fmt.Sprintf("from a container's port %d", i*s.port), i*s.port)
	})
}

// inject sends to the tunnels of all hosts but the last, on which the sender is.
func (s *siege) inject(ctx context.Context, n *atomic.Int64, from *lab.Endpoint, text string, port int) error {
	var conn *net.UDPConn
	err := from.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: port})
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	var datagrams [][]byte
	for i, to := range s.daemons[:4] {
		for _, claimed := range []*besieged{s.daemons[4], s.daemons[(i+1)%4]} {
			datagrams = append(datagrams, s.tunnelled(to, inner(claimed.container.Addr, to.container.Addr, trapPort, text)))
		}
	}
	i := 0
	return paced(ctx, 200, func() error {
		to := s.daemons[i/2%4].addr
		_, err := conn.WriteToUDPAddrPort(datagrams[i%len(datagrams)], netip.AddrPortFrom(to, uint16(s.port)))
		i++
		n.Add(1)
		return lost(err)
	})
}

// garbage sends the kinds of packets of testFlood from an outside host to the tunnels, as fast as
// the sockets' buffers, which pings share, permit.
func (s *siege) garbage(ctx context.Context, n *atomic.Int64) error {
	if s.port == 0 {
		return nil
	}
	var conns []net.Conn
	for _, b := range s.daemons {
		conn, err := s.stranger.NS.DialContext(ctx, "udp4", netip.AddrPortFrom(b.addr, uint16(s.port)).String())
		if err != nil {
			return err
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	r := rand.New(rand.NewPCG(1, 2))
	i := 0
	return paced(ctx, 1000, func() error {
		to := s.daemons[i%5]
		var b []byte
		switch i / 5 % 4 {
		case 0:
			b = randomBytes(r, r.IntN(1400))
		case 1:
			b = s.tunnelled(to, randomBytes(r, 28+r.IntN(1000)))
		case 2:
			b = s.tunnelled(to, append(inner(s.containers[(i+1)%5].Addr, to.container.Addr, 9, "")[:20], randomBytes(r, 50)...))
		case 3:
			b = randomBytes(r, 30000) // far more than the MTU
		}
		_, err := conns[i%5].Write(b)
		i++
		n.Add(1)
		return lost(err)
	})
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// fragments sends outer fragments: some are incomplete, some form a datagram, and some have wrong
// offsets.
func (s *siege) fragments(ctx context.Context, n *atomic.Int64) error {
	if s.port == 0 {
		return nil
	}
	f := s.forger(s.stranger)
	r := rand.New(rand.NewPCG(3, 4))
	id, i := uint16(0), 0
	return paced(ctx, 500, func() error {
		to := s.daemons[i%5].addr
		offset, more := 0, true
		switch i / 5 % 4 {
		case 0: // the first of none
			id++
		case 1, 2: // two that are one
			if i/5%4 == 1 {
				id++
			} else {
				offset, more = 64/8, false
			}
		case 3: // one that lies over the end
			id++
			offset = 65512 / 8
		}
		payload := randomBytes(r, 64)
		if offset == 0 {
			binary.BigEndian.PutUint16(payload[2:], uint16(s.port))
			binary.BigEndian.PutUint16(payload[4:], 128)
			binary.BigEndian.PutUint16(payload[6:], 0)
		}
		i++
		n.Add(1)
		return lost(f.fragment(s.stranger.Addr, to, id, offset, more, payload))
	})
}
