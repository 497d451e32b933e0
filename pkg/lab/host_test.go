package lab

import (
	"context"
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
	"golang.org/x/sys/unix"

	"flanneld/pkg/lab/wait"
)

func mustPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func TestFlood(t *testing.T) {
	ctx, l := newTestLab(t, Options{Hosts: 2})
	h1, h2 := l.Hosts[0], l.Hosts[1]
	err := wait.Until(ctx, func() error { // on a busy machine the receiver may come too late
		s, err := h1.Flood(ctx, &h2.Endpoint, 1000, 50*time.Millisecond)
		if err != nil || s.Received > s.Sent || s.Duration < 50*time.Millisecond {
			t.Errorf("flood: %+v, %v", s, err)
		}
		if s.PerSecond() < 1000 {
			return fmt.Errorf("flood: %+v", s)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	must(t, h2.Unplug())
	if s, err := h1.Flood(ctx, &h2.Endpoint, 10, 20*time.Millisecond); err != nil || s.Received != 0 || s.Sent == 0 {
		t.Errorf("flood of an unplugged host: %+v, %v", s, err)
	}
	stopped, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err = h1.Flood(stopped, &h2.Endpoint, 10, time.Minute)
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
		t.Errorf("flood that is stopped, after %v: %v", time.Since(start), err)
	}
}

func TestHostsReachEachOther(t *testing.T) {
	ctx, l := newTestLab(t, Options{Hosts: 3, Racks: 2, MTU: 1400, Uplink: "bond0"})
	for _, from := range l.Hosts {
		for _, to := range l.Hosts {
			if _, err := from.WaitPing(ctx, to.Addr); err != nil {
				t.Error(err)
			}
		}
	}
	h1, h3 := l.Hosts[0], l.Hosts[2] // in the same rack
	if _, err := h1.Ping(ctx, h3.Addr, PingOptions{Size: 1400, DF: true}); err != nil {
		t.Error(err)
	}
	if _, err := h1.Ping(ctx, h3.Addr, PingOptions{Size: 1401, DF: true}); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("ping of MTU+1: %v", err)
	}
	if _, err := h1.Ping(ctx, h3.Addr, PingOptions{Size: 3000}); err != nil {
		t.Errorf("fragmented ping: %v", err)
	}
	stats, err := h1.Transfer(ctx, &h3.Endpoint, 10<<20)
	if err != nil || stats.Bytes != 10<<20 {
		t.Errorf("transfer: %+v, %v", stats, err)
	}
	if stats, err = h1.Throughput(ctx, &h3.Endpoint, 100*time.Millisecond); err != nil || stats.BitsPerSecond() < 1e6 {
		t.Errorf("throughput: %+v, %v", stats, err)
	}
	pinger, err := h1.StartPinger(h3.Addr, 5*time.Millisecond)
	must(t, err)
	wait := func(what string, done func(PingStats) bool) {
		t.Helper()
		wait.True(t, what, func() bool { return done(pinger.Stats()) })
	}
	wait("replies", func(s PingStats) bool { return s.Received > 5 })
	must(t, h3.Unplug())
	wait("loss", func(s PingStats) bool { return s.Lost > 20 })
	must(t, h3.Plug())
	before := pinger.Stats().Received
	wait("replies after plugging in", func(s PingStats) bool { return s.Received > before+5 })
	if s := pinger.Stop(); s.Lost < 15 || s.Outage < 75*time.Millisecond || s.Sent != s.Received+s.Lost || len(s.RTTs) != s.Received {
		t.Errorf("pinger: %+v", s)
	}
}

func TestPingErrors(t *testing.T) {
	ctx, l := newTestLab(t, Options{Hosts: 1})
	h := l.Hosts[0]
	gone := netip.MustParseAddr("172.31.200.99")
	if _, err := h.Ping(ctx, gone, PingOptions{Timeout: 50 * time.Millisecond}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("ping of nobody: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := h.Ping(short, gone, PingOptions{Timeout: time.Minute}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ping with a context that ends: %v", err)
	}
	if _, err := h.Ping(ctx, gone, PingOptions{Size: minPing - 1}); err == nil {
		t.Error("a ping that is too small was sent")
	}
	nobody := &Endpoint{Name: "nobody", Addr: gone, NS: h.NS}
	if _, err := h.Transfer(ctx, nobody, 1); err == nil {
		t.Error("transfer to an address that is not there")
	}
}

// writeSubnet writes the subnet file, as flanneld does.
func writeSubnet(t *testing.T, h *Host, subnet string, mtu int) {
	t.Helper()
	env := fmt.Sprintf("FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=%s\nFLANNEL_MTU=%d\nFLANNEL_IPMASQ=false\n", subnet, mtu)
	err := errors.Join(os.MkdirAll(filepath.Dir(h.SubnetFile), 0o755), os.WriteFile(h.SubnetFile, []byte(env), 0o644))
	must(t, err)
}

// Two containers on two hosts, with the routes of host-gw.
func TestContainers(t *testing.T) {
	ctx, l := newTestLab(t, Options{Hosts: 2})
	subnets := []string{"10.42.1.1/24", "10.42.2.1/24"}
	for i, h := range l.Hosts {
		peer := 1 - i
		err := h.Do(func() error {
			dst := ipNet(mustPrefix(subnets[peer]).Masked())
			return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: l.Hosts[peer].Addr.AsSlice()})
		})
		must(t, err)
		writeSubnet(t, h, subnets[i], 1450)
	}
	var containers []*Container
	for _, h := range append(l.Hosts, l.Hosts[0]) {
		c, err := h.AddContainer()
		must(t, err)
		containers = append(containers, c)
	}
	if got := containers[2].Addr.String(); got != "10.42.1.3" {
		t.Errorf("address of the second container: %s", got)
	}
	for _, from := range containers {
		for _, to := range containers {
			if _, err := from.WaitPing(ctx, to.Addr); err != nil {
				t.Error(err)
			}
		}
	}
	c1, c2 := containers[0], containers[1]
	if _, err := c1.Ping(ctx, c2.Addr, PingOptions{Size: 1450, DF: true}); err != nil {
		t.Error(err)
	}
	if _, err := c1.Ping(ctx, c2.Addr, PingOptions{Size: 1451, DF: true}); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("ping of MTU+1: %v", err)
	}
	if _, err := c1.Transfer(ctx, &c2.Endpoint, 1<<20); err != nil {
		t.Error(err)
	}
	// With a new subnet, the bridge gets a new address.
	writeSubnet(t, l.Hosts[0], "10.42.9.1/24", 1400)
	c, err := l.Hosts[0].AddContainer()
	must(t, err)
	if _, err := c.WaitPing(ctx, netip.MustParseAddr("10.42.9.1")); err != nil {
		t.Error(err)
	}
}

