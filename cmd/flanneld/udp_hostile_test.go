package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"flanneld/pkg/lab"
)

// TestUDPIntegrity moves a lot both ways at once.
func TestUDPIntegrity(t *testing.T) {
	// Not parallel: it uses all CPUs.
	c := startCluster(t, 2, udpConfig)
	c.bothWays(1 << 30)
}

func (c *cluster) bothWays(bytes int64) {
	c.t.Helper()
	c.must(sideBySide(2, func(i int) error {
		from, to := c.containers[i], c.containers[1-i]
		s, err := from.Transfer(c.ctx, &to.Endpoint, bytes)
		c.t.Logf("%s to %s: %.2f Gbit/s", from.Name, to.Name, s.BitsPerSecond()/1e9)
		return err
	}))
}

// TestUDPSmallPath: between the hosts is a link that carries less than the
// uplinks do. Datagrams are cut in pieces there rather than lost.
func TestUDPSmallPath(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 2, Racks: 2})
	c.must(c.Fabric.Do(func() error {
		routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
		for _, r := range routes {
			if r.Scope == netlink.SCOPE_LINK {
				r.MTU, r.MTULock = 1300, true
				r.Flags = 0 // maybe "linkdown" still, which no request may say
				err = errors.Join(err, netlink.RouteReplace(&r))
			}
		}
		return err
	}))
	c.join(udpConfig)
	c.checkMTU(1472)
	c.bothWays(64 << 20)
}

// TestUDPLetsNoOneIn: a host that is no peer, a local user of a peer, and a container there
// that is masqueraded reach no container; with AllowUnknownSources the first two do.
func TestUDPLetsNoOneIn(t *testing.T) {
	// Not parallel: the flood uses all CPUs.
	for _, open := range []bool{false, true} {
		t.Run(fmt.Sprintf("AllowUnknownSources=%t", open), func(t *testing.T) {
			c := newCluster(t, lab.Options{Hosts: 3})
			c.put("config", fmt.Sprintf(`{"Network":"10.42.0.0/16","Backend":{"Type":"udp","AllowUnknownSources":%t}}`, open))
			c.startEach(lab.Command{Args: []string{"-ip-masq=true"}}, c.Hosts[:2]...)
			c.connect(c.Hosts[:2]...)
			stranger, victim, other := c.Hosts[2], c.containers[0], c.containers[1]
			received := c.listener(&victim.Endpoint, 7777)
			port := netip.AddrPortFrom(c.Hosts[0].Addr, 8285)
			fromStranger := c.dial(stranger, port)
			for _, attacker := range []struct {
				name  string
				conn  net.Conn
				never bool
			}{
				{"a stranger", fromStranger, false},
				{"a local user of a peer", c.dial(c.Hosts[1], port), false},
				{"a container of a peer", c.dialFrom(&other.Endpoint, 0, port), true},
				{"a container of a peer, from the tunnel's port", c.dialFrom(&other.Endpoint, 8285, port), true},
			} {
				for _, p := range []struct {
					what string
					from netip.Addr
				}{
					{"as a container", other.Addr},
					{"as a routed client", netip.MustParseAddr("203.0.113.9")},
				} {
					_, err := attacker.conn.Write(inner(p.from, victim.Addr, 7777, p.what))
					if !attacker.never { // the answer to the previous one may be an ICMP error
						c.must(err)
					}
					want := ""
					if open && !attacker.never {
						want = p.what
					}
					if got := received(200 * time.Millisecond); got != want {
						t.Errorf("%s %s: received %q, want %q", attacker.name, p.what, got, want)
					}
				}
			}
			testFlood(c, fromStranger)
		})
	}
}

// testFlood sends garbage to the port of the first host, without any effect.
func testFlood(c *cluster, garbage net.Conn) {
	c.t.Helper()
	daemon := c.Hosts[0].Flanneld()
	before := c.usage(daemon)
	p := c.pinger(c.containers[0], c.containers[1])
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	own := c.containers[0].Addr
	for i := range 20000 {
		b := make([]byte, r.IntN(2000))
		for j := range b {
			b[j] = byte(r.Uint32())
		}
		switch {
		case i%4 == 0 && len(b) > 28: // looks like a packet for us
			copy(b, inner(netip.MustParseAddr("10.42.1.1"), own, 9, ""))
			binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		case i%4 == 1:
			b = append(make([]byte, 60000), b...) // far more than the MTU
		}
		garbage.Write(b) // refused or lost is fine
	}
	if s := p.Stop(); s.Lost > s.Sent/20 {
		// The flood and the pings share one receive buffer; what counts is that
		// nothing breaks.
		c.t.Errorf("seed %d: lost %d of %d pings, for %v", seed, s.Lost, s.Sent, s.Outage)
	}
	after := c.usage(daemon)
	if grown := after.RSS - before.RSS; grown > 16<<20 {
		c.t.Errorf("seed %d: %d bytes more resident", seed, grown)
	}
	c.waitAllPairs()
}
