package status

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"flanneld/pkg/lab/golden"
)

// at is the time of the documents.
var at = time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)

func ptr[T any](v T) *T { return &v }

// healthy returns the document of a host on which all is fine.
func healthy() Document {
	d := NotRunning(at, "", "")
	d.Daemon = Daemon{Version: "1.2.3", PID: 4321, Started: at.Add(-75 * time.Hour), Ready: true}
	d.Store = Store{API: "v3", Prefix: "/coreos.com/network", Endpoints: []string{"http://198.51.100.1:2379"}, Up: ptr(true), ViewAge: ptr(2.5)}
	d.Network = Network{netip.MustParsePrefix("10.42.0.0/16"), 24}
	d.Lease = Lease{Subnet: netip.MustParsePrefix("10.42.7.0/24"), Expires: ptr(at.Add(23 * time.Hour)), Remaining: ptr(23 * 3600.0)}
	d.Uplink = Uplink{"eth0", netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("198.51.100.7"), 1500}
	d.Backend = Backend{"vxlan", "flannel.1", 1450}
	d.Bridge = &Bridge{"docker0", netip.MustParseAddr("10.42.7.1"), 1450}
	d.Filter = Filter{Keeper: "nftables", Version: "1.0.9", Masquerade: true, Forward: true}
	d.Drift = ptr(0)
	for i := range 3 {
		p := Peer{
			Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 42, byte(i + 1), 0}), 24), PublicIP: netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 11)}),
			State: OK, Programmed: "fdb, neighbour, route on flannel.1",
		}
		p.SetProbe(Probe{State: ProbeOK, RTT: 412 * time.Microsecond, Answered: at})
		d.Peers = append(d.Peers, p)
	}
	return d
}

// change changes a healthy document.
type change struct {
	name    string
	do      func(d *Document)
	verdict Verdict
	reason  string
}

