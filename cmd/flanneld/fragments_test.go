package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// fragmentMemory returns the size of the fragment queues of a host's kernel, and its limit, in
// bytes.
func (c *cluster) fragmentMemory(h *lab.Host) (held, most int) {
	c.t.Helper()
	c.must(h.Do(func() error {
		stat, err := os.ReadFile("/proc/thread-self/net/sockstat")
		if err != nil {
			return err
		}
		_, text, _ := strings.Cut(string(stat), "FRAG: ")
		if _, err := fmt.Sscanf(text, "inuse %d memory %d", new(int), &held); err != nil {
			return err
		}
		limit, err := os.ReadFile("/proc/sys/net/ipv4/ipfrag_high_thresh")
		if err == nil {
			most, err = strconv.Atoi(strings.TrimSpace(string(limit)))
		}
		return err
	}))
	return held, most
}

// TestOuterFragments: what comes to the tunnel in pieces is taken when it is whole. Pieces that
// never become whole, overlap or claim too much cost the kernel no more than its limit, and the
// daemon and the network nothing.
func TestOuterFragments(t *testing.T) {
	// Not parallel: the flood uses all CPUs.
	for _, backend := range []struct {
		config string
		port   uint16
	}{{udpConfig, 8285}, {vxlanConfig, 8472}} {
		t.Run(fmt.Sprint(backend.port), func(t *testing.T) {
			c := newCluster(t, lab.Options{Hosts: 3})
			c.put("config", backend.config)
			c.startEach(lab.Command{Args: []string{"-ip-masq=true"}}, c.Hosts[:2]...)
			c.connect(c.Hosts[:2]...)
			h, peer, victim := c.Hosts[0], c.Hosts[1].Addr, c.containers[0]
			received := c.listener(&victim.Endpoint, 7777)
			f := c.forger(c.Hosts[2])
			outer := func(text string) []byte {
				p := inner(c.containers[1].Addr, victim.Addr, 7777, text)
				if backend.port == 8472 {
					p = inVXLAN(1, c.iface(h, "flannel.1").HardwareAddr, p)
				}
				return inUDP(backend.port, backend.port, p)
			}

			for id, name := range []string{"in order", "last first", "twice", "the first has a port and no more"} {
				name += strings.Repeat(".", 40)
				whole := outer(name)
				type piece struct {
					at  int
					end int
				}
				pieces := []piece{{0, 24}, {24, 48}, {48, len(whole)}}
				switch id {
				case 1:
					slices.Reverse(pieces)
				case 2:
					pieces = []piece{{0, 24}, {0, 24}, {24, 48}, {48, len(whole)}}
				case 3:
					pieces = []piece{{0, 8}, {8, 16}, {16, len(whole)}}
				}
				for _, p := range pieces {
					f.fragment(peer, h.Addr, uint16(9000+id), p.at/8, p.end < len(whole), whole[p.at:p.end])
				}
				if got := received(2 * time.Second); got != name && id != 2 { // a kernel may drop what it has a piece of twice
					t.Errorf("%s: received %q", name, got)
				}
			}

			daemon := h.Flanneld()
			before := c.usage(daemon)
			ping := c.pinger(victim, c.containers[1])
			seed := rand.Uint64()
			r := rand.New(rand.NewPCG(seed, 0))
			held := 0
			for i := range 30000 {
				from := []netip.Addr{peer, c.Hosts[2].Addr, netip.AddrFrom4([4]byte{172, 31, 200, byte(100 + i%100)})}[i%3]
				part := make([]byte, 8*(1+r.IntN(170)))
				for j := range part {
					part[j] = byte(r.Uint32())
				}
				copy(part, inUDP(backend.port, backend.port, make([]byte, 1400))[:8])
				id := uint16(r.Uint32())
				switch i % 4 {
				case 0: // never the rest
					f.fragment(from, h.Addr, id, 0, true, part)
				case 1: // never the first
					f.fragment(from, h.Addr, id, 1+r.IntN(180), r.IntN(2) == 0, part)
				case 2: // overlapping
					f.fragment(from, h.Addr, id, 0, true, part)
					f.fragment(from, h.Addr, id, max(0, len(part)/8-1-r.IntN(20)), r.IntN(2) == 0, part)
				case 3: // beyond 65,535 bytes
					f.fragment(from, h.Addr, id, 0x1fff-r.IntN(4), false, part)
				}
				if i%1000 == 0 {
					now, most := c.fragmentMemory(h)
					// One piece is taken when the limit is not yet reached.
					if held = max(held, now); now > most+1<<20 {
						t.Fatalf("seed %d: the kernel holds %d bytes of fragments, and may hold %d", seed, now, most)
					}
				}
			}
			if s := ping.Stop(); s.Lost > s.Sent/20 {
				t.Errorf("seed %d: lost %d of %d pings, for %v", seed, s.Lost, s.Sent, s.Outage)
			}
			after := c.usage(daemon)
			if grown := after.RSS - before.RSS; grown > 16<<20 {
				t.Errorf("seed %d: %d bytes more resident", seed, grown)
			}
			t.Logf("the kernel held %d bytes of fragments", held)
			if daemon.Exited() {
				t.Error("the daemon is dead")
			}
			c.waitAllPairs()
			c.transfer(8 << 20)
		})
	}
}
