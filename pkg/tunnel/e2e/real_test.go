package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"flanneld/pkg/lab/netns"
	"flanneld/pkg/tunnel"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// enter moves a test to a network namespace of its own.
func enter(t *testing.T) {
	t.Helper()
	needRoot(t)
	netns.Enter(t)
}

func listen(t testing.TB, o tunnel.Offloads) *tunnel.UDP {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIPPED: needs the native kernel; not in short mode")
	}
	u, err := tunnel.ListenUDP(netip.MustParseAddrPort("127.0.0.1:0"), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	return u
}

func TestUDP(t *testing.T) {
	for _, o := range []tunnel.Offloads{tunnel.AllOffloads(), {UDPSegment: true}, {UDPGRO: true}, {}} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			a, b := listen(t, o), listen(t, o)
			if a.GRO() != o.UDPGRO || (a.MaxSegments() > 1) != o.UDPSegment {
				t.Errorf("GRO %v, %d segments", a.GRO(), a.MaxSegments())
			}
			if a.Addr().Port() == 0 {
				t.Errorf("address %s", a.Addr())
			}
			var want [][]byte
			var ms []tunnel.Message
			for i := range 200 {
				sizes := []int{100 + i}
				if i%3 == 0 && o.UDPSegment {
					sizes = []int{1400, 1400, 1400, i}
				}
				m := tunnel.Message{To: b.Addr(), Segments: len(sizes), SegmentSize: sizes[0]}
				for _, size := range sizes {
					p := bytes.Repeat([]byte{byte(i)}, size)
					if size > 0 {
						want = append(want, p)
					}
					m.Parts = append(m.Parts, p[:size/2], p[size/2:])
				}
				ms = append(ms, m)
			}
			if n, err := a.Send(ms); n != len(ms) || err != nil {
				t.Fatal(n, err)
			}
			var got [][]byte
			ds := make([]tunnel.Datagram, 7)
			for len(got) < len(want) {
				n, err := b.Receive(ds)
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range ds[:n] {
					if d.Source != a.Addr() || d.Truncated {
						t.Fatalf("from %s, truncated %v", d.Source, d.Truncated)
					}
					size := len(d.Data)
					if d.SegmentSize > 0 {
						size = d.SegmentSize
					}
					for p := range slices.Chunk(d.Data, size) {
						got = append(got, bytes.Clone(p))
					}
				}
			}
			for i := range want {
				if !bytes.Equal(got[i], want[i]) {
					t.Fatalf("datagram %d has %d bytes, want %d", i, len(got[i]), len(want[i]))
				}
			}
		})
	}
}

// TestPortIsNotShared: a process that asks the kernel to share the tunnel's port cannot bind it,
// neither at its address nor at all addresses, because peers identify this host by the port.
func TestPortIsNotShared(t *testing.T) {
	u := listen(t, tunnel.AllOffloads())
	for _, at := range []netip.Addr{u.Addr().Addr(), netip.IPv4Unspecified()} {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		for _, option := range []int{unix.SO_REUSEADDR, unix.SO_REUSEPORT} {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1); err != nil {
				t.Fatal(err)
			}
		}
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(u.Addr().Port()), Addr: at.As4()})
		if !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("bind to %s: %v", at, err)
		}
	}
}

func TestUDPAllocatesNothing(t *testing.T) {
	a := listen(t, tunnel.AllOffloads())
	ms := []tunnel.Message{{To: a.Addr(), Parts: [][]byte{make([]byte, 1400), make([]byte, 1400)}, Segments: 2, SegmentSize: 1400}}
	ds := make([]tunnel.Datagram, 4)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := a.Send(ms); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Receive(ds); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestUDPInterrupt(t *testing.T) {
	u := listen(t, tunnel.AllOffloads())
	ended := make(chan error)
	go func() { _, err := u.Receive(make([]tunnel.Datagram, 1)); ended <- err }()
	u.Interrupt()
	if err := <-ended; !errors.Is(err, tunnel.ErrInterrupted) {
		t.Error(err)
	}
	if _, err := u.Send([]tunnel.Message{{To: u.Addr(), Parts: [][]byte{{1}}, Segments: 1}}); !errors.Is(err, tunnel.ErrInterrupted) {
		t.Error(err)
	}
}

func TestAdoptUDP(t *testing.T) {
	a := listen(t, tunnel.AllOffloads())
	fd, err := unix.Dup(a.FD())
	if err != nil {
		t.Fatal(err)
	}
	b, err := tunnel.AdoptUDP(fd, tunnel.Offloads{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.Addr() != a.Addr() || b.GRO() {
		t.Errorf("adopted %s with GRO %v", b.Addr(), b.GRO())
	}
	for name, open := range map[string]func() (int, error){
		"TCP":  func() (int, error) { return unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0) },
		"IPv6": func() (int, error) { return unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0) },
		"file": func() (int, error) { return unix.Open(os.DevNull, unix.O_RDONLY, 0) },
	} {
		fd, err := open()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tunnel.AdoptUDP(fd, tunnel.Offloads{}); err == nil {
			t.Errorf("%s: adopted", name)
		}
		if _, err := tunnel.AdoptTUN(fd, tunnel.Offloads{}); err == nil {
			t.Errorf("%s: adopted as a TUN device", name)
		}
		unix.Close(fd)
	}
}

// atLeast reports whether this kernel is of that version or later.
func atLeast(t *testing.T, major, minor int) bool {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var have [2]int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &have[0], &have[1]); err != nil {
		t.Fatal(err)
	}
	return have[0] > major || have[0] == major && have[1] >= minor
}

