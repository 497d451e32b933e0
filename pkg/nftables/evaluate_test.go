package nftables

import (
	"bytes"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/netlink"
)

// FuzzCondition evaluates rules of arbitrary expressions: that never fails, and a condition that is
// known to be met is not also known not to be.
func FuzzCondition(f *testing.F) {
	for _, c := range all(four) {
		for _, r := range c.Rules {
			f.Add([]byte(newRule(IPv4, c.Hook, r).expressions(IPv4)), byte(0))
		}
	}
	var x expressions
	x.payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2)
	x.add("byteorder", netlink.Attrs{}.Uint32BE(unix.NFTA_BYTEORDER_SREG, 1).Uint32BE(unix.NFTA_BYTEORDER_DREG, 8).Uint32BE(unix.NFTA_BYTEORDER_LEN, 4).Uint32BE(unix.NFTA_BYTEORDER_SIZE, 2))
	x.add("range", netlink.Attrs{}.Uint32BE(unix.NFTA_RANGE_SREG, 8).Nest(unix.NFTA_RANGE_FROM_DATA, netlink.Attrs{}.Bytes(1, []byte{0, 1})).Nest(unix.NFTA_RANGE_TO_DATA, netlink.Attrs{}.Bytes(1, []byte{9, 9})))
	f.Add([]byte(x.Attrs), byte(1))
	packets := []firewall.Packet{
		{},
		{In: "eth0", Src: netip.MustParseAddr("10.99.0.3"), Dst: netip.MustParseAddr("10.99.0.2"), Protocol: 17, SrcPort: 40000, DstPort: 8472, ToHost: true},
		{In: "flannel.1", Out: "docker0", Src: netip.MustParseAddr("fd00::3"), Dst: netip.MustParseAddr("fd00::2")},
	}
	f.Fuzz(func(t *testing.T, expressions []byte, which byte) {
		v := evaluator{packet: packets[int(which)%len(packets)]}
		list := parseExpressions(expressions)
		for i, x := range list {
			if x.name == "lookup" || x.name == "objref" { // would ask the kernel
				list = list[:i]
				break
			}
		}
		steps, err := v.ruleSteps(list)
		if err != nil || len(steps) > 1 || len(steps) == 1 && steps[0].Met > firewall.Yes {
			t.Errorf("% x: %+v, %v", expressions, steps, err)
		}
	})
}

// FuzzElements evaluates sets with arbitrary elements.
func FuzzElements(f *testing.F) {
	of := func(key []byte, flags uint32, code uint32) []byte {
		verdict := netlink.Attrs{}.Uint32BE(unix.NFTA_VERDICT_CODE, code).Text(unix.NFTA_VERDICT_CHAIN, "c")
		return netlink.Attrs{}.Nest(unix.NFTA_SET_ELEM_KEY, netlink.Attrs{}.Bytes(unix.NFTA_DATA_VALUE, key)).Uint32BE(unix.NFTA_SET_ELEM_FLAGS, flags).
			Nest(unix.NFTA_SET_ELEM_DATA, netlink.Attrs{}.Nest(unix.NFTA_DATA_VERDICT, verdict))
	}
	f.Add(of([]byte{10, 0, 0, 0}, 0, 1), of([]byte{11, 0, 0, 0}, 1, 0), []byte{10, 1, 2, 3}, true)
	f.Add(of(nil, 2, 0), of([]byte{1}, 0, 0xfffffffd), []byte{1}, false)
	f.Fuzz(func(t *testing.T, a, b, key []byte, interval bool) {
		e := elements{keyLength: len(key), interval: interval, all: []element{parseElement(a), parseElement(b)}}
		if bytes.Compare(e.all[0].key, e.all[1].key) > 0 {
			e.all[0], e.all[1] = e.all[1], e.all[0]
		}
		if yes, no := e.contains(key, true, false), e.contains(key, true, true); yes == no || yes == firewall.Maybe || no == firewall.Maybe {
			t.Errorf("%+v contains %x: %v, and does not: %v", e, key, yes, no)
		}
		if m := e.contains(key, false, false); m != firewall.Maybe {
			t.Errorf("%+v contains something unknown: %v", e, m)
		}
		if n := len(e.verdicts(firewall.Yes, key, true)); n > 1 {
			t.Errorf("%+v has %d verdicts on %x", e, n, key)
		}
		e.verdicts(firewall.Yes, nil, false)
	})
}

