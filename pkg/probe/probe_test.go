package probe_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/kernel"
	"flanneld/pkg/lab"
	"flanneld/pkg/lab/wait"
	"flanneld/pkg/probe"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m.Run)) }

// TestProbe asks for addresses of hosts that are there and that are not, on the link and
// behind a router.
func TestProbe(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces; run it with sudo")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := lab.New(ctx, lab.Options{Hosts: 4, Racks: 2}) // h1 and h3 are on one link, h2 and h4 on another
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, h := range l.Hosts[2:] { // answer ARP only
		err := h.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/icmp_echo_ignore_all", []byte("1"), 0) })
		if err != nil {
			t.Fatal(err)
		}
	}
	next := func(h *lab.Host) netip.Addr { return h.Addr.Next().Next().Next() } // unused
	for _, c := range []struct {
		name string
		addr netip.Addr
		link string
		want []string
	}{
		{"on the link", l.Hosts[2].Addr, "eth0", []string{"ARP"}},
		{"on the link, taken for far", l.Hosts[2].Addr, "", []string{""}},
		{"behind a router", l.Hosts[1].Addr, "", []string{"ICMP"}},
		{"behind a router, without ICMP", l.Hosts[3].Addr, "", []string{""}},
		{"the router", l.Hosts[0].Addr.Prev(), "eth0", []string{"ARP", "ICMP"}},
		{"nobody on the link", next(l.Hosts[2]), "eth0", []string{""}},
		{"nobody behind a router", next(l.Hosts[3]), "", []string{""}},
		{"no such network", netip.MustParseAddr("192.0.2.1"), "", []string{""}},
	} {
		t.Run(c.name, func(t *testing.T) { testProbe(t, l.Hosts[0], c.addr, c.link, c.want) })
	}
	t.Run("gone since the kernel learned its address", func(t *testing.T) {
		if err := l.Hosts[2].Unplug(); err != nil {
			t.Fatal(err)
		}
		testProbe(t, l.Hosts[0], l.Hosts[2].Addr, "eth0", []string{""})
		if err := l.Hosts[2].Plug(); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("without CAP_NET_RAW", func(t *testing.T) { testUnprivileged(t, l.Hosts[0], l.Hosts[2].Addr) })
}

func testProbe(t *testing.T, h *lab.Host, addr netip.Addr, link string, want []string) {
	times := 1
	if want[0] != "" {
		times = 2 // what the kernel remembers of the first time is of no use to the second
	}
	for range times {
		var answered string
		var took time.Duration
		err := h.Do(func() error {
			k, err := kernel.New()
			if err != nil {
				return err
			}
			defer k.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			answered, err = probe.Probe(ctx, addr, link, k)
			took = time.Since(start)
			return err
		})
		if err != nil || !slices.Contains(want, answered) {
			t.Errorf("%s answers %q, %v, want %q", addr, answered, err, want)
		}
		if took > time.Second+time.Duration(wait.Slow())*time.Second {
			t.Errorf("it took %v", took)
		}
		t.Logf("%s: %q after %v", addr, answered, took.Round(time.Millisecond))
	}
}

type brokenLink struct{ err error }

func (l brokenLink) Solicit(string, netip.Addr) error          { return l.err }
func (l brokenLink) Answered(string, netip.Addr) (bool, error) { return false, l.err }

// testUnprivileged: without CAP_NET_RAW there is no ICMP, and only ARP is used.
func testUnprivileged(t *testing.T, h *lab.Host, addr netip.Addr) {
	refused := errors.New("refused")
	for _, c := range []struct {
		link string
		how  func(*kernel.Kernel) probe.Link
		want string
		err  error
	}{
		{"eth0", func(k *kernel.Kernel) probe.Link { return k }, "ARP", nil},
		{"eth0", func(*kernel.Kernel) probe.Link { return brokenLink{refused} }, "", refused},
		{"", nil, "", unix.EPERM},
	} {
		err := h.Do(func() error {
			k, err := kernel.New()
			if err != nil {
				return err
			}
			defer k.Close()
			var link probe.Link
			if c.how != nil {
				link = c.how(k)
			}
			return withoutRawSockets(func() error {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				answered, err := probe.Probe(ctx, addr, c.link, link)
				if answered != c.want || !errors.Is(err, c.err) {
					t.Errorf("%+v: %q, %v", c, answered, err)
				}
				return nil
			})
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// withoutRawSockets runs f without CAP_NET_RAW in effect for the calling thread.
func withoutRawSockets(f func() error) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had [2]unix.CapUserData
	if err := unix.Capget(&header, &had[0]); err != nil {
		return err
	}
	less := had
	less[0].Effective &^= 1 << unix.CAP_NET_RAW
	if err := unix.Capset(&header, &less[0]); err != nil {
		return err
	}
	return errors.Join(f(), unix.Capset(&header, &had[0]))
}
