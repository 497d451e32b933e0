package presence

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab/netns"
)

// register registers until the test ends.
func register(t *testing.T, network, device string) io.Closer {
	t.Helper()
	p, err := Register(netip.MustParsePrefix(network), device)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// TestTwoDaemonsNeverHoldTheSame registers a second daemon beside that of 10.42.0.0/16 with
// flannel.1.
func TestTwoDaemonsNeverHoldTheSame(t *testing.T) {
	netns.Enter(t)
	first := register(t, "10.42.0.0/16", "flannel.1")
	for _, c := range []struct{ network, device, refused string }{
		{"10.43.0.0/16", "flannel.2", ""},
		{"10.43.0.0/16", "", ""},
		{"10.43.0.0/16", "flannel.1", "device flannel.1 is used by the flanneld of network 10.42.0.0/16 (PID "},
		{"10.42.0.0/16", "flannel.2", "there is the flanneld of network 10.42.0.0/16 (PID "},
		{"10.42.0.0/16", "", "there is the flanneld of network"},
		{"10.42.128.0/17", "", "there is the flanneld of network"},
		{"10.0.0.0/8", "flannel.2", "there is the flanneld of network"},
	} {
		p, err := Register(netip.MustParsePrefix(c.network), c.device)
		var held *ConflictError
		if c.refused == "" && err != nil || c.refused != "" && (!errors.As(err, &held) || !strings.HasPrefix(err.Error(), c.refused)) {
			t.Errorf("%s %s: %v, want %q", c.network, c.device, err, c.refused)
		}
		if p != nil {
			p.Close()
		}
	}
	first.Close()
	if h, err := Daemons(); len(h) > 0 || err != nil {
		t.Errorf("after the end: %v, %v", h, err)
	}
}

func TestOfManyAtTheSameInstantOneGetsIt(t *testing.T) {
	ns := netns.New(t)
	var all sync.WaitGroup
	won := make(chan io.Closer, 20)
	for range cap(won) {
		all.Go(func() {
			err := ns.Do(func() error {
				p, err := Register(netip.MustParsePrefix("10.42.0.0/16"), "")
				var held *ConflictError
				if err == nil {
					won <- p
				} else if errors.As(err, &held) {
					err = nil
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if len(won) != 1 {
		t.Errorf("%d have it", len(won))
	}
}

// TestOtherNamespacesAndUsersDoNotCount: hosts in namespaces share a file system, and anybody can
// listen.
func TestOtherNamespacesAndUsersDoNotCount(t *testing.T) {
	netns.Enter(t)
	register(t, "10.42.0.0/16", "flannel.1")
	netns.Enter(t)
	// SO_PEERCRED has the effective user of the thread that listened.
	if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), 65534, ^uintptr(0)); errno != 0 {
		t.Fatal(errno)
	}
	l, err := net.Listen("unix", namePrefix+"10.42.0.0/16/flannel.1/0")
	if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), 0, ^uintptr(0)); errno != 0 || err != nil {
		t.Fatal(errno, err)
	}
	defer l.Close()
	register(t, "10.42.0.0/16", "flannel.1") // neither the other host nor the user is in the way
}

// TestVacateDelaysRegistrations: a network that no daemon serves stays so until it is released.
func TestVacateDelaysRegistrations(t *testing.T) {
	ns := netns.Enter(t)
	register(t, "10.42.0.0/16", "")
	served, free := netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.43.0.0/16")
	vacant, release := Vacate([]netip.Prefix{served, free})
	if !slices.Equal(vacant, []netip.Prefix{free}) {
		t.Errorf("vacant: %v", vacant)
	}
	registered := make(chan error, 1)
	go func() {
		registered <- ns.Do(func() error {
			p, err := Register(free, "")
			if err == nil {
				p.Close()
			}
			return err
		})
	}()
	select {
	case err := <-registered:
		t.Errorf("registered a network that is reserved: %v", err)
	case <-time.After(10 * lockPoll):
		release()
		if err := <-registered; err != nil {
			t.Error(err)
		}
	}
}

// TestNothingIsVacantIfUnknown: without descriptors, nobody can be asked.
func TestNothingIsVacantIfUnknown(t *testing.T) {
	netns.Enter(t)
	limitFiles(t, 3)
	vacant, release := Vacate([]netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")})
	release()
	if vacant != nil {
		t.Errorf("vacant: %v", vacant)
	}
}

// limitFiles limits the descriptors of this process until lift is called or the test ends.
func limitFiles(t *testing.T, n uint64) (lift func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	lift = func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(lift)
	return lift
}

// TestLackOfDescriptorsIsNotAbsence: a daemon that cannot ask who listens does not take the
// other one for gone.
func TestLackOfDescriptorsIsNotAbsence(t *testing.T) {
	netns.Enter(t)
	register(t, "10.42.0.0/16", "flannel.1")
	f, err := os.Open("/dev/null") // the lowest descriptors that are free, as far as one list needs them
	if err != nil {
		t.Fatal(err)
	}
	next := uint64(f.Fd())
	f.Close()
	for room := range uint64(4) {
		lift := limitFiles(t, next+room)
		holders, err := Daemons()
		lift()
		if err == nil && len(holders) == 0 {
			t.Errorf("with %d descriptors, the other daemon is taken for gone", room)
		}
	}
}

// hesitant is a listener that fails a few times before it accepts.
type hesitant struct {
	net.Listener
	failures int
}

func (l *hesitant) Accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		return nil, unix.EMFILE
	}
	return l.Listener.Accept()
}

// TestAcceptsAfterFailures: others must still find a daemon that lacked descriptors for a while.
func TestAcceptsAfterFailures(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		accept(&hesitant{l, 3})
	}()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("not taken: %v", err)
	}
	l.Close()
	<-done
}

