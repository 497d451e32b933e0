package tunnel

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/driver"
	"flanneld/pkg/lab/wait"
)

// driverBed is a Driver whose endpoints are fakes, with the device that a kernel would report.
type driverBed struct {
	*Driver
	t       *testing.T
	device  *fakeDevice // the one that was opened last
	opened  int
	closed  int
	refuse  error // of open
	devices map[string]bool
}

func newDriverBed(t *testing.T) *driverBed {
	b := &driverBed{t: t, devices: map[string]bool{}}
	b.Driver = NewDriver(t.Context(), netip.MustParsePrefix("10.42.0.0/16"), nil, slog.New(slog.DiscardHandler))
	b.open = func(name string, _ dataplane.Link) (Endpoints, func(), error) {
		if b.refuse != nil {
			return Endpoints{}, nil, b.refuse
		}
		b.opened++
		b.devices[name] = true
		b.device = newFakeDevice(t)
		return Endpoints{Device: b.device, Socket: newFakeSocket()}, func() { b.closed++ }, nil
	}
	t.Cleanup(b.Close)
	return b
}

const tunDevice = "flannel0"

var tunLink = dataplane.Link{Kind: dataplane.KindTUN, Local: netip.MustParseAddr("198.51.100.7"), Port: 8285, MTU: 1472, Up: true}

// put applies entries, each "subnet" for our own, "subnet host:port" for a peer's, or "-subnet"
// for one that is to go, and returns which failed.
func (b *driverBed) put(entries ...string) (failed []string) {
	b.t.Helper()
	var ops []dataplane.Op
	for _, e := range entries {
		subnet, host, _ := strings.Cut(e, " ")
		subnet, del := strings.CutPrefix(subnet, "-")
		k := dataplane.TunnelKey{Link: tunDevice, Subnet: netip.MustParsePrefix(subnet)}
		peer := netip.AddrPort{}
		if host != "" {
			peer = netip.MustParseAddrPort(host)
		}
		if del {
			ops = append(ops, dataplane.KindTunnel.Del(k, peer))
		} else {
			ops = append(ops, dataplane.KindTunnel.Put(k, peer))
		}
	}
	for i, err := range b.Apply(ops) {
		if err != nil {
			failed = append(failed, entries[i])
		}
	}
	return failed
}

// holds checks the content of a Snapshot, and the table in effect, if there should be one.
func (b *driverBed) holds(running bool, entries ...string) {
	b.t.Helper()
	s := dataplane.NewState()
	for name := range b.devices {
		s.Links[name] = dataplane.Link{Kind: dataplane.KindTUN, MTU: 1472, Up: true}
	}
	if err := b.Snapshot(dataplane.Scope{}, &s); err != nil {
		b.t.Fatal(err)
	}
	var got, inForce []string
	peers := 0
	for k, peer := range s.Tunnel {
		text := k.Subnet.String()
		if peer.IsValid() {
			text += " " + peer.String()
			peers++
		}
		got = append(got, text)
	}
	slices.Sort(got)
	if !slices.Equal(got, entries) {
		b.t.Errorf("holds %q, want %q", got, entries)
	}
	r := b.tunnels[tunDevice]
	if r == nil || r.tunnel == nil {
		if running {
			b.t.Error("there is no tunnel")
		}
		return
	}
	o := r.tunnel.state.Load().table.overlay
	for _, p := range o.Peers {
		inForce = append(inForce, fmt.Sprintf("%s %s", p.Subnet, p.Addr))
	}
	if len(inForce) != peers || o.Own != r.own {
		b.t.Errorf("in force are %q and our own %s, shown %q", inForce, o.Own, got)
	}
	for _, text := range inForce {
		if !slices.Contains(got, text) {
			b.t.Errorf("%s is in force, and not shown", text)
		}
	}
}

func (b *driverBed) start() {
	b.t.Helper()
	if err := b.Apply([]dataplane.Op{dataplane.KindLink.Put(tunDevice, tunLink)})[0]; err != nil {
		b.t.Fatal(err)
	}
}