func TestDoReturnsToOwnNamespace(t *testing.T) {
	_, l := newTestLab(t, Options{Hosts: 1})
	names := func() (list string) {
		interfaces, _ := net.Interfaces()
		for _, i := range interfaces {
			list += i.Name + " "
		}
		return list
	}
	before, inside := names(), ""
	err := l.Hosts[0].Do(func() error {
		return l.Fabric.Do(func() error { inside = names(); return os.ErrInvalid })
	})
	if !errors.Is(err, os.ErrInvalid) {
		t.Errorf("error of the function: %v", err)
	}
	if after := names(); before != after || inside == before {
		t.Errorf("before %q, inside %q, after %q", before, inside, after)
	}
	must(t, l.Close())
	if err := l.Hosts[0].Do(func() error { return nil }); err == nil {
		t.Error("Do in a closed lab")
	}
}

// This test binary is also a program that reports READY, as the lab's etcd does.
func TestProcess(t *testing.T) {
	ctx, l := newTestLab(t, Options{Hosts: 1})
	h := l.Hosts[0]
	p, err := h.Run(Command{Path: "/bin/sh", Args: []string{"-c", "echo $WORD; kill -STOP $$; exit 3"}, Env: []string{"WORD=hello"}})
	if err != nil {
		t.Skip("needs /bin/sh: ", err)
	}
	wait.True(t, "the log says hello", func() bool { return p.Logs() == "hello\n" })
	if u, err := p.Usage(); err != nil || u.CPU == 0 || u.RSS == 0 || u.HWM < u.RSS {
		t.Errorf("usage: %+v, %v", u, err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if err := p.WaitReady(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ready: %v", err)
	}
	wait.True(t, "the process ends", func() bool {
		p.Signal(syscall.SIGCONT) // again: it may not have stopped yet
		return p.Exited()
	})
	if code, err := p.Wait(ctx); err != nil || code != 3 {
		t.Errorf("exit code %d, %v", code, err)
	}
	if err := p.WaitReady(ctx); err == nil || p.ReadyAfter() != 0 {
		t.Errorf("a process that ended is ready: %v", err)
	}
	if err := p.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal after the end: %v", err)
	}
	if e := l.Etcd.process; e.ReadyAfter() <= 0 || len(e.Notifications()) != 1 {
		t.Errorf("etcd ready after %s, notifications %q", e.ReadyAfter(), e.Notifications())
	}
}