func TestParseTakesNoNonsense(t *testing.T) {
	for name, ok := range map[string]bool{
		"@flanneld/10.42.0.0/16/flannel.1/0": true,
		"@flanneld/10.42.0.0/16//0":          true,
		"@flanneld/10.42.0.1/16//0":          false,
		"@flanneld/0.0.0.0/0//0":             false,
		"@flanneld/10.42.0.0/16":             false,
		"@flanneld/":                         false,
		"@flanneld/a/b/c/d":                  false,
	} {
		if _, got := parse(name); got != ok {
			t.Errorf("%s: %v", name, got)
		}
	}
	names := sockets("Num       RefCount Protocol Flags    Type St Inode Path\n" +
		"0000000000000000: 00000002 00000000 00010000 0001 01 24735 @flanneld/10.42.0.0/16/flannel.1/0\n" +
		"0000000000000000: 00000003 00000000 00000000 0001 03 24736 @flanneld/10.42.0.0/16/flannel.1/0\n" +
		"0000000000000000: 00000002 00000000 00000000 0002 01 24737\n" +
		"0000000000000000: 00000002 00000000 00010000 0001 01 24738 /run/x@flanneld/\n")
	if len(names) != 1 || names[0] != "@flanneld/10.42.0.0/16/flannel.1/0" {
		t.Errorf("%q", names)
	}
}

// FuzzSockets: with any socket names, each result has a network of its own and a name with our
// prefix.
func FuzzSockets(f *testing.F) {
	f.Add("Num       RefCount Protocol Flags    Type St Inode Path\n0000000000000000: 00000002 00000000 00010000 0001 01 4711 @flanneld/10.42.0.0/16/flannel.1/0011\n")
	f.Add("0: 2 0 0 1 01 1 @x\n @flanneld/0.0.0.0/0//\n @flanneld/fd00::/48/a b/1")
	f.Fuzz(func(t *testing.T, text string) {
		for _, name := range sockets(text) {
			h, ok := parse(name)
			if again := fmt.Sprintf("%s%s/%s/", namePrefix, h.Network, h.Device); ok && (h.Network != h.Network.Masked() || h.Network.Bits() == 0 || h.PID != 0) {
				t.Errorf("%q is read as %+v", name, h)
			} else if ok && h.Network.Addr().Is4() && !strings.HasPrefix(name, again) {
				t.Errorf("%q is read as %+v", name, h)
			}
		}
	})
}
