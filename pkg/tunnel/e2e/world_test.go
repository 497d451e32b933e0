// Package e2e_test has tunnels of real sockets and TUN devices between network
// namespaces. It is a package of its own because of what the lab brings along, an
// etcd among it: package tunnel is compiled for other machines and for fuzzing.
package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/wait"
	"flanneld/pkg/tunnel"

	"github.com/vishvananda/netlink"
)

// endVariable contains the configuration of a process that is one end of a tunnel: each end is a
// separate process, as in production, so that the two do not share a Go scheduler.
const endVariable = "TUNNEL_END"

func TestMain(m *testing.M) {
	if config := os.Getenv(endVariable); config != "" {
		if err := runEnd(config); err != nil {
			fmt.Println("FAIL", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(lab.Main(m.Run))
}

// needRoot skips what needs root, real devices and the native kernel.
func needRoot(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIPPED: needs network namespaces and TUN devices; not in short mode")
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: NOT ROOT: network namespaces and TUN devices need it")
	}
}

// An end is one end of a tunnel in a process of its own.
type end struct {
	Listen   netip.AddrPort
	Overlay  tunnel.Overlay
	Offloads tunnel.Offloads
}

func runEnd(config string) error {
	var e end
	if err := json.Unmarshal([]byte(config), &e); err != nil {
		return err
	}
	device, err := tunnel.OpenTUN("flannel0", e.Offloads)
	if err != nil {
		return err
	}
	socket, err := tunnel.ListenUDP(e.Listen, e.Offloads)
	if err != nil {
		return err
	}
	icmp, err := tunnel.OpenICMP()
	if err != nil {
		return err
	}
	if err := configure("flannel0", e.Overlay); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	tun := tunnel.New(tunnel.NewTable(e.Overlay))
	if err := tun.Run(ctx, tunnel.Endpoints{Device: device, Socket: socket, ICMP: icmp}); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(tun.Stats())
}

// configure does what the reconciler does in production.
func configure(name string, o tunnel.Overlay) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetMTU(link, o.MTU); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	own := &net.IPNet{IP: o.Own.Masked().Addr().AsSlice(), Mask: net.CIDRMask(32, 32)}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: own}); err != nil {
		return err
	}
	network := &net.IPNet{IP: o.Network.Addr().AsSlice(), Mask: net.CIDRMask(o.Network.Bits(), 32)}
	return netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: network})
}

var network = netip.MustParsePrefix("10.77.0.0/16")

// A pair is two hosts with a container each.
type pair struct {
	a, b         *lab.Host
	ca, cb       *lab.Container
	ownA, ownB   netip.Prefix
	procA, procB *lab.Process
}

func newPair(t testing.TB, l *lab.Lab, i, mtu int) *pair {
	t.Helper()
	p := &pair{a: l.Hosts[2*i], b: l.Hosts[2*i+1]}
	p.ownA = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(2*i + 1), 0}), 24)
	p.ownB = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(2*i + 2), 0}), 24)
	p.ca, p.cb = addContainer(t, p.a, p.ownA, mtu), addContainer(t, p.b, p.ownB, mtu)
	return p
}

func addContainer(t testing.TB, h *lab.Host, own netip.Prefix, mtu int) *lab.Container {
	t.Helper()
	text := fmt.Sprintf("FLANNEL_SUBNET=%s/%d\nFLANNEL_MTU=%d\n", own.Addr().Next(), own.Bits(), mtu)
	if err := os.MkdirAll(filepath.Dir(h.SubnetFile), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.SubnetFile, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := h.AddContainer()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// start starts both ends as processes.
func (p *pair) start(t testing.TB, offloadsA, offloadsB tunnel.Offloads) {
	t.Helper()
	p.procA = startEnd(t, p.a, p.b, p.ownA, p.ownB, offloadsA)
	p.procB = startEnd(t, p.b, p.a, p.ownB, p.ownA, offloadsB)
}

func (p *pair) wait(t testing.TB, ctx context.Context) {
	t.Helper()
	if _, err := p.ca.WaitPing(ctx, p.cb.Addr); err != nil {
		if p.procA != nil {
			t.Log(p.procA.Logs(), p.procB.Logs())
		}
		t.Fatal(err)
	}
}

func startEnd(t testing.TB, h, peer *lab.Host, own, other netip.Prefix, o tunnel.Offloads) *lab.Process {
	t.Helper()
	e := end{Listen: netip.AddrPortFrom(h.Addr, 8285), Offloads: o, Overlay: tunnel.Overlay{
		Network: network, Own: own, MTU: 1472, Peers: []tunnel.Peer{{Subnet: other, Addr: netip.AddrPortFrom(peer.Addr, 8285)}},
	}}
	config, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := h.Run(lab.Command{Path: exe, Env: []string{endVariable + "=" + string(config)}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func newLab(t testing.TB, pairs int, limit time.Duration) (context.Context, *lab.Lab) {
	t.Helper()
	return newLabWith(t, lab.Options{Hosts: 2 * pairs}, limit)
}

func newLabWith(t testing.TB, o lab.Options, limit time.Duration) (context.Context, *lab.Lab) {
	t.Helper()
	needRoot(t)
	ctx, cancel := context.WithTimeout(context.Background(), limit*time.Duration(wait.Slow()))
	t.Cleanup(cancel)
	l, err := lab.New(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return ctx, l
}

// lastLine is the last line of a process's output.
func lastLine(p *lab.Process) string {
	lines := strings.Split(strings.TrimSpace(p.Logs()), "\n")
	return lines[len(lines)-1]
}
