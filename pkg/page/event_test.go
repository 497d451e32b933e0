package page

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"flanneld/pkg/status"
)

func ptr[T any](v T) *T { return &v }

// subnet returns the subnet of a peer.
func subnet(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 42, byte(i), 0}), 24)
}

// documentOf returns a document with peers.
func documentOf(peers ...int) status.Document {
	d := status.NotRunning(time.Unix(100, 0), status.VerdictOK, "")
	for _, i := range peers {
		d.Peers = append(d.Peers, status.Peer{Subnet: subnet(i), State: status.OK, Probe: status.ProbeOK, RTT: ptr(0.5)})
	}
	return d
}

// TestEventHasWhatHasChanged: peers that are new, that have changed, and that are gone.
func TestEventHasWhatHasChanged(t *testing.T) {
	before := newState(documentOf(1, 2, 3), 7)
	d := documentOf(1, 3, 4)
	d.Peers[1].RTT = ptr(0.6)
	e, differs := newState(d, 7).since(before)
	if !differs || e.Whole || len(e.Peers) != 2 || e.Peers[0].Subnet != subnet(3) || e.Peers[1].Subnet != subnet(4) || len(e.Gone) != 1 || e.Gone[0] != subnet(2) {
		t.Errorf("%v, %v", &e, differs)
	}
	if len(before.document.Peers) != 3 {
		t.Errorf("the state before has changed: %+v", before.document.Peers)
	}
}

// TestTimeIsNoChange: what changes only because time passes is not sent for its own sake.
func TestTimeIsNoChange(t *testing.T) {
	before := documentOf(1)
	before.Store.ViewAge, before.Lease.Remaining = ptr(1.0), ptr(100.0)
	for name, f := range map[string]struct {
		change  func(d *status.Document)
		samples uint64
		want    bool
	}{
		"time": {func(d *status.Document) {
			d.Now, d.Store.ViewAge, d.Lease.Remaining = time.Unix(101, 0), ptr(2.0), ptr(99.0)
		}, 0, false},
		"verdict":   {func(d *status.Document) { d.Verdict = status.VerdictDown }, 0, true},
		"condition": {func(d *status.Document) { d.Conditions = []status.Condition{{ID: "x"}} }, 0, true},
		"repair":    {func(d *status.Document) { d.Repairs = []status.Repair{{What: "x"}} }, 0, true},
		"sample":    {func(*status.Document) {}, 1, true},
		"peer":      {func(d *status.Document) { d.Peers[0].Loss = ptr(0.1) }, 0, true},
		"no peer":   {func(d *status.Document) { d.Peers = nil }, 0, true},
	} {
		d := documentOf(1)
		d.Store.ViewAge, d.Lease.Remaining = before.Store.ViewAge, before.Lease.Remaining
		f.change(&d)
		e, differs := newState(d, f.samples).since(newState(before, 0))
		if differs != f.want || e.Now != d.Now || e.Store.ViewAge != d.Store.ViewAge {
			t.Errorf("%s: differs %v, %v", name, differs, &e)
		}
	}
}

// TestEachFieldOfAPeerCounts: a peer with another value in any field is another one. A new field
// must be compared, too.
func TestEachFieldOfAPeerCounts(t *testing.T) {
	full := func() status.Peer {
		return status.Peer{
			Subnet: subnet(1), PublicIP: netip.MustParseAddr("192.0.2.1"), State: status.OK, Reason: "a", Programmed: "b", Probe: status.ProbeOK,
			RTT: ptr(1.0), Loss: ptr(0.5), Sent: &status.Traffic{Packets: 1}, Received: &status.Traffic{Packets: 2}, Changed: ptr(time.Unix(5, 0)),
		}
	}
	a, b := full(), full()
	if !samePeer(&a, &b) {
		t.Error("equal peers differ")
	}
	for i := range reflect.TypeFor[status.Peer]().NumField() {
		b := full()
		field := reflect.ValueOf(&b).Elem().Field(i)
		if reflect.ValueOf(a).Field(i).IsZero() {
			t.Errorf("%s: must be set in this test", reflect.TypeFor[status.Peer]().Field(i).Name)
		}
		field.SetZero()
		if samePeer(&a, &b) || samePeer(&b, &a) {
			t.Errorf("%s does not count", reflect.TypeFor[status.Peer]().Field(i).Name)
		}
	}
	b.RTT = ptr(2.0)
	if samePeer(&a, &b) {
		t.Error("another value behind a pointer does not count")
	}
}

// FuzzMessage: whatever text a document contains, a message is one event, whose data is the event.
func FuzzMessage(f *testing.F) {
	for _, text := range []string{"", "a\nb", "\r\n\r\ndata: {}\n\n", "id: 1\n", "\u2028\u2029", "</script>", "\x00\xff\xfe", "\ufeff", ": comment", "event: x"} {
		f.Add(text, text)
	}
	f.Fuzz(func(t *testing.T, reason, what string) {
		d := documentOf(1)
		d.Peers[0].Reason, d.Reason = reason, what
		d.Conditions = []status.Condition{{ID: reason, Text: what, Remedy: reason}}
		m := message(newState(d, 0).whole())
		data, framed := bytes.CutPrefix(m, []byte("data: "))
		data, ended := bytes.CutSuffix(data, []byte("\n\n"))
		if !framed || !ended || bytes.ContainsAny(data, "\r\n\x00") {
			t.Fatalf("it is not one event: %q", m)
		}
		var e Event
		if err := json.Unmarshal(data, &e); err != nil {
			t.Fatal(err)
		}
		text := func(s string) string { return string([]rune(s)) } // invalid bytes are replaced
		if !e.Whole || e.Peers[0].Reason != text(reason) || e.Reason != text(what) || e.Conditions[0].Remedy != text(reason) {
			t.Errorf("%+v", e)
		}
	})
}