func changes() []change {
	warning := Condition{ID: "host/docker/docker0", Severity: Warning, Since: at.Add(-90 * time.Second), Text: "docker bridge is not on this host's subnet", Remedy: "systemctl restart docker"}
	severe := Condition{ID: "kernel/fight", Severity: Severe, Since: at.Add(-time.Second), Text: "another program keeps undoing changes"}
	notice := Condition{ID: "packet-filter-unread", Severity: Notice, Since: at.Add(-49 * time.Hour), Text: "failed to check other rules"}
	away := func(d *Document) {
		d.Store.Up, d.Store.DownSince = ptr(false), ptr(at.Add(-5*time.Minute))
		d.Conditions = append(d.Conditions, Condition{ID: StoreDown, Severity: Warning, Since: at.Add(-5 * time.Minute), Text: "etcd does not answer, waiting for it"})
	}
	return []change{
		{"healthy", func(*Document) {}, VerdictOK, ""},
		{"notice", func(d *Document) { d.Conditions = append(d.Conditions, notice) }, VerdictOK, ""},
		{"warning", func(d *Document) { d.Conditions = append(d.Conditions, notice, warning) }, VerdictDegraded, warning.Text},
		{"severe", func(d *Document) { d.Conditions = append(d.Conditions, warning, severe) }, VerdictDegraded, severe.Text},
		{"oldest", func(d *Document) {
			d.Conditions = append(d.Conditions, warning, Condition{Severity: Warning, Text: "newer"})
		}, VerdictDegraded, warning.Text},
		{"uplink", func(d *Document) {
			d.Conditions = append(d.Conditions, severe, Condition{ID: "uplink", Severity: Warning, Text: "uplink is unusable"})
		}, VerdictDown, "uplink is unusable"},
		{"device", func(d *Document) {
			d.Conditions = append(d.Conditions, Condition{ID: "base/link flannel.1", Severity: Severe, Text: "failed to set up the overlay"})
		}, VerdictDown, "failed to set up the overlay"},
		{"etcd", away, VerdictDegraded, "etcd does not answer"},
		{"etcd and more", func(d *Document) { away(d); d.Conditions = append(d.Conditions, severe) }, VerdictDegraded, severe.Text},
		{"restart", func(d *Document) {
			away(d)
			d.Daemon.Ready, d.Drift, d.Peers, d.Lease.Remaining, d.Lease.Expires = false, nil, []Peer{}, nil, nil
		}, VerdictDegraded, "restarted without etcd, the network stays as it is: etcd does not answer"},
		{"restart before etcd is asked", func(d *Document) {
			d.Daemon.Ready, d.Store.Up, d.Drift, d.Lease.Remaining, d.Lease.Expires = false, nil, nil, nil, nil
			d.Conditions = []Condition{{ID: "etcd-srv", Severity: Warning, Since: at, Text: "cannot find etcd"}}
		}, VerdictDegraded, "restarted, etcd was not asked yet, the network stays as it is: cannot find etcd"},
		{"start", func(d *Document) {
			*d = NotRunning(at, "", "")
			d.Daemon = Daemon{Version: "1.2.3", PID: 4321, Started: at}
		}, VerdictDown, "this host has no subnet"},
		{"no config", func(d *Document) {
			d.Lease, d.Daemon.Ready, d.Peers = Lease{}, false, []Peer{}
			d.Conditions = []Condition{{ID: "network-config", Severity: Warning, Since: at, Text: "network config is missing", Remedy: "etcdctl put"}}
		}, VerdictDown, "this host has no subnet: network config is missing"},
		{"etcd at the start", func(d *Document) { away(d); d.Lease, d.Daemon.Ready = Lease{}, false }, VerdictDown, "this host has no subnet: etcd does not answer"},
		{"not ready", func(d *Document) { d.Daemon.Ready = false }, VerdictDown, "this host is not ready yet"},
		{"lost", func(d *Document) { d.Lease.Lost = true }, VerdictDown, "another host has taken the subnet of this one"},
		{"drift", func(d *Document) { d.Drift, d.DriftKinds = ptr(3), map[string]int{"route": 2, "fdb": 1} }, VerdictDegraded, "3 kernel objects are not as wanted"},
		{"unread", func(d *Document) { d.Drift = nil }, VerdictDegraded, "it is unknown whether"},
		{"peers", func(d *Document) {
			d.Peers[0].State, d.Peers[0].Reason = Skipped, "public IP is our own: 198.51.100.7"
			d.Peers[0].Programmed, d.Peers[0].Changed = "", ptr(at.Add(-time.Hour))
			d.Peers[1].State, d.Peers[1].Reason = Unprogrammed, "route 10.42.2.0/24: no such device"
			d.Peers[2].SetProbe(Probe{State: ProbeFailing, Loss: 1, Answered: at, Fault: "does not answer probes since 2026-08-01 11:00:00"})
			d.Peers = append(d.Peers, Peer{Subnet: netip.MustParsePrefix("10.42.9.0/24"), State: Unknown, Probe: ProbeUnknown, Reason: "the kernel was not read yet"})
		}, VerdictDegraded, "of 4 peers, 1 unprogrammed, 1 skipped, 1 failing the probe, 1 unknown"},
		{"lossy peers", func(d *Document) {
			d.Peers[0].SetProbe(Probe{State: ProbeLossy, Loss: .384, RTT: 1234 * time.Millisecond, Answered: at, Fault: "38 % of the probes are lost"})
			d.Peers[1].SetProbe(Probe{State: ProbeLossy, Loss: .25, RTT: 12340 * time.Microsecond, Answered: at, Fault: "25 % of the probes are lost"})
		}, VerdictDegraded, "of 3 peers, 2 losing packets"},
		{"silent peer", func(d *Document) { d.Peers[0].Probe, d.Peers[0].RTT, d.Peers[0].Loss = ProbeUnknown, nil, nil }, VerdictOK, ""},
		{"traffic", func(d *Document) {
			d.Peers[0].Sent, d.Peers[0].Received = &Traffic{3, 252}, &Traffic{2, 168}
			d.Uplink.PublicIP, d.Store.Invalid = netip.MustParseAddr("203.0.113.7"), 2
			d.Lease.Remaining, d.Filter.Lock = ptr(-61.0), true
			d.LastRepair = &Repair{At: at.Add(-61 * time.Minute), What: "+1 link, +1 address"}
		}, VerdictOK, ""},
		{"hostile", func(d *Document) {
			d.Peers[0].State, d.Peers[0].Reason = Skipped, "backend type is not vxlan: \x1b[2J\nok\u202e"
			d.Peers[1].State = "ok\x1b[8m"
			d.Conditions = []Condition{{ID: "x\n", Severity: "warning\x1b[8m", Since: at, Text: "\x1b]0;title\x07\xff", Remedy: "rm\r"}}
		}, VerdictDegraded, "\x1b]0;title\x07\xff"},
	}
}

func TestVerdict(t *testing.T) {
	for _, c := range changes() {
		d := healthy()
		c.do(&d)
		d.Judge()
		if d.Verdict != c.verdict || !strings.HasPrefix(d.Reason, c.reason) || (d.Reason == "") != (c.verdict == VerdictOK) {
			t.Errorf("%s: %s: %q, want %s: %q", c.name, d.Verdict, d.Reason, c.verdict, c.reason)
		}
	}
}