func TestTUN(t *testing.T) {
	enter(t)
	a, err := tunnel.OpenTUN("tun9", tunnel.AllOffloads())
	if err != nil {
		t.Fatal(err)
	}
	if tcp, udp := a.SuperPackets(); a.Name() != "tun9" || !tcp || udp != atLeast(t, 6, 2) {
		t.Errorf("%s takes TCP %v, UDP %v", a.Name(), tcp, udp)
	}
	if _, err := tunnel.OpenTUN("tun9", tunnel.AllOffloads()); !errors.Is(err, unix.EBUSY) {
		t.Errorf("opened twice: %v", err)
	}
	if _, err := tunnel.OpenTUN("lo", tunnel.AllOffloads()); err == nil {
		t.Error("opened lo")
	}
	fd, err := unix.Dup(a.FD())
	if err != nil {
		t.Error(err)
	}
	b, err := tunnel.AdoptTUN(fd, tunnel.AllOffloads())
	if err != nil {
		t.Fatal(err)
	}
	if b.Name() != "tun9" {
		t.Errorf("adopted %s", b.Name())
	}
	if err := errors.Join(a.Close(), b.Close()); err != nil {
		t.Error(err)
	}
	if _, err := netlink.LinkByName("tun9"); !errors.As(err, &netlink.LinkNotFoundError{}) {
		t.Errorf("the device outlives its last descriptor: %v", err)
	}
	c, err := tunnel.OpenTUN("tun9", tunnel.Offloads{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if tcp, udp := c.SuperPackets(); tcp || udp {
		t.Errorf("super-packets without offloads: %v %v", tcp, udp)
	}
	if err := c.Write(tunnel.Offload{}, [][]byte{{0x45}}); !errors.Is(err, unix.EIO) {
		t.Errorf("write to a device that is down: %v", err)
	}
}

// TestPersistentTUNIsTakenOverAndPersistentNoMore: earlier releases left theirs behind, without a
// descriptor or with one in systemd's store.
func TestPersistentTUNIsTakenOverAndPersistentNoMore(t *testing.T) {
	enter(t)
	old, err := tunnel.OpenTUN("tun9", tunnel.AllOffloads())
	if err != nil {
		t.Fatal(err)
	}
	index := func() int {
		link, err := netlink.LinkByName("tun9")
		if err != nil {
			return 0
		}
		return link.Attrs().Index
	}
	before := index()
	for _, stored := range []bool{false, true} {
		if err := unix.IoctlSetInt(old.FD(), unix.TUNSETPERSIST, 1); err != nil {
			t.Error(err)
		}
		var now *tunnel.TUN
		if stored {
			fd, dup := unix.Dup(old.FD())
			now, err = tunnel.AdoptTUN(fd, tunnel.AllOffloads())
			err = errors.Join(dup, err, old.Close())
		} else if err = old.Close(); err == nil {
			now, err = tunnel.OpenTUN("tun9", tunnel.AllOffloads())
		}
		if err != nil {
			t.Fatal(err)
		}
		if index() != before {
			t.Errorf("stored %v: another device", stored)
		}
		old = now
	}
	if err := old.Close(); err != nil || index() != 0 {
		t.Errorf("the device is still there; %v", err)
	}
}

func TestDeviceGone(t *testing.T) {
	enter(t)
	tun := tunnel.New(tunnel.NewTable(tunnel.Overlay{Network: network, Own: netip.MustParsePrefix("10.77.1.0/24"), MTU: 1472}))
	for range 2 { // the tunnel survives the first device
		device, err := tunnel.OpenTUN("tun9", tunnel.AllOffloads())
		if err != nil {
			t.Fatal(err)
		}
		link, err := netlink.LinkByName("tun9")
		if err != nil {
			t.Fatal(err)
		}
		ended, ends := make(chan error, 1), tunnel.Endpoints{Device: device, Socket: listen(t, tunnel.AllOffloads())}
		go func() { ended <- tun.Run(context.Background(), ends) }()
		if err := netlink.LinkDel(link); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			if !errors.Is(err, tunnel.ErrDeviceGone) {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("Run does not notice")
		}
		device.Close()
	}
}
