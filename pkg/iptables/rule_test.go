package iptables

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"flanneld/pkg/firewall"
)

func TestParseRule(t *testing.T) {
	src := func(m firewall.Match) firewall.Rule { return firewall.Rule{Src: m} }
	in, out := firewall.In(four.Network), firewall.NotIn(four.Network)
	host := firewall.In(overlay("10.42.0.1/32", "10.42.0.1/32").Network)
	tests := []struct {
		text string
		want spec // of an unknown rule, only the target
		bad  bool
	}{
		{text: "-j ACCEPT", want: spec{target: "ACCEPT"}},
		{text: "-s 10.42.0.0/16 -j ACCEPT", want: spec{rule: src(in), target: "ACCEPT"}},
		{text: "-s 10.42.0.0/255.255.0.0 -j ACCEPT", want: spec{rule: src(in), target: "ACCEPT"}},
		{text: "-s 10.42.3.4/16  -j ACCEPT ", want: spec{rule: src(in), target: "ACCEPT"}},
		{text: "! -s 10.42.0.0/16 -j RETURN", want: spec{rule: src(out), target: "RETURN"}},
		{text: "-s ! 10.42.0.0/16 -j RETURN", want: spec{rule: src(out), target: "RETURN"}},
		{text: "-s 10.42.0.1 -j RETURN", want: spec{rule: src(host), target: "RETURN"}},
		{text: "-s 0.0.0.0/0 -j RETURN", want: spec{target: "RETURN"}},
		{text: "-s 0.0.0.0/0.0.0.0 -j RETURN", want: spec{target: "RETURN"}},
		{text: "-d 10.42.0.0/16 ! -s 10.42.0.0/16 -j RETURN", want: spec{rule: firewall.Rule{Src: out, Dst: in}, target: "RETURN"}},
		{text: "-s fd42::/48 -j ACCEPT", want: spec{rule: src(firewall.In(six.Network)), target: "ACCEPT"}},
		{text: "-s fd42::/ffff:ffff:ffff:: -j ACCEPT", want: spec{rule: src(firewall.In(six.Network)), target: "ACCEPT"}},
		{text: "-m mark --mark 0x4000/0x4000 -j RETURN", want: spec{rule: firewall.Rule{Mark: 0x4000}, target: "RETURN"}},
		{text: `-m comment --comment "flanneld masq" -m mark --mark 0x4000/0x4000 -j RETURN`, want: spec{rule: firewall.Rule{Mark: 0x4000}, comment: "flanneld masq", target: "RETURN"}},
		{text: `-m comment --comment "it\'s \"q\" \\ -j X" -j RETURN`, want: spec{comment: `it's "q" \ -j X`, target: "RETURN"}},
		{text: "-m comment --comment plain -j DOCKER", want: spec{comment: "plain", target: "DOCKER"}},
		{text: "-j MASQUERADE --random-fully", want: spec{target: "MASQUERADE", random: true}},

		{bad: true, text: ""},
		{bad: true, text: "-s 10.42.0.0/16"},
		{bad: true, text: "-j"},
		{bad: true, text: "!"},
		{bad: true, text: "! -j ACCEPT", want: spec{target: "ACCEPT"}},
		{bad: true, text: "-g MINE", want: spec{target: "MINE"}},
		{bad: true, text: "-j ACCEPT -j DROP", want: spec{target: "DROP"}},
		{bad: true, text: "-i eth0 -j DROP", want: spec{target: "DROP"}},
		{bad: true, text: "! -i eth0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.42.7.2:80", want: spec{target: "DNAT"}},
		{bad: true, text: "-j MASQUERADE --random", want: spec{target: "MASQUERADE"}},
		{bad: true, text: "-j ACCEPT --random-fully", want: spec{target: "ACCEPT"}},
		{bad: true, text: "-m mark --mark 0x4000 -j RETURN", want: spec{target: "RETURN"}},
		{bad: true, text: "-m mark --mark 0x4000/0xffff -j RETURN", want: spec{target: "RETURN"}},
		{bad: true, text: "-m mark ! --mark 0x4000/0x4000 -j RETURN", want: spec{target: "RETURN"}},
		{bad: true, text: "-m mark --mark 0x1/0x1 -m mark --mark 0x2/0x2 -j RETURN", want: spec{target: "RETURN"}},
		{bad: true, text: "-s 10.42.0.0/255.0.255.0 -j ACCEPT", want: spec{target: "ACCEPT"}},
		{bad: true, text: "-s 10.42.0.0/0.255.0.0 -j ACCEPT", want: spec{target: "ACCEPT"}},
		{bad: true, text: "-s 10.42.0.0/33 -j ACCEPT", want: spec{target: "ACCEPT"}},
		{bad: true, text: "-s 10.42.0.0/-1 -j ACCEPT", want: spec{target: "ACCEPT"}},
		{bad: true, text: "-s 10.1.0.0/16 -s 10.2.0.0/16 -j ACCEPT", want: spec{target: "ACCEPT"}},
		{bad: true, text: `-m comment --comment "open -j ACCEPT`},
	}
	for _, tt := range tests {
		got, known := parseRule(tt.text)
		if known == tt.bad || got.target != tt.want.target || known && got != tt.want {
			t.Errorf("%q: got %+v, %v; want %+v", tt.text, got, known, tt.want)
		}
		if again, ok := parseRule(got.String()); known && (!ok || again != got) {
			t.Errorf("%q became %q", tt.text, got)
		}
	}
}

