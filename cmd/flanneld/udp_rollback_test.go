package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"flanneld/pkg/lab"
)

// ownCopy is a copy of the daemon that a test may replace.
func (c *cluster) ownCopy() string {
	c.t.Helper()
	path := filepath.Join(c.t.TempDir(), "flanneld")
	c.replace(path, true)
	return path
}

// replace puts another build of this daemon, or another program, where one was.
func (c *cluster) replace(path string, ours bool) {
	c.t.Helper()
	content := []byte("#!/bin/sh\nexit 1\n")
	if ours {
		from, err := built()
		c.must(err)
		content, err = os.ReadFile(from)
		c.must(err)
	}
	c.must(os.WriteFile(path+".new", content, 0o755))
	c.must(os.Rename(path+".new", path))
}

// oldUDP starts the original's udp backend on the first host, for the others as peers.
func (c *cluster) oldUDP() *lab.OriginalUDP {
	c.t.Helper()
	h, peers := c.Hosts[0], map[netip.Prefix]netip.Addr{}
	for _, p := range c.Hosts[1:] {
		peers[c.subnet(p)] = p.Addr
	}
	var old *lab.OriginalUDP
	// A program that this test process starts just now has a copy of a stored socket or device until
	// its exec.
	c.within(time.Second, "the port and the name of the device are free", func() error {
		return h.Do(func() (err error) {
			if _, err := netlink.LinkByName("flannel0"); err == nil {
				return errors.New("there is a flannel0")
			}
			old, err = lab.StartOriginalUDP(netip.MustParsePrefix("10.42.0.0/16"), c.subnet(h), h.Addr, 1500, peers)
			return err
		})
	})
	c.t.Cleanup(func() { old.Close() })
	return old
}

// TestUDPRollback replaces the daemon by the original in every way that people do it: the original
// gets the device of its name and the port, and containers reach each other again.
func TestUDPRollback(t *testing.T) {
	t.Parallel()
	for _, r := range []struct {
		name    string
		signal  syscall.Signal
		replace bool // the file, before the signal
		restart bool // by systemd, which keeps what is stored
		before  bool // an earlier release has left its persistent device
	}{
		{name: "stop and start", signal: syscall.SIGTERM},
		{name: "replace, stop and start", signal: syscall.SIGTERM, replace: true},
		{name: "replace and restart by systemd", signal: syscall.SIGTERM, replace: true, restart: true},
		{name: "killed", signal: syscall.SIGKILL, replace: true},
		{name: "after an upgrade from a persistent device", signal: syscall.SIGTERM, before: true},
	} {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, lab.Options{Hosts: 2})
			c.put("config", udpConfig)
			h := c.Hosts[0]
			if r.before {
				c.must(h.Do(func() error {
					return netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "flannel0"}, Mode: netlink.TUNTAP_MODE_TUN})
				}))
			}
			path := c.ownCopy()
			daemon := c.launchCommand(h, lab.Command{Path: path})
			c.launch(c.Hosts[1])
			c.must(daemon.WaitReady(c.ctx))
			c.must(c.Hosts[1].Flanneld().WaitReady(c.ctx))
			c.connect()
			p := c.pinger(c.containers[0], c.containers[1])
			c.replies(p, 10)

			if r.replace {
				c.replace(path, false)
			}
			if r.restart {
				daemon.KeepStored()
			}
			start := time.Now()
			c.end(daemon, r.signal)
			for _, f := range daemon.Stored() {
				t.Errorf("systemd hands %s to the old binary", f.Name())
				defer f.Close()
			}
			old := c.oldUDP()
			between := time.Since(start)
			if old.Device != "flannel0" {
				t.Errorf("the old daemon has %s", old.Device)
			}
			c.replies(p, 10)
			s := p.Stop()
			t.Logf("the old one runs %v after the signal; lost %d of %d pings, for %v", between.Round(time.Millisecond), s.Lost, s.Sent, s.Outage)
			if s.Outage > between+slow(500*time.Millisecond) {
				t.Errorf("no traffic for %v", s.Outage)
			}

			// And forwards again.
			c.must(old.Close())
			c.start(h)
			c.waitAllPairs()
			c.iface(h, "flannel0")
		})
	}
}

// TestUDPUpgradeKeepsTunnel: another build of this daemon in its place knows what systemd hands to
// it.
func TestUDPUpgradeKeepsTunnel(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 2, udpConfig)
	h := c.Hosts[0]
	c.must(h.Flanneld().Kill(c.ctx))
	path := c.ownCopy()
	daemon := c.startCommand(h, lab.Command{Path: path})
	c.waitAllPairs()
	index := c.iface(h, "flannel0").Index
	p := c.pinger(c.containers[0], c.containers[1])
	c.replies(p, 10)
	c.replace(path, true)
	daemon.KeepStored()
	c.stop(daemon)
	kept := daemon.Stored()
	if len(kept) != 2 {
		t.Fatalf("%d descriptors are stored", len(kept))
	}
	c.startCommand(h, lab.Command{Path: path, Stored: kept})
	c.replies(p, 10)
	c.lossless(p)
	if c.iface(h, "flannel0").Index != index {
		t.Error("the device is another one")
	}
}

// TestUDPScopeOfRoute: an earlier release, or ip(8), has added the route with another scope than
// the original.
func TestUDPScopeOfRoute(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, udpConfig)
	h := c.Hosts[0]
	scope := func() (s netlink.Scope, err error) {
		err = h.Do(func() error {
			link, err := netlink.LinkByName("flannel0")
			if err != nil {
				return err
			}
			routes, err := netlink.RouteList(link, netlink.FAMILY_V4)
			for _, r := range routes {
				s = r.Scope
			}
			if err == nil && len(routes) != 1 {
				err = fmt.Errorf("routes %v", routes)
			}
			return err
		})
		return s, err
	}
	if s, err := scope(); err != nil || s != netlink.SCOPE_UNIVERSE {
		t.Fatalf("scope %v, %v", s, err)
	}
	c.onLink(h, "flannel0", func(link netlink.Link) error {
		_, network, err := net.ParseCIDR("10.42.0.0/16")
		if err != nil {
			return err
		}
		return netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: network})
	})
	c.within(5*time.Second, "scope global", func() error {
		s, err := scope()
		if err == nil && s != netlink.SCOPE_UNIVERSE {
			err = fmt.Errorf("scope %v", s)
		}
		return err
	})
}

// TestAnotherBackendGivesUpTheTunnel: systemd hands over what a run with udp has left; with another
// backend it would swallow what the network has no more specific route for.
func TestAnotherBackendGivesUpTheTunnel(t *testing.T) {
	t.Parallel()
	c, h := oneHost(t, udpConfig)
	p := c.start(h)
	p.KeepStored()
	c.stop(p)
	kept := p.Stored()
	if len(kept) != 2 {
		t.Fatalf("%d descriptors are stored", len(kept))
	}
	c.put("config", vxlanConfig)
	c.startCommand(h, lab.Command{Stored: kept})
	c.within(5*time.Second, "gone", func() error {
		return h.Do(func() error {
			if _, err := net.InterfaceByName("flannel0"); err == nil {
				return fmt.Errorf("flannel0 is still there")
			}
			return nil
		})
	})
}
