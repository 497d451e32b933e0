package main

import (
	"errors"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/dataplane"
)

func TestQuantile(t *testing.T) {
	for _, test := range []struct {
		values []int
		q      float64
		want   int
	}{
		{nil, 0.5, 0},
		{[]int{7}, 0, 7},
		{[]int{7}, 0.99, 7},
		{[]int{3, 1, 2}, 0.5, 2},
		{[]int{4, 3, 2, 1}, 0.5, 2}, // always a value that was measured
		{[]int{5, 1, 4, 2, 3}, 1, 5},
		{[]int{5, 1, 4, 2, 3}, 0, 1},
		{[]int{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, 0.99, 10},
		{[]int{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, 0.9, 9},
	} {
		if got := quantile(test.values, test.q); got != test.want {
			t.Errorf("quantile %v of %v is %d, want %d", test.q, test.values, got, test.want)
		}
	}
	values := []time.Duration{3, 1, 2}
	if median(values) != 2 || values[0] != 3 {
		t.Errorf("median %v, and the values are now %v", median(values), values)
	}
}

func TestTakeTurns(t *testing.T) {
	var order []int
	measure := func(i int) error { order = append(order, i); return nil }
	if err := takeTurns(make([]path, 3), 3, measure); err != nil || !slices.Equal(order, []int{0, 1, 2, 2, 1, 0, 0, 1, 2}) {
		t.Errorf("order %v, %v", order, err)
	}
	err := takeTurns([]path{{name: "a"}, {name: "b"}}, 1, func(i int) error { return []error{nil, io.EOF}[i] })
	if !errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "b: ") {
		t.Errorf("error %v", err)
	}
}

func TestUnits(t *testing.T) {
	for got, want := range map[string]string{
		milliseconds(1234567 * time.Nanosecond): "1.2 ms",
		microseconds(1234567 * time.Nanosecond): "1235 µs",
		megabytes(19_990_000):                   "20.0 MB",
		shortest(12 * time.Microsecond):         "0.01",
		shortest(250 * time.Millisecond):        "250",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestParseBusy(t *testing.T) {
	d, err := parseBusy("cpu  1 2 4 1000 1000 8 16 32 64 128\ncpu0 …")
	if err != nil || d != 310*time.Millisecond {
		t.Errorf("%v, %v", d, err)
	}
	for _, text := range []string{"", "cpu0 1 2 3 4 5 6 7 8\n", "cpu 1 2 3\n", "cpu 1 2 3 4 5 6 x 8\n"} {
		if d, err := parseBusy(text); err == nil {
			t.Errorf("%q is %v", text, d)
		}
	}
}

func TestPhantoms(t *testing.T) {
	for i, want := range map[int]string{
		0:    `10.65.0.0-24 {"PublicIP":"198.18.0.0","PublicIPv6":null}`,
		4998: `10.84.134.0-24 {"PublicIP":"198.18.19.134","PublicIPv6":null}`,
	} {
		key, value := etcdPeer(netip.MustParsePrefix("10.64.0.0/11"), i)
		if key+" "+value != want {
			t.Errorf("peer %d: %s %s, want %s", i, key, value, want)
		}
	}
	n, err := tunnelEntries([]string{"+1 link, +1 address, +99 tunnel entry, +1 route", "+1 tunnel entry, -2 tunnel entry", "~7 tunnel entry"})
	if n != 98 || err != nil {
		t.Errorf("%d tunnel entries, %v", n, err)
	}
	if _, err := tunnelEntries([]string{"+many tunnel entry"}); err == nil {
		t.Error("no error")
	}
	if all := plural(1, "peer") + plural(100, "peer") + plural(5000, "peer"); all != "1 peer100 peers5,000 peers" {
		t.Error(all)
	}
}

func TestMadeUpPeers(t *testing.T) {
	p := examplePeer(4)
	if e, err := p.entry(overlay{name: "vxlan"}); err != nil || e.Key != "/subnets/10.42.5.0-24" || !strings.Contains(e.Value, `"PublicIP":"203.0.113.5"`) || !strings.Contains(e.Value, `"VtepMAC":"0a:00:00:00:00:05"`) {
		t.Errorf("%+v, %v", e, err)
	}
	s := dataplane.NewState()
	gw := p.subnet.Addr()
	for n, add := range []func(){
		func() { s.FDB[dataplane.FDB{Link: vxlanLink, MAC: p.mac, Dst: p.public}] = struct{}{} },
		func() { s.Neighs[dataplane.NeighKey{Link: vxlanLink, IP: gw}] = p.mac },
		func() {
			s.Routes[dataplane.RouteKey{Dst: p.subnet, Link: vxlanLink}] = dataplane.Route{Via: gw, OnLink: true}
		},
	} {
		if add(); p.among(s) != n+1 || examplePeer(3).among(s) != 0 {
			t.Errorf("%d objects of the peer, want %d, in\n%s", p.among(s), n+1, s.Text())
		}
	}
	s.Links[vxlanLink] = dataplane.Link{Kind: dataplane.KindVXLAN}
	for kind, want := range map[dataplane.Kind]string{
		dataplane.KindLink:  "ip link del flannel.1",
		dataplane.KindFDB:   "bridge fdb del 0a:00:00:00:00:05 dev flannel.1 dst 203.0.113.5 self permanent",
		dataplane.KindNeigh: "ip neigh del 10.42.5.0 dev flannel.1",
		dataplane.KindRoute: "ip route del 10.42.5.0/24 via 10.42.5.0 dev flannel.1 onlink",
	} {
		ops := deletions(s, vxlanLink, kind)
		if len(ops) != 1 || ops[0].Verb != dataplane.Del || ops[0].Object() == "" || len(deletions(s, "other", kind)) != 0 {
			t.Errorf("want %s, got %v", want, ops)
		}
	}
}
