package prober

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab/netns"
)

// inNamespace runs a test with a raw socket in a network namespace of its own.
func inNamespace(t *testing.T, test func(s socket)) {
	t.Helper()
	n := netns.New(t)
	if err := n.Do(func() error {
		s, err := openRaw()
		if err != nil {
			return err
		}
		defer s.Close()
		test(s)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// TestRawSocket sends requests of both sizes to the kernel itself, and matches the replies.
func TestRawSocket(t *testing.T) {
	inNamespace(t, func(s socket) {
		for seq, size := range []int{smallSize, 1450, 9000} {
			want := echo{addr: netip.MustParseAddr("127.0.0.9"), seq: uint16(seq), token: [tokenSize]byte{byte(seq), 1}, size: size}
			if err := s.send(request{echo: want, device: "lo", source: netip.MustParseAddr("127.0.0.1")}); err != nil {
				t.Fatal(err)
			}
			got, err := s.receive(time.Now().Add(10 * time.Second))
			if err != nil || got != want {
				t.Errorf("size %d: got %+v, %v; want %+v", size, got, err, want)
			}
		}
		if e, err := s.receive(time.Now().Add(10 * time.Millisecond)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("requests themselves were received: %+v, %v", e, err)
		}
	})
}

// TestRawSocketRefuses: what cannot leave as it should does not leave at all.
func TestRawSocketRefuses(t *testing.T) {
	inNamespace(t, func(s socket) {
		local := netip.MustParseAddr("127.0.0.1")
		for what, c := range map[string]struct {
			device string
			source netip.Addr
			to     string
			want   error // nil: any, as kernels differ
		}{
			"no such device":    {"flannel.1", local, "127.0.0.9", unix.ENODEV},
			"too long a name":   {"a-name-of-sixteen", local, "127.0.0.9", unix.EINVAL},
			"another's address": {"lo", netip.MustParseAddr("192.0.2.1"), "127.0.0.9", nil},
			"no route":          {"", netip.Addr{}, "192.0.2.1", unix.ENETUNREACH},
		} {
			e := echo{addr: netip.MustParseAddr(c.to), size: smallSize}
			if err := s.send(request{echo: e, device: c.device, source: c.source}); err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", what, err, c.want)
			}
		}
	})
}

func TestClosedSocket(t *testing.T) {
	inNamespace(t, func(s socket) {
		s.Close()
		if _, err := s.receive(time.Now().Add(time.Minute)); err == nil || os.IsTimeout(err) {
			t.Errorf("receive: %v", err)
		}
		if err := s.send(request{echo: request1450(), device: "lo"}); err == nil {
			t.Error("sent")
		}
	})
}