// TestUnknownExpressionsAreNeverAGuess inserts an expression that is not understood between those of
// a rule: it may load any register, may end the rule, and may drop the packet.
func TestUnknownExpressionsAreNeverAGuess(t *testing.T) {
	expr := func(name string, data netlink.Attrs) netlink.Attrs {
		return netlink.Attrs{}.Nest(unix.NFTA_LIST_ELEM, netlink.Attrs{}.Text(unix.NFTA_EXPR_NAME, name).Nest(unix.NFTA_EXPR_DATA, data))
	}
	value := func(b ...byte) netlink.Attrs { return netlink.Attrs{}.Bytes(unix.NFTA_DATA_VALUE, b) }
	load := expr("meta", netlink.Attrs{}.Uint32BE(unix.NFTA_META_DREG, unix.NFT_REG_1).Uint32BE(unix.NFTA_META_KEY, unix.NFT_META_L4PROTO))
	compare := func(protocol byte) netlink.Attrs {
		return expr("cmp", netlink.Attrs{}.Uint32BE(unix.NFTA_CMP_SREG, unix.NFT_REG_1).Uint32BE(unix.NFTA_CMP_OP, unix.NFT_CMP_EQ).Nest(unix.NFTA_CMP_DATA, value(protocol)))
	}
	drop := expr("immediate", netlink.Attrs{}.Uint32BE(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT).
		Nest(unix.NFTA_IMMEDIATE_DATA, netlink.Attrs{}.Nest(unix.NFTA_DATA_VERDICT, netlink.Attrs{}.Uint32BE(unix.NFTA_VERDICT_CODE, 0))))
	object := func(kind uint32) netlink.Attrs {
		return expr("objref", netlink.Attrs{}.Uint32BE(unix.NFTA_OBJREF_IMM_TYPE, kind))
	}
	synproxy, numbers := object(unix.NFT_OBJECT_SYNPROXY), expr("numgen", netlink.Attrs{}.Uint32BE(1, unix.NFT_REG_1))
	mystery := expr("mystery", netlink.Attrs{}.Uint32BE(1, 1))
	for _, c := range []struct {
		name string
		rule []netlink.Attrs
		want string
	}{
		{"met", []netlink.Attrs{load, compare(17), drop}, "yes"},
		{"not met", []netlink.Attrs{load, compare(6), drop}, "no"},
		{"before", []netlink.Attrs{mystery, load, compare(17), drop}, "maybe"},
		{"before what is not met", []netlink.Attrs{mystery, load, compare(6), drop}, "maybe"},
		{"alone", []netlink.Attrs{mystery}, "maybe"},
		{"before one that loads", []netlink.Attrs{load, numbers, compare(6), drop}, "maybe"},
		{"before one that is not used", []netlink.Attrs{numbers, load, compare(6), drop}, "no"},
		{"an object that answers", []netlink.Attrs{load, compare(17), synproxy}, "yes"},
		{"an object that counts", []netlink.Attrs{object(unix.NFT_OBJECT_COUNTER), load, compare(17), drop}, "yes"},
		{"an object that limits", []netlink.Attrs{object(unix.NFT_OBJECT_LIMIT), load, compare(17), drop}, "maybe"},
		{"after what is not met", []netlink.Attrs{load, compare(6), mystery, drop}, "no"},
		{"between, met", []netlink.Attrs{load, mystery, compare(17), drop}, "maybe"},
		{"between, not met", []netlink.Attrs{load, mystery, compare(6), drop}, "maybe"},
		{"after", []netlink.Attrs{load, compare(17), mystery, drop}, "maybe"},
	} {
		v := evaluator{packet: firewall.Packet{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), Protocol: 17}}
		steps, err := v.ruleSteps(parseExpressions(bytes.Join(func() (all [][]byte) {
			for _, a := range c.rule {
				all = append(all, a)
			}
			return all
		}(), nil)))
		got := "no"
		if len(steps) > 0 {
			got = [...]string{firewall.No: "no", firewall.Maybe: "maybe", firewall.Yes: "yes"}[steps[0].Met]
		}
		if err != nil || got != c.want {
			t.Errorf("%s: %s, %v, want %s", c.name, got, err, c.want)
		}
	}
}
