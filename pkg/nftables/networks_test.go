package nftables

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/netlink"
)

var other = firewall.Overlay{Network: netip.MustParsePrefix("10.43.0.0/16"), Subnet: netip.MustParsePrefix("10.43.9.0/24")}

// daemonOf is the owner of one overlay, on a host with several.
func daemonOf(o firewall.Overlay) firewall.Owner {
	return firewall.Owner{Network: o.Network, Overlays: []firewall.Overlay{o}}
}

// words are the rules that TestTwoNetworks speaks of: n of 10.42.0.0/16, m of 10.43.0.0/16; N and M
// are the accepts of the same.
func words() map[string]listed {
	words := map[string]listed{
		"jump":   {effect: effect{branches: true, jump: "FLANNEL-FWD"}},
		"docker": {effect: effect{branches: true, jump: "DOCKER-USER"}},
		"drop":   {effect: effect{drops: true}},
		"theirs": {effect: effect{drops: true}, rule: rule{Family: IPv4, Rule: firewall.Rule{Src: firewall.In(other.Network)}}},
	}
	add := func(word string, r rule) { words[word] = listed{ok: true, rule: r} }
	for letter, o := range map[string]firewall.Overlay{"n": four, "m": other} {
		for _, c := range all(o) {
			for i, r := range c.Rules {
				r := newRule(IPv4, c.Hook, r)
				switch {
				case r.Shared():
					add("mark", r)
				case c.Hook == firewall.PostRouting:
					add(fmt.Sprint(letter, i), r)
				case c.Hook == firewall.Forward:
					add(letter+"in"[i:i+1], r)
					r.Comment = firewall.ForeignComment
					add(strings.ToUpper(letter)+"in"[i:i+1], r)
				}
			}
		}
	}
	return words
}

// hand is a host's rules in a test: the listing, and the effect of the plan on it.
type hand struct {
	t      *testing.T
	words  map[string]listed
	handle uint64
	ruleset
}

// fill returns a chain from the words.
func (h *hand) fill(text string) (rules []listed) {
	for _, word := range strings.Fields(text) {
		l, ok := h.words[word]
		if !ok {
			h.t.Fatalf("no word %q", word)
		}
		h.handle++
		l.handle = h.handle
		rules = append(rules, l)
	}
	return rules
}

func (h *hand) text(rules []listed) string {
	var text []string
	for _, l := range rules {
		l.handle = 0
		word := "?"
		for w, is := range h.words {
			if is == l {
				word = w
			}
		}
		text = append(text, word)
	}
	return strings.Join(text, " ")
}

// newHand has our table with both chains, and a foreign one that drops by its policy. A chain of
// "-" is not there.
func newHand(t *testing.T, postrtg, forward, foreignRules string) *hand {
	h := &hand{t: t, words: words()}
	for i, text := range []string{postrtg, forward} {
		if text != "-" {
			h.create(ownChains()[i], h.fill(text))
		}
	}
	h.foreign = []foreign{{hook: firewall.Forward, chain: chain{
		chainName: chainName{IPv4, "filter", "FORWARD"}, base: true, policy: nfDrop,
		place: place{"filter", unix.NF_INET_FORWARD, 0}, rules: h.fill(foreignRules),
	}}}
	return h
}

// create adds one of our chains, and the table if there is none.
func (h *hand) create(c ownChain, rules []listed) {
	if h.table == nil {
		h.table = &table{family: IPv4, name: IPv4.tableName()}
	}
	h.table.uses++
	h.chains = append(h.chains, chain{
		chainName: chainName{IPv4, IPv4.tableName(), c.name}, base: true, place: c.at, policy: nfAccept, rules: rules,
	})
}