// TestWantedRulesAreKnown checks that written rules are parsed as the same.
func TestWantedRulesAreKnown(t *testing.T) {
	for _, o := range []firewall.Overlay{four, six, overlay("0.0.0.0/0", "10.0.0.0/8")} {
		for _, c := range everything(o) {
			for _, r := range c.Rules {
				want := specOf(r, c.Hook.Comment())
				if got, known := parseRule(want.String()); !known || got != want {
					t.Errorf("%s: got %+v, %v", want, got, known)
				}
			}
		}
	}
}

func TestParseListing(t *testing.T) {
	tests := []struct {
		name, text string
		want       listing
		err        string
	}{
		{name: "nothing", want: listing{}},
		{name: "remarks", text: "# Warning: iptables-legacy tables present, use iptables-legacy-save to see them\n\n", want: listing{}},
		{name: "table", text: "# Generated\n*nat\n:POSTROUTING ACCEPT [7:8]\n:MINE - [0:0]\n-A POSTROUTING -j MINE\nCOMMIT\n# Completed\n",
			want: listing{"nat": {"POSTROUTING": {"-j MINE"}, "MINE": nil}}},
		{name: "lines in quotes", text: "*nat\n-A X -m comment --comment \"a\\\"\nCOMMIT\n\" -j Y\n-A X -j Z\nCOMMIT",
			want: listing{"nat": {"X": {"-m comment --comment \"a\\\"\nCOMMIT\n\" -j Y", "-j Z"}}}},
		{name: "incompatible, not ours", text: "# Table `mangle' is incompatible, use 'nft' tool.\n", want: listing{}},
		{name: "incompatible", text: "# Table `nat' is incompatible, use 'nft' tool.\n", err: "only nft"},
		{name: "cut off", text: "*nat\n:POSTROUTING ACCEPT [7:8]\n", err: "incomplete"},
		{name: "cut off in quotes", text: "*nat\n-A X -m comment --comment \"a\nCOMMIT\n", err: "incomplete"},
		{name: "no table", text: "-A POSTROUTING -j MINE\n", err: "not understood"},
		{name: "table in table", text: "*nat\n*nat\nCOMMIT\n", err: "not understood"},
		{name: "garbage", text: "\x00\xff\"\n", err: "not understood"},
	}
	for _, tt := range tests {
		got, _, err := parseListing(tt.text)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: error %v, want %s", tt.name, err, tt.err)
			}
			continue
		}
		if err != nil || !maps.EqualFunc(got, tt.want, func(a, b table) bool { return maps.EqualFunc(a, b, slices.Equal) }) {
			t.Errorf("%s: got %q, %v, want %q", tt.name, got, err, tt.want)
		}
	}
}

// FuzzListing searches listings that break the parser, lead to an excessive plan, or to a second
// one.
func FuzzListing(f *testing.F) {
	f.Add("*nat\n:POSTROUTING ACCEPT [7:8]\n:FLANNEL - [0:0]\n-A POSTROUTING -s 10.42.0.0/16 -j FLANNEL\n-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\nCOMMIT\n")
	f.Add("*filter\n:FORWARD DROP [7:8]\n-A FORWARD -j DOCKER-USER\n-A FORWARD -m comment --comment \"it\\'s\n\" ! -s 10.42.0.0/255.255.0.0 -j FLANNEL-FWD\nCOMMIT\n")
	f.Add("*raw\n-A PREROUTING ! -i docker0 -j DROP\n-A PREROUTING -s ! 10.0.0.0 -m mark --mark 1/1 -j DROP\nCOMMIT\n")
	f.Fuzz(func(t *testing.T, text string) {
		l, _, err := parseListing(text)
		if err != nil {
			return
		}
		want, previous := everything(four), []firewall.Overlay{four, other}
		p := planned(l, want, previous...)
		if len(p.input()) > 8*len(text)+4096 {
			t.Fatalf("%d bytes become %d", len(text), len(p.input()))
		}
		if strings.Contains(strings.TrimPrefix(text, "*"), "*") || strings.Contains(text, "\"") {
			return // the same table twice, or rules of several lines: apply reads lines
		}
		apply(t, l, p.input())
		if again := planned(l, want, previous...); again.input() != "" {
			t.Fatalf("a second pass has\n%s\nafter\n%s", again.input(), p.input())
		}
	})
}