// TestText compares the text of each document with a file: in a pipe, and on a terminal with all
// peers.
func TestText(t *testing.T) {
	for _, c := range changes() {
		d := healthy()
		c.do(&d)
		d.Judge()
		pipe, terminal := d.Text(Style{}), d.Text(Style{All: true, Aligned: true, Colors: true})
		golden.Equal(t, filepath.Join("testdata", strings.ReplaceAll(c.name, " ", "-")+".txt"), pipe+"\n"+strings.ReplaceAll(terminal, "\x1b[", "^["))
		if !utf8.ValidString(pipe) || strings.ContainsAny(pipe, "\x1b\x07\r\u202e") || strings.Contains(strings.NewReplacer(red, "", green, "", yellow, "", reset, "").Replace(terminal), "\x1b") {
			t.Errorf("%s: control characters in\n%q\n%q", c.name, pipe, terminal)
		}
	}
	d := NotRunning(at, VerdictDown, "flanneld is not running")
	if got := d.Text(Style{}); got != "down: flanneld is not running\n'flanneld doctor' looks for the cause.\n" {
		t.Errorf("without a daemon: %q", got)
	}
}

// TestJSON checks the names that scripts rely on, that lists are never null, and that what is not
// known is null and not 0 or false.
func TestJSON(t *testing.T) {
	d := NotRunning(at, VerdictDown, "x")
	d.Peers = append(d.Peers, Peer{Subnet: netip.MustParsePrefix("10.42.1.0/24"), State: Unknown, Probe: ProbeUnknown})
	d.Conditions = append(d.Conditions, Condition{ID: "x", Severity: Notice, Since: at})
	text, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`{"version":1,`, `"verdict":"down"`, `"conditions":[{"id":"x",`, `"since":"2026-08-01T12:00:00Z"`, `"text":""`, `"remedy":""`,
		`"store":{"api":"","prefix":"",`, `"up":null`, `"view_age_seconds":null`, `"lease":{"subnet":"","expires":null`,
		`"backend":{"type":"","device":"","mtu":0}`, `"bridge":null`, `"peers":[{"subnet":"10.42.1.0/24","public_ip":"","state":"unknown","reason":""`,
		`"rtt_ms":null`, `"loss":null`, `"drift":null`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
	d.Bridge = new(Bridge)
	if text, err = json.Marshal(d); err != nil || !strings.Contains(string(text), `"bridge":{"device":"","address":"","mtu":0}`) {
		t.Errorf("%v: without a bridge: %s", err, text)
	}
	none, _ := json.Marshal(NotRunning(at, VerdictDown, ""))
	for _, want := range []string{`"conditions":[]`, `"peers":[]`, `"endpoints":[]`, `"drift_by_kind":{}`} {
		if !strings.Contains(string(none), want) {
			t.Errorf("no %s in %s", want, none)
		}
	}
	for _, c := range changes() {
		d := healthy()
		c.do(&d)
		d.Judge()
		text, err := json.Marshal(d)
		var back Document
		if err == nil {
			err = json.Unmarshal(text, &back)
		}
		if again, _ := json.Marshal(back); err != nil || string(again) != strings.ReplaceAll(string(text), `\ufffd`, "\ufffd") {
			t.Errorf("%s: %v: %s comes back as %s", c.name, err, text, again)
		}
	}
}

func TestSetProbe(t *testing.T) {
	for _, c := range []struct {
		probe     Probe
		rtt, loss string
	}{
		{Probe{State: ProbeOff, Loss: -1}, "unknown", "unknown"},
		{Probe{State: ProbeUnknown, Loss: -1}, "unknown", "unknown"},
		{Probe{State: ProbeUnknown, Loss: 0}, "unknown", "unknown"},
		{Probe{State: ProbeOK, RTT: 1234567 * time.Nanosecond, Answered: at}, "1.23 ms", "0 %"},
		{Probe{State: ProbeFailing, RTT: time.Millisecond, Loss: .5, Answered: at}, "1.00 ms", "50 %"},
	} {
		var p Peer
		p.SetProbe(c.probe)
		if rtt, loss := rtt(p.RTT), loss(p.Loss); rtt != c.rtt || loss != c.loss {
			t.Errorf("%+v: RTT %s, loss %s", c.probe, rtt, loss)
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 0: "0 s", 999 * time.Millisecond: "0 s", 59 * time.Second: "59 s", time.Minute: "1 min", 61 * time.Second: "1 min 1 s",
		time.Hour: "1 h", time.Hour + 59*time.Second: "1 h", 23*time.Hour + 59*time.Minute: "23 h 59 min", 49 * time.Hour: "2 d 1 h", 1 << 62: "53375 d 23 h",
	} {
		if got := Span(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

// BenchmarkText is of a document with very many peers, all of which are listed.
func BenchmarkText(b *testing.B) {
	d := healthy()
	p := d.Peers[0]
	d.Peers = nil
	for i := range 20_000 {
		p.Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
		d.Peers = append(d.Peers, p)
	}
	for b.Loop() {
		if text := d.Text(Style{All: true, Aligned: true, Colors: true}); !strings.Contains(text, fmt.Sprint(len(d.Peers), " peers: ")) {
			b.Fatal(text[:1000])
		}
	}
}