// apply does what the kernel would.
func (h *hand) apply(ms []message) {
	for _, m := range ms {
		a := netlink.Attrs(m.body).Map()
		switch m.kind {
		case unix.NFT_MSG_NEWTABLE:
			h.table = &table{family: IPv4, name: a[unix.NFTA_TABLE_NAME].Text()}
		case unix.NFT_MSG_DELTABLE:
			h.table, h.chains = nil, nil
		case unix.NFT_MSG_NEWCHAIN:
			for _, c := range ownChains() {
				if c.name == a[unix.NFTA_CHAIN_NAME].Text() {
					h.create(c, nil)
				}
			}
		case unix.NFT_MSG_DELCHAIN:
			h.chains = slices.DeleteFunc(h.chains, func(c chain) bool { return c.name == a[unix.NFTA_CHAIN_NAME].Text() })
			h.table.uses--
		case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
			h.rule(m, a)
		}
	}
}

// rule adds a rule or deletes one, or all of a chain.
func (h *hand) rule(m message, a map[uint16]netlink.Value) {
	rules := &h.foreign[0].rules
	if a[unix.NFTA_RULE_TABLE].Text() == IPv4.tableName() {
		i := slices.IndexFunc(h.chains, func(c chain) bool { return c.name == a[unix.NFTA_RULE_CHAIN].Text() })
		if i < 0 {
			h.t.Fatalf("no chain %s", a[unix.NFTA_RULE_CHAIN].Text())
		}
		rules = &h.chains[i].rules
	}
	at := func(kind uint16) int {
		i := slices.IndexFunc(*rules, func(l listed) bool { return l.handle == a[kind].Uint64BE() })
		if i < 0 {
			h.t.Fatalf("no rule of handle %d", a[kind].Uint64BE())
		}
		return i
	}
	if m.kind == unix.NFT_MSG_DELRULE {
		if a[unix.NFTA_RULE_HANDLE] == nil {
			*rules = nil
			return
		}
		i := at(unix.NFTA_RULE_HANDLE)
		*rules = slices.Delete(*rules, i, i+1)
		return
	}
	h.handle++
	l := listed{handle: h.handle, ok: true}
	l.rule, _ = parseRule(IPv4, parseExpressions(a[unix.NFTA_RULE_EXPRESSIONS]), a[unix.NFTA_RULE_USERDATA])
	place := 0
	switch {
	case a[unix.NFTA_RULE_POSITION] != nil:
		place = at(unix.NFTA_RULE_POSITION) + 1
	case m.flags&unix.NLM_F_APPEND != 0:
		place = len(*rules)
	}
	*rules = slices.Insert(*rules, place, l)
}

// chain is the words of one of ours.
func (h *hand) chain(name string) string {
	for _, c := range h.chains {
		if c.name == name {
			return h.text(c.rules)
		}
	}
	return "-"
}

