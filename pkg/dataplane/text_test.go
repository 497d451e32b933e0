package dataplane

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"
)

// parse parses the output of Text, so that tests can have states as text.
func parse(t testing.TB, text string) State {
	t.Helper()
	s := NewState()
	for line := range strings.Lines(text) {
		f := words{t: t, all: strings.Fields(line)}
		if len(f.all) == 0 {
			continue
		}
		switch f.next() {
		case "link":
			name, l := f.link()
			s.Links[name] = l
		case "sysctl":
			name, _ := f.next(), f.next()
			s.Sysctls[name] = f.next()
		case "addr":
			p := f.prefix()
			s.Addrs[Addr{Link: f.after("dev"), Prefix: p}] = struct{}{}
		case "fdb":
			m := f.mac()
			s.FDB[FDB{MAC: m, Link: f.after("dev"), Dst: netip.MustParseAddr(f.after("dst"))}] = struct{}{}
		case "neigh":
			ip := netip.MustParseAddr(f.next())
			m, err := ParseMAC(f.after("lladdr"))
			if err != nil {
				t.Fatal(err)
			}
			s.Neighs[NeighKey{IP: ip, Link: f.after("dev")}] = m
		case "nexthop":
			s.NextHops[uint32(f.number("id"))] = NextHop{
				Link: f.after("dev"), Via: netip.MustParseAddr(f.after("via")), OnLink: f.has("onlink"), Proto: f.number("proto"),
			}
		case "route":
			k, r := f.route()
			s.Routes[k] = r
		default:
			t.Fatalf("unknown object: %s", line)
		}
	}
	return s
}

type words struct {
	t   testing.TB
	all []string
}

func (w *words) next() string {
	w.t.Helper()
	if len(w.all) == 0 {
		w.t.Fatal("line ends too early")
	}
	s := w.all[0]
	w.all = w.all[1:]
	return s
}

// after returns the word after a keyword, or "".
func (w *words) after(keyword string) string {
	for i, s := range w.all[:max(len(w.all)-1, 0)] {
		if s == keyword {
			return w.all[i+1]
		}
	}
	return ""
}

func (w *words) has(keyword string) bool {
	for _, s := range w.all {
		if s == keyword {
			return true
		}
	}
	return false
}

func (w *words) number(keyword string) int {
	n, _ := strconv.Atoi(w.after(keyword))
	return n
}

func (w *words) prefix() netip.Prefix {
	p, err := netip.ParsePrefix(w.next())
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *words) mac() MAC {
	m, err := ParseMAC(w.next())
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

func (w *words) link() (string, Link) {
	name := w.next()
	l := Link{
		Kind: w.after("type"), VNI: w.number("id"), Parent: w.after("dev"), Port: w.number("dstport"), MTU: w.number("mtu"),
		GBP: w.has("gbp"), Learning: w.has("learning"), Up: w.has("up"),
	}
	if s := w.after("local"); s != "" {
		l.Local = netip.MustParseAddr(s)
	}
	if s := w.after("address"); s != "" {
		l.MAC, _ = ParseMAC(s)
	}
	return name, l
}

func (w *words) route() (RouteKey, Route) {
	k := RouteKey{Dst: w.prefix(), Link: w.after("dev"), Metric: uint32(w.number("metric"))}
	r := Route{OnLink: w.has("onlink"), Proto: ProtoBoot, NextHop: uint32(w.number("nhid"))}
	if s := w.after("via"); s != "" {
		r.Via = netip.MustParseAddr(s)
		r.Scope = uint8(w.number("scope"))
	}
	switch s := w.after("proto"); s {
	case "":
	case "kernel":
		r.Proto = ProtoKernel
	default:
		r.Proto = w.number("proto")
	}
	r.LinkScope = k.Dst.Addr().Is4() && k.Link != "" && !r.Via.IsValid() && w.after("scope") == "" && r.Proto != ProtoKernel
	return k, r
}

const sample = `link flannel.1 mtu 1450 address 02:00:00:00:00:01 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning up
link flannel.2 mtu 1450 type vxlan id 2 local 192.0.2.1 dev eth0 dstport 8472 learning gbp down
link other mtu 1500 type bridge up
sysctl net/ipv6/conf/flannel.1/accept_ra = 0
addr 10.5.1.0/32 dev flannel.1
addr fd00:5:0:1::/128 dev flannel.1
fdb 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 self permanent
neigh 10.5.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent
nexthop id 168101120 via 10.5.5.0 dev flannel.1 onlink proto 70
route 10.5.0.0/16 dev flannel.1 proto kernel
route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink
route 10.5.3.0/24 via 192.0.2.3 dev eth0 proto 70 metric 5
route 10.5.4.0/24 multipath proto 4
route 10.5.5.0/24 nhid 168101120 via 10.5.5.0 dev flannel.1 onlink
route 10.5.6.0/24 dev flannel.1
route 10.5.7.0/24 dev flannel.1 scope global
route 10.5.8.0/24 via 10.5.8.0 dev flannel.1 scope 17 onlink
`

func TestText(t *testing.T) {
	if got := parse(t, sample).Text(); got != sample {
		t.Errorf("got:\n%s\nwant:\n%s", got, sample)
	}
	if got := NewState().Text(); got != "" {
		t.Errorf("the empty state reads %q", got)
	}
}

func TestParseMAC(t *testing.T) {
	if m, err := ParseMAC("02:AB:00:00:00:01"); err != nil || m.String() != "02:ab:00:00:00:01" {
		t.Errorf("got %s, %v", m, err)
	}
	for _, s := range []string{"", "00:00:00:00:00:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "02:00:00:00:00", "02:00:00:00:00:01:02:03", strings.Repeat("x", 1000)} {
		if _, err := ParseMAC(s); err == nil || len(err.Error()) > 200 {
			t.Errorf("%.20q: got %v", s, err)
		}
	}
}

func TestScope(t *testing.T) {
	s := Scope{Networks: []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16")}, Links: []string{"flannel.1"}}
	for p, want := range map[string]bool{"10.5.0.0/16": true, "10.5.2.0/24": true, "10.0.0.0/8": false, "10.6.0.0/24": false, "0.0.0.0/0": false, "::/0": false} {
		if got := s.Inside(netip.MustParsePrefix(p)); got != want {
			t.Errorf("%s inside: %v", p, got)
		}
	}
	for line, want := range map[string]bool{
		"10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink":   true,
		"10.5.2.0/24 via 192.0.2.2 dev eth0 proto 70":     true,
		"10.5.2.0/24 via 192.0.2.2 dev eth0":              false,
		"10.6.2.0/24 via 10.6.2.0 dev flannel.1 onlink":   false,
		"10.6.2.0/24 via 192.0.2.2 dev eth0 proto 70":     false,
		"10.5.2.0/24 multipath proto 70":                  false,
		"0.0.0.0/0 via 192.0.2.254 dev flannel.1":         false,
		"10.5.0.0/16 dev flannel.1 proto 4 metric 100000": true,
	} {
		k, r := (&words{t: t, all: strings.Fields(line)}).route()
		if got := s.OwnsRoute(k, r); got != want {
			t.Errorf("%s: ours: %v", line, got)
		}
	}
}
