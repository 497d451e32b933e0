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
	devices []*fakeDevice // that were opened
	refuse  error         // of open
}

func newDriverBed(t *testing.T) *driverBed {
	b := &driverBed{t: t}
	b.Driver = NewDriver(t.Context(), netip.MustParsePrefix("10.42.0.0/16"), nil, slog.New(slog.DiscardHandler))
	b.open = func(string, dataplane.Link) (Endpoints, error) {
		if b.refuse != nil {
			return Endpoints{}, b.refuse
		}
		b.devices = append(b.devices, newFakeDevice(t))
		return Endpoints{Device: b.last(), Socket: newFakeSocket()}, nil
	}
	t.Cleanup(b.Close)
	return b
}

// last returns the device that was opened last.
func (b *driverBed) last() *fakeDevice { return b.devices[len(b.devices)-1] }

// counts checks how many devices were opened, and how many of them closed.
func (b *driverBed) counts(opened, closed int) {
	b.t.Helper()
	n := 0
	for _, d := range b.devices {
		if d.closed {
			n++
		}
	}
	if len(b.devices) != opened || n != closed {
		b.t.Errorf("%d devices opened, %d closed; want %d, %d", len(b.devices), n, opened, closed)
	}
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

// text returns an entry in the form of put.
func text(subnet netip.Prefix, host netip.AddrPort) string {
	if !host.IsValid() {
		return subnet.String()
	}
	return subnet.String() + " " + host.String()
}

// shows checks the content of a Snapshot.
func (b *driverBed) shows(entries ...string) {
	b.t.Helper()
	var got []string
	for k, peer := range b.snapshot().Tunnel {
		got = append(got, text(k.Subnet, peer))
	}
	if slices.Sort(got); !slices.Equal(got, entries) {
		b.t.Errorf("a snapshot has %q, want %q", got, entries)
	}
}

// holds checks the content of a Snapshot, and that it is in effect.
func (b *driverBed) holds(entries ...string) {
	b.t.Helper()
	b.shows(entries...)
	b.runs(entries...)
}

// runs checks the table in effect.
func (b *driverBed) runs(entries ...string) {
	b.t.Helper()
	o := b.tunnels[tunDevice].tunnel.state.Load().table.overlay
	got := []string{text(o.Own, netip.AddrPort{})}
	for _, p := range o.Peers {
		got = append(got, text(p.Subnet, p.Addr))
	}
	if slices.Sort(got); !slices.Equal(got, entries) {
		b.t.Errorf("in effect is %q, want %q", got, entries)
	}
}

func (b *driverBed) snapshot() dataplane.State {
	b.t.Helper()
	s := dataplane.NewState()
	s.Links[tunDevice] = dataplane.Link{Kind: dataplane.KindTUN, MTU: 1400}
	s.Links["eth0"] = dataplane.Link{Kind: "device"}
	if err := b.Snapshot(dataplane.Scope{}, &s); err != nil || s.Links["eth0"].Kind != "device" {
		b.t.Errorf("%v, read\n%s", err, s.Text())
	}
	return s
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
	b.shows()
	b.start()
	// Until it is known which subnet is ours, entries wait.
	if failed := b.put("10.42.9.0/24 198.51.100.9:8285"); failed != nil {
		t.Errorf("%q failed", failed)
	}
	b.shows("10.42.9.0/24 198.51.100.9:8285")
	if b.tunnels[tunDevice].tunnel != nil {
		t.Error("there is a tunnel without a subnet of ours")
	}
	b.put("10.42.7.0/24", "10.42.20.0/24 198.51.100.20:8285")
	b.holds("10.42.20.0/24 198.51.100.20:8285", "10.42.7.0/24", "10.42.9.0/24 198.51.100.9:8285")
	b.put("10.42.9.0/24 198.51.100.99:8285", "-10.42.20.0/24")
	b.holds("10.42.7.0/24", "10.42.9.0/24 198.51.100.99:8285")
	// Another subnet is ours, and the previous one is a peer's.
	b.put("10.42.6.0/24", "10.42.7.0/24 198.51.100.9:8285", "-10.42.9.0/24")
	b.holds("10.42.6.0/24", "10.42.7.0/24 198.51.100.9:8285")
	// No subnet is ours any more: until there is one again, the table stays.
	b.put("-10.42.6.0/24", "10.42.9.0/24 198.51.100.9:8285")
	b.shows("10.42.7.0/24 198.51.100.9:8285", "10.42.9.0/24 198.51.100.9:8285")
	b.runs("10.42.6.0/24", "10.42.7.0/24 198.51.100.9:8285")
	b.put("10.42.8.0/24")
	b.holds("10.42.7.0/24 198.51.100.9:8285", "10.42.8.0/24", "10.42.9.0/24 198.51.100.9:8285")
	b.counts(1, 0)
}

// TestInvalidEntriesFailAlone: they are neither in effect nor in a Snapshot, so that they count as
// missing.
func TestInvalidEntriesFailAlone(t *testing.T) {
	b := newDriverBed(t)
	b.start()
	bad := []string{"10.42.20.0/24 198.51.100.20:0", "10.42.20.0/24 [::1]:8285", "fd00::/64 198.51.100.20:8285", "fd00::/64"}
	if failed := b.put(append(bad, "10.42.7.0/24", "10.42.9.0/24 198.51.100.9:8285")...); !slices.Equal(failed, bad) {
		t.Errorf("%q failed", failed)
	}
	for mtu, want := range map[int]string{67: "change link flannel0: MTU: 67: must be 68 to 65535", 65536: "change link flannel0: MTU: 65536: must be 68 to 65535"} {
		link := tunLink
		link.MTU = mtu
		if err := b.Apply([]dataplane.Op{dataplane.SetLink(tunDevice, link, tunLink)})[0]; err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	b.holds("10.42.7.0/24", "10.42.9.0/24 198.51.100.9:8285")
}

// TestLinkOfATunnel: a device is reported with the attributes of its tunnel, or not at all.
func TestLinkOfATunnel(t *testing.T) {
	b := newDriverBed(t)
	if l, ok := b.snapshot().Links[tunDevice]; ok {
		t.Errorf("nobody is behind %+v", l)
	}
	b.start()
	want := tunLink
	want.MTU, want.Up = 1400, false // as the kernel has it
	if l := b.snapshot().Links[tunDevice]; l != want {
		t.Errorf("got %+v, want %+v", l, want)
	}
	b.put("10.42.7.0/24")
	open := tunLink
	open.AnySource = true
	for _, link := range []string{tunDevice, "flannel9"} { // one that has ended meanwhile
		if err := b.Apply([]dataplane.Op{dataplane.SetLink(link, open, tunLink)})[0]; err != nil {
			t.Error(err)
		}
	}
	if want.AnySource = true; b.snapshot().Links[tunDevice] != want || !b.tunnels[tunDevice].tunnel.state.Load().table.overlay.AllowUnknownSources {
		t.Error("it does not take packets from everybody")
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
		b.last().batches <- []Packet{{Data: to("10.42.1.2", tcpSpec{}).packet()}, {Data: to("10.42.99.2", tcpSpec{}).packet()}}
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
			b.last().readErr = ErrDeviceGone
			close(b.last().batches)
			if e := <-b.Events(); e != driver.Links || time.Since(begun) != want {
				t.Errorf("end %d: event %s after %v, want %v", n+1, e, time.Since(begun), want)
			}
			b.shows()
		}
		b.Close()
		b.counts(3, 3)
	})
}