// TestTwoNetworks gives rules to the daemon of 10.42.0.0/16 that also belong to another one, in the
// chains postrtg and forward of our table and in a foreign chain.
func TestTwoNetworks(t *testing.T) {
	const (
		n, m  = "n1 n2 n3 n4", "m1 m2 m3 m4"
		none  = "none"
		masq  = "masquerade"
		fwd   = "forward"
		whole = "all"
	)
	wants := map[string][]firewall.Chain{none: nil, masq: all(four)[:1], fwd: forward(four), whole: all(four)}
	tests := []struct {
		name           string
		want           string
		have           [3]string // postrtg, forward, FORWARD
		after          [3]string
		messages, says int
	}{
		{"nothing there", whole, [3]string{"-", "-", ""}, [3]string{"mark " + n, "ni nn", "Ni Nn"}, 12, 4},
		{"the other's are there", whole, [3]string{"mark " + m, "mi mn", "Mi Mn"}, [3]string{"mark " + m + " " + n, "mi mn ni nn", "Ni Nn Mi Mn"}, 8, 3},
		{"both", whole, [3]string{"mark " + m + " " + n, "mi mn ni nn", "Mi Mn Ni Nn"}, [3]string{"mark " + m + " " + n, "mi mn ni nn", "Mi Mn Ni Nn"}, 0, 0},
		{"both, ours first", whole, [3]string{"mark " + n + " " + m, "ni nn mi mn", "Ni Nn Mi Mn"}, [3]string{"mark " + n + " " + m, "ni nn mi mn", "Ni Nn Mi Mn"}, 0, 0},
		{"both mingled", whole, [3]string{"mark n1 m1 n2 m2 n3 m3 m4 n4", "ni mi nn mn", "Ni Mi Nn Mn"}, [3]string{"mark n1 m1 n2 m2 n3 m3 m4 n4", "ni mi nn mn", "Ni Mi Nn Mn"}, 0, 0},
		{"half of the other's", whole, [3]string{"mark m4 " + n, "mn ni nn", "Ni Nn Mn"}, [3]string{"mark m4 " + n, "mn ni nn", "Ni Nn Mn"}, 0, 0},
		{"half of ours", whole, [3]string{"mark " + m + " n2 n3", "nn mi mn", "Mi Mn Nn"}, [3]string{"mark " + m + " " + n, "mi mn ni nn", "Ni Nn Mi Mn"}, 2 + 4 + 1 + 2 + 1 + 2, 3},
		{"ours in another order", masq, [3]string{"mark n2 n1 n3 n4 " + m, "-", ""}, [3]string{"mark " + m + " " + n, "-", ""}, 8, 1},
		{"the mark not first", masq, [3]string{m + " mark " + n, "-", ""}, [3]string{"mark " + m + " " + n, "-", ""}, 2, 1},
		{"the mark twice", masq, [3]string{"mark " + m + " mark " + n, "-", ""}, [3]string{"mark " + m + " " + n, "-", ""}, 3, 1},
		{"nobody's", fwd, [3]string{"-", "drop mi mn ni nn", "Ni Nn"}, [3]string{"-", "mi mn ni nn", "Ni Nn"}, 1, 1},
		{"a stranger's that names the other network", fwd, [3]string{"-", "theirs ni nn", "Ni Nn"}, [3]string{"-", "theirs ni nn", "Ni Nn"}, 0, 0},
		{"the other masquerades, we do not any more", fwd, [3]string{"mark " + m + " " + n, "ni nn", "Ni Nn"}, [3]string{"mark " + m, "ni nn", "Ni Nn"}, 4, 1},
		{"we masquerade, the other forwards", masq, [3]string{"-", "mi mn", "Mi Mn"}, [3]string{"mark " + n, "mi mn", "Mi Mn"}, 6, 1},
		{"the other's accepts first, and docker's", fwd, [3]string{"-", "ni nn", "Mi Mn docker Ni Nn drop"}, [3]string{"-", "ni nn", "Mi Mn docker Ni Nn drop"}, 0, 0},
		{"the other's jump by iptables first", fwd, [3]string{"-", "ni nn", "jump Ni Nn drop"}, [3]string{"-", "ni nn", "jump Ni Nn drop"}, 0, 0},
		{"the same behind ours", fwd, [3]string{"-", "ni nn", "Ni Nn jump drop"}, [3]string{"-", "ni nn", "Ni Nn jump drop"}, 0, 0},
		{"a stranger's between", fwd, [3]string{"-", "ni nn", "Mi drop Ni Nn"}, [3]string{"-", "ni nn", "Ni Nn Mi drop"}, 4, 1},
		{"none wanted, none there", none, [3]string{"-", "-", ""}, [3]string{"-", "-", ""}, 0, 0},
		{"none wanted, the other's only", none, [3]string{"mark " + m, "mi mn", "Mi Mn"}, [3]string{"mark " + m, "mi mn", "Mi Mn"}, 0, 0},
		{"none wanted, both", none, [3]string{"mark " + m + " " + n, "ni mi mn nn", "Ni Nn Mi Mn"}, [3]string{"mark " + m, "mi mn", "Mi Mn"}, 8, 3},
		{"none wanted, ours alone in one chain", none, [3]string{"mark " + n, "mi mn", "Mi Mn"}, [3]string{"-", "mi mn", "Mi Mn"}, 2, 1},
		{"none wanted, ours are the last", none, [3]string{"mark " + n, "ni nn", "Ni Nn drop"}, [3]string{"-", "-", "drop"}, 3, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHand(t, tt.have[0], tt.have[1], tt.have[2])
			want := firewall.Ruleset{Owner: daemonOf(four), Chains: wants[tt.want]}
			if tt.want == masq { // the foreign chain's are not wanted, but the other's stay
				h.foreign[0].policy = nfAccept
			}
			p := newPlan(want, h.ruleset)
			h.apply(p.messages)
			if got := [3]string{h.chain("postrtg"), h.chain("forward"), h.text(h.foreign[0].rules)}; got != tt.after {
				t.Errorf("got  %q\nwant %q\nby %q", got, tt.after, p.changes)
			}
			if len(p.messages) != tt.messages || len(p.changes) != tt.says {
				t.Errorf("%d messages, %q", len(p.messages), p.changes)
			}
			if again := newPlan(want, h.ruleset); len(again.messages) > 0 {
				t.Errorf("a second pass: %q", again.changes)
			}
		})
	}
}