func TestDriverKeepsATable(t *testing.T) {
	b := newDriverBed(t)
	if failed := b.put("10.42.9.0/24 198.51.100.9:8285", "-10.42.8.0/24"); len(failed) != 1 {
		t.Errorf("without a tunnel %q failed", failed)
	}
	b.holds(false)
	b.start()
	// Until it is known which subnet is ours, entries wait.
	if failed := b.put("10.42.9.0/24 198.51.100.9:8285"); failed != nil {
		t.Errorf("%q failed", failed)
	}
	b.holds(false, "10.42.9.0/24 198.51.100.9:8285")
	b.put("10.42.7.0/24", "10.42.20.0/24 198.51.100.20:8285")
	b.holds(true, "10.42.20.0/24 198.51.100.20:8285", "10.42.7.0/24", "10.42.9.0/24 198.51.100.9:8285")
	b.put("10.42.9.0/24 198.51.100.99:8285", "-10.42.20.0/24")
	b.holds(true, "10.42.7.0/24", "10.42.9.0/24 198.51.100.99:8285")
	// Another subnet is ours, and the previous one is a peer's.
	b.put("10.42.6.0/24", "10.42.7.0/24 198.51.100.9:8285", "-10.42.9.0/24")
	b.holds(true, "10.42.6.0/24", "10.42.7.0/24 198.51.100.9:8285")
	if b.opened != 1 || b.closed != 0 {
		t.Errorf("%d opened, %d closed", b.opened, b.closed)
	}
}

// TestFailedSwapIsTriedAgain: entries of an invalid table are neither in effect nor in a Snapshot,
// and have failed, so that they count as missing.
func TestFailedSwapIsTriedAgain(t *testing.T) {
	b := newDriverBed(t)
	b.start()
	b.put("10.42.7.0/24", "10.42.9.0/24 198.51.100.9:8285")
	was := []string{"10.42.7.0/24", "10.42.9.0/24 198.51.100.9:8285"}

	changes := []string{"10.42.20.0/24 198.51.100.20:8285", "10.42.9.0/24 198.51.100.99:8285", "10.42.9.0/24 198.51.100.98:8285", "-10.42.7.0/24"}
	if failed := b.put(changes...); !slices.Equal(failed, changes) {
		t.Errorf("without a subnet of ours only %q failed", failed)
	}
	b.holds(true, was...)

	low := tunLink
	low.MTU = 20
	err := b.Apply([]dataplane.Op{dataplane.SetLink(tunDevice, low, tunLink)})[0]
	if err == nil || !strings.HasPrefix(err.Error(), "change link flannel0: make table: MTU 20") {
		t.Errorf("an MTU of 20: %v", err)
	}
	if failed := b.put("10.42.20.0/24 198.51.100.20:8285"); failed != nil {
		t.Errorf("after that %q failed", failed)
	}
	b.holds(true, append(was[:0:0], "10.42.20.0/24 198.51.100.20:8285", was[0], was[1])...)
}

// TestBadEntryHarmsNoOther: an invalid peer fails alone.
func TestBadEntryHarmsNoOther(t *testing.T) {
	b := newDriverBed(t)
	b.start()
	bad := "10.42.20.0/24 198.51.100.20:0"
	if failed := b.put("10.42.7.0/24", bad, "10.42.9.0/24 198.51.100.9:8285"); !slices.Equal(failed, []string{bad}) {
		t.Errorf("%q failed", failed)
	}
	b.holds(true, "10.42.7.0/24", "10.42.9.0/24 198.51.100.9:8285")
}

