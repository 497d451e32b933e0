package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/lab"
)

const udpConfig = `{"Network":"10.42.0.0/16"}` // no Backend: udp

// TestUDP is the main job with the default backend.
func TestUDP(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, udpConfig)
	c.checkMTU(1472)
	c.transfer(20 << 20)
	h := c.Hosts[0]
	if _, e := c.lease(h); e.Value != fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null}`, h.Addr) {
		t.Errorf("lease is %s", e.Value)
	}
	s := c.snapshot(h, "10.42.0.0/16", "flannel0")
	for _, want := range []string{"link flannel0 mtu 1472 type tun", fmt.Sprintf("addr %s/32 dev flannel0\n", c.subnet(h).Addr()), "route 10.42.0.0/16 dev flannel0 scope global\n"} {
		if !strings.Contains(s.Text(), want) {
			t.Errorf("no %q in\n%s", want, s.Text())
		}
	}
}

// TestUDPRestart: by hand, device and socket go with the daemon; by systemd, they
// outlive it, and packets wait in both.
func TestUDPRestart(t *testing.T) {
	// Not parallel: it measures times.
	for _, r := range []struct {
		name    string
		signal  syscall.Signal
		systemd bool
		outage  time.Duration
	}{
		{"by hand after SIGTERM", syscall.SIGTERM, false, 300 * time.Millisecond},
		{"by hand after SIGKILL", syscall.SIGKILL, false, 300 * time.Millisecond},
		{"by systemd after SIGTERM", syscall.SIGTERM, true, 0},
		{"by systemd after SIGKILL", syscall.SIGKILL, true, 0},
	} {
		t.Run(r.name, func(t *testing.T) {
			c := startCluster(t, 2, udpConfig)
			h := c.Hosts[0]
			index := c.iface(h, "flannel0").Index
			daemon := h.Flanneld()
			var outages []time.Duration
			for range 3 {
				p := c.pinger(c.containers[0], c.containers[1])
				c.replies(p, 10)
				var kept []*os.File
				if r.systemd {
					if kept = daemon.Stored(); len(kept) != 2 {
						t.Fatalf("systemd was given %d descriptors", len(kept))
					}
				}
				c.end(daemon, r.signal)
				start := time.Now()
				daemon = c.startCommand(h, lab.Command{Stored: kept})
				ready := time.Since(start)
				c.replies(p, 10)
				s := p.Stop()
				t.Logf("ready %v after exec; lost %d of %d pings, for %v", ready.Round(time.Millisecond), s.Lost, s.Sent, s.Outage)
				if r.outage == 0 && s.Lost > 0 {
					t.Errorf("lost %d of %d pings, for %v", s.Lost, s.Sent, s.Outage)
				}
				outages = append(outages, s.Outage)
			}
			if best := slices.Min(outages); best > slow(r.outage) { // of three: a busy machine starts programs late
				t.Errorf("no traffic for %v at best", best)
			}
			if r.systemd && c.iface(h, "flannel0").Index != index {
				t.Error("the device is another one")
			}
			c.must(daemon.Kill(c.ctx))
		})
	}
}

// replies waits for n more replies.
func (c *cluster) replies(p *lab.Pinger, n int) {
	c.t.Helper()
	before := p.Stats().Received
	c.within(5*time.Second, "replies", func() error {
		if got := p.Stats().Received - before; got < n {
			return fmt.Errorf("%d of %d", got, n)
		}
		return nil
	})
}

// TestUDPRepair: the same damages as for a kernel device.
func TestUDPRepair(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 2, udpConfig)
	h, a, b := c.Hosts[0], c.containers[0], c.containers[1]
	// A new device has a new link-local address; that is the kernel's.
	held := func() string {
		s := c.snapshot(h, "10.42.0.0/16", "flannel0")
		maps.DeleteFunc(s.Addrs, func(a dataplane.Addr, _ struct{}) bool { return a.Prefix.Addr().Is6() })
		return s.Text()
	}
	before := held()
	for _, d := range damages {
		if strings.HasPrefix(d.name, "bridge") || strings.HasPrefix(d.name, "ip neigh") || strings.HasPrefix(d.name, "ip link set address") {
			continue // a TUN device has none of it
		}
		c.onLink(h, "flannel0", d.do)
		c.within(5*time.Second, d.name, func() error {
			if now := held(); now != before {
				return fmt.Errorf("the kernel holds\n%s", now)
			}
			_, err := a.Ping(c.ctx, b.Addr, lab.PingOptions{Timeout: 100 * time.Millisecond})
			return err
		})
	}
}