// TestUnsoundTable creates the table again, with the rules of another network.
func TestUnsoundTable(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for _, damage := range []string{
		"add chain ip flannel-ipv4 x; add rule ip flannel-ipv4 forward jump x",
		"add table ip flannel-ipv4 { flags dormant; }",
		"add chain ip flannel-ipv4 masqueradeTest { type nat hook postrouting priority srcnat; }",
		"delete chain ip flannel-ipv4 forward; add chain ip flannel-ipv4 forward; add rule ip flannel-ipv4 forward ip saddr 10.43.0.0/16 accept",
	} {
		for _, want := range [][]firewall.Chain{all(four), forward(four), nil} {
			for _, o := range []firewall.Overlay{other, four} {
				b.syncFor(daemonOf(o), firewall.IPv4, all(o))
			}
			b.nft(damage)
			b.syncFor(daemonOf(four), firewall.IPv4, want)
			if n := strings.Count(b.ruleset(), "10.42.0.0/16"); want == nil && n > 0 {
				t.Errorf("%s: nothing is wanted of\n%s", damage, b.ruleset())
			}
			once := strings.Count(b.ruleset(), "10.43.0.0/16")
			b.syncFor(daemonOf(other), firewall.IPv4, all(other))
			if n := strings.Count(b.ruleset(), "10.43.0.0/16"); n != 8 || n != once && !strings.Contains(damage, "delete") {
				t.Errorf("%s: of the other network there was %d times, and is\n%s", damage, once, b.ruleset())
			}
			b.syncFor(daemonOf(four), firewall.IPv4, nil)
			b.syncFor(daemonOf(other), firewall.IPv4, nil)
			equal(t, b.ruleset(), "")
		}
	}
}

// TestDaemonsAtOnce has daemons of several networks write and remove their rules at the same time,
// while another's are there.
func TestDaemonsAtOnce(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.sh("iptables-nft -P FORWARD DROP")
	before := b.ruleset()
	b.syncFor(daemonOf(four), firewall.IPv4, all(four))
	overlays := []firewall.Overlay{four}
	var writers sync.WaitGroup
	for i := range 3 {
		network := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(50 + i), 0, 0}), 16)
		o := firewall.Overlay{Network: network, Subnet: netip.PrefixFrom(network.Addr(), 24)}
		overlays = append(overlays, o)
		tables := b.open()
		writers.Go(func() {
			for round := range 101 {
				if _, err := tables.Sync(context.Background(), firewall.Ruleset{Owner: daemonOf(o), Chains: [][]firewall.Chain{all(o), nil}[round%2]}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	ended := make(chan struct{})
	go func() { writers.Wait(); close(ended) }()
	for listings := 0; ; listings++ {
		b.tables.mu.Lock()
		w, err := b.tables.conn.list(IPv4)
		b.tables.mu.Unlock()
		if p := newPlan(firewall.Ruleset{Owner: daemonOf(four), Chains: all(four)}, w); err == nil && len(p.changes) > 0 {
			t.Fatalf("after %d listings: %q", listings, p.changes)
		}
		select {
		case <-ended:
			t.Logf("%d listings", listings)
			for _, o := range overlays {
				was := b.generation()
				if b.syncFor(daemonOf(o), firewall.IPv4, all(o)); b.generation() != was {
					t.Errorf("%s: something was still to be done", o.Network)
				}
			}
			for _, o := range overlays {
				b.syncFor(daemonOf(o), firewall.IPv4, nil)
			}
			equal(t, b.ruleset(), before)
			return
		default:
		}
	}
}