// TestLinkOfATunnel: a device is reported with the attributes of its tunnel, or not at all.
func TestLinkOfATunnel(t *testing.T) {
	b := newDriverBed(t)
	show := func() dataplane.State {
		s := dataplane.NewState()
		s.Links[tunDevice] = dataplane.Link{Kind: dataplane.KindTUN, MTU: 1400}
		s.Links["eth0"] = dataplane.Link{Kind: "device"}
		if err := b.Snapshot(dataplane.Scope{}, &s); err != nil || s.Links["eth0"].Kind != "device" {
			t.Errorf("%v, read\n%s", err, s.Text())
		}
		return s
	}
	if l, ok := show().Links[tunDevice]; ok {
		t.Errorf("nobody is behind %+v", l)
	}
	b.start()
	want := tunLink
	want.MTU, want.Up = 1400, false // as the kernel has it
	if l := show().Links[tunDevice]; l != want {
		t.Errorf("got %+v, want %+v", l, want)
	}
	b.put("10.42.7.0/24")
	open := tunLink
	open.AnySource = true
	if err := b.Apply([]dataplane.Op{dataplane.SetLink(tunDevice, open, tunLink)})[0]; err != nil {
		t.Error(err)
	}
	if want.AnySource = true; show().Links[tunDevice] != want || !b.tunnels[tunDevice].tunnel.state.Load().table.overlay.AllowUnknownSources {
		t.Error("it does not take packets from everybody")
	}
	if err := b.Apply([]dataplane.Op{dataplane.SetLink("flannel9", open, tunLink)})[0]; err != nil {
		t.Errorf("a change of what has ended meanwhile: %v", err)
	}
}

// TestTakenDeviceIsAnEvent: another program has the device.
func TestTakenDeviceIsAnEvent(t *testing.T) {
	b := newDriverBed(t)
	b.refuse = fmt.Errorf("attach: %w", unix.EBUSY)
	err := b.Apply([]dataplane.Op{dataplane.KindLink.Put(tunDevice, tunLink)})[0]
	if !errors.Is(err, unix.EBUSY) || !strings.HasPrefix(err.Error(), "replace link flannel0: ") {
		t.Errorf("got %v", err)
	}
	if e := <-b.Events(); e != driver.DeviceTaken {
		t.Errorf("event %s", e)
	}
}

// TestDriverStats: what tunnels that have ended have done still counts, their peers don't.
func TestDriverStats(t *testing.T) {
	b := newDriverBed(t)
	drops := func() (packets uint64) {
		for _, d := range b.Stats().Drops {
			packets += d.Packets
		}
		return packets
	}
	if n := len(b.Stats().Peers) + int(drops()); n != 0 {
		t.Errorf("before there is a tunnel: %+v", b.Stats())
	}
	for n := range uint64(3) {
		b.start()
		if got := b.Stats(); got.Sent.Packets != n || drops() != n || len(got.Peers) != 0 {
			t.Errorf("after %d tunnels: %+v", n, got)
		}
		b.put("10.42.7.0/24", "10.42.1.0/24 192.0.2.1:8285")
		b.device.batches <- []Packet{{Data: to("10.42.1.2", tcpSpec{}).packet()}, {Data: to("10.42.99.2", tcpSpec{}).packet()}}
		wait.True(t, "a packet that is sent and one that is not", func() bool {
			s := b.Stats()
			return len(s.Peers) == 1 && s.Peers[0].Sent.Packets == 1 && s.Sent.Packets == n+1 && drops() == n+1
		})
	}
	b.Close()
	if s := b.Stats(); s.Sent.Packets != 3 || len(s.Peers) != 0 {
		t.Errorf("at the end: %+v", s)
	}
}

// TestEndedTunnelIsOpenedAgain: it is reported, and not shown, and its successor has nothing of it.
func TestEndedTunnelIsOpenedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newDriverBed(t)
		for n, want := range []time.Duration{0, 100 * time.Millisecond, 200 * time.Millisecond} {
			b.start()
			b.put("10.42.7.0/24")
			begun := time.Now()
			b.device.readErr = ErrDeviceGone
			close(b.device.batches)
			if e := <-b.Events(); e != driver.Links || time.Since(begun) != want {
				t.Errorf("end %d: event %s after %v, want %v", n+1, e, time.Since(begun), want)
			}
			b.holds(false)
		}
		b.Close()
		if b.opened != 3 || b.closed != 3 {
			t.Errorf("%d opened, %d closed", b.opened, b.closed)
		}
	})
}
