package nftables

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/netlink"
)

// chance is a seeded source; the seed is printed for a repetition.
func chance(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

func randomMatch(r *rand.Rand, f Family) firewall.Match {
	if r.IntN(4) == 0 {
		return firewall.Match{}
	}
	b := make([]byte, f.bits()/8)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	a, _ := netip.AddrFromSlice(b)
	return firewall.Match{Prefix: netip.PrefixFrom(a, 1+r.IntN(f.bits())).Masked(), Not: r.IntN(2) == 0}
}

func randomRule(r *rand.Rand, f Family, hook firewall.Hook) rule {
	verdicts := []firewall.Verdict{firewall.Return, firewall.Accept, firewall.Masquerade, firewall.MasqueradeRandom}
	if hook != firewall.PostRouting {
		verdicts = []firewall.Verdict{firewall.Return, firewall.Accept, firewall.Discard}
	}
	out := firewall.Rule{Src: randomMatch(r, f), Dst: randomMatch(r, f), Verdict: verdicts[r.IntN(len(verdicts))]}
	if r.IntN(3) == 0 {
		out.Mark = r.Uint32()
	}
	if r.IntN(3) == 0 {
		out.Port = uint16(1 + r.IntN(65535))
	}
	return newRule(f, hook, out)
}

// TestReadBack: built rules are parsed as the same, in both kinds of tables.
func TestReadBack(t *testing.T) {
	r := chance(t)
	for range 5000 {
		f := []Family{IPv4, IPv6}[r.IntN(2)]
		want := randomRule(r, f, firewall.Hook(r.IntN(firewall.Hooks)))
		for _, table := range []Family{f, unix.NFPROTO_INET} {
			list := parseExpressions(want.expressions(table))
			got, ok := parseRule(table, list, want.userData())
			if !ok || got != want {
				t.Fatalf("%v in %v: got %+v, %v", want, table, got, ok)
			}
			// A rule without one of its expressions is another or none.
			i := r.IntN(len(list))
			cut := append(append([]expression{}, list[:i]...), list[i+1:]...)
			if got, ok := parseRule(table, cut, want.userData()); ok && got == want {
				t.Fatalf("%v in %v without %v is still the same", want, table, list[i].name)
			}
			// One with more is foreign.
			more := append([]expression{{name: "limit"}}, list...)
			if _, ok := parseRule(table, more, want.userData()); ok {
				t.Fatalf("%v in %v with a limit is ours", want, table)
			}
		}
	}
}

// TestKernelEcho: the kernel lists rules in a form that is parsed as the same, so that they are not
// written again.
func TestKernelEcho(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	r := chance(t)
	for range 20 {
		for i, f := range []Family{IPv4, IPv6} {
			var want []firewall.Chain
			for _, own := range ownChains() {
				c := firewall.Chain{Hook: own.hook}
				for range r.IntN(30) {
					if rule := randomRule(r, f, own.hook).Rule; !rule.Shared() {
						c.Rules = append(c.Rules, rule)
					}
				}
				want = append(want, c)
			}
			for again := range 2 {
				if changes := b.syncFor(everybody(f), firewall.Family(i), want); again > 0 && len(changes) > 0 {
					t.Fatal(changes)
				}
			}
		}
	}
}

// everybody owns all rules of a family.
func everybody(f Family) firewall.Owner {
	a, _ := netip.AddrFromSlice(make([]byte, f.bits()/8))
	return firewall.Owner{Network: netip.PrefixFrom(a, 0)}
}

// TestOnlyGenerations: of what a transaction changes, its end is enough.
func TestOnlyGenerations(t *testing.T) {
	program, err := generationFilter().Assemble()
	if err != nil {
		t.Fatal(err)
	}
	code, _ := bpf.Disassemble(program)
	vm, err := bpf.NewVM(code)
	if err != nil {
		t.Fatal(err)
	}
	for kind, want := range map[uint16]bool{unix.NFT_MSG_NEWGEN: true, unix.NFT_MSG_NEWRULE: false, unix.NFT_MSG_DELTABLE: false} {
		var r netlink.Requests
		message{kind: kind}.write(&r)
		if n, err := vm.Run(r.Datagram(0, 1, 0)); (n > 0) != want || err != nil {
			t.Errorf("type %d: passes %d bytes, %v", kind, n, err)
		}
	}
}

func TestComment(t *testing.T) {
	for in, want := range map[string]string{
		"\x00\x03hi\x00":              "hi",
		"\x00\x02hi":                  "hi",
		"\x01\x01x\x00\x03hi\x00":     "hi",
		"\x00\x09hi\x00":              "",
		"\x00":                        "",
		"":                            "",
		"\x01\xff":                    "",
		"\x00\x00":                    "",
		"\x00\x03hi\x00\x00\x02x\x00": "hi",
	} {
		if got := parseComment([]byte(in)); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// FuzzParse: no listing makes the parsers fail, and parsed rules can be built again.
func FuzzParse(f *testing.F) {
	for _, c := range all(four) {
		for _, r := range c.Rules {
			r := newRule(IPv4, c.Hook, r)
			f.Add([]byte(r.expressions(IPv4)), r.userData(), byte(0))
			f.Add([]byte(r.expressions(unix.NFPROTO_INET)), r.userData(), byte(2))
		}
	}
	for _, r := range all(six)[0].Rules {
		f.Add([]byte(newRule(IPv6, 0, r).expressions(IPv6)), []byte{}, byte(1))
	}
	f.Fuzz(func(t *testing.T, expressions, userData []byte, which byte) {
		table := []Family{IPv4, IPv6, unix.NFPROTO_INET}[which%3]
		list := parseExpressions(expressions)
		parseEffect(list)
		r, ok := parseRule(table, list, userData)
		if !ok || len(r.Comment) > 200 {
			return
		}
		again, ok := parseRule(table, parseExpressions(r.expressions(table)), r.userData())
		if !ok || again != r {
			t.Errorf("%v %+v became %v %+v, %v", r.Rule, r.Family, again.Rule, again.Family, ok)
		}
	})
}
