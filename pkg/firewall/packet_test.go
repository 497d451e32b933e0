package firewall

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// TestEvaluate follows a packet through chains of several tables.
func TestEvaluate(t *testing.T) {
	always := func(s Step) func(Packet, string) ([]Step, error) {
		s.Met, s.Number = Yes, 1
		return func(Packet, string) ([]Step, error) { return []Step{s}, nil }
	}
	// dropIf drops packets for which f is known to be true.
	dropIf := func(f func(Packet) Met) func(Packet, string) ([]Step, error) {
		return func(p Packet, _ string) ([]Step, error) { return []Step{{Met: f(p), Do: Drop, Number: 1}}, nil }
	}
	chain := func(name string, at Point, priority int32, steps func(Packet, string) ([]Step, error)) BaseChain {
		return BaseChain{Kind: "nftables", Table: "t", Name: name, Point: at, Priority: priority, Policy: Passes, Steps: steps}
	}
	nat := func(c BaseChain) BaseChain { c.NAT = true; return c }
	on := func(device string, c BaseChain) BaseChain { c.Device = device; return c }
	bridge := func(c BaseChain) BaseChain { c.Bridge = true; return c }
	unmarked := func(p Packet) Met {
		if p.Unmarked {
			return Yes
		}
		return Maybe
	}
	untracked := func(p Packet) Met { return [...]Met{Tracked: No, NotYet: Yes, MayTracked: Maybe}[p.Tracking] }
	fromSomewhere := func(p Packet) Met {
		if p.Src.IsValid() {
			return Yes
		}
		return Maybe
	}
	forward := Packet{In: "a", Out: "b", Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.1.1"), Unmarked: true}
	reply, in, out := forward, forward, forward
	reply.Reply, in.ToHost, out.FromHost = true, true, true
	bridged := forward
	bridged.InBridge = true
	for _, c := range []struct {
		name   string
		packet Packet
		chains []BaseChain
		want   string // each barrier; "?" if it is not certain, "=" if it translates
	}{
		{"an accept ends only its chain", forward, []BaseChain{chain("a", AtForward, 0, always(Step{Do: Pass})), chain("d", AtForward, 1, always(Step{Do: Drop}))}, "d"},
		{"in the order of the path", forward, []BaseChain{chain("late", AtPostRouting, -5, always(Step{Do: Drop})), chain("second", AtForward, 1, always(Step{Do: Drop})), chain("first", AtForward, -1, always(Step{Do: Drop}))}, "first second late"},
		{"other hooks", forward, []BaseChain{chain("in", AtInput, 0, always(Step{Do: Drop})), chain("out", AtOutput, 0, always(Step{Do: Drop}))}, ""},
		{"to this host", in, []BaseChain{chain("in", AtInput, 0, always(Step{Do: Drop})), chain("forward", AtForward, 0, always(Step{Do: Drop})), chain("post", AtPostRouting, 0, always(Step{Do: Drop}))}, "in"},
		{"from this host", out, []BaseChain{chain("pre", AtPreRouting, 0, always(Step{Do: Drop})), chain("out", AtOutput, 0, always(Step{Do: Drop})), chain("post", AtPostRouting, 0, always(Step{Do: Drop}))}, "out post"},
		{"devices", forward, []BaseChain{on("a", chain("in", AtIngress, 0, always(Step{Do: Drop}))), on("c", chain("other", AtIngress, 0, always(Step{Do: Drop}))), on("b*", chain("out", AtEgress, 0, always(Step{Do: Drop})))}, "in out"},
		{"NAT sees new connections", forward, []BaseChain{nat(chain("nat", AtPostRouting, 100, always(Step{Do: Translate})))}, "nat="},
		{"NAT does not see replies", reply, []BaseChain{nat(chain("nat", AtPostRouting, 100, always(Step{Do: Translate})))}, ""},
		{"after a new destination nothing is known", forward, []BaseChain{nat(chain("nat", AtPreRouting, -100, always(Step{Do: Translate}))), chain("d", AtForward, 0, always(Step{Do: Drop}))}, "nat="},
		{"after a new source that is unknown", forward, []BaseChain{nat(chain("nat", AtPostRouting, 100, always(Step{Do: Translate}))), chain("d", AtPostRouting, 200, dropIf(fromSomewhere))}, "nat= d?"},
		{"unknown targets may translate", forward, []BaseChain{nat(chain("nat", AtPostRouting, 100, always(Step{Do: PassOrDrop})))}, "nat? nat=?"},
		{"NAT may not be in use", forward, []BaseChain{nat(chain("nat", AtPostRouting, 100, always(Step{Do: Drop})))}, "nat?"},
		{"a mark", forward, []BaseChain{chain("d", AtForward, 0, dropIf(unmarked))}, "d"},
		{"a mark that was set", forward, []BaseChain{chain("m", AtPreRouting, 0, always(Step{Do: Next, Sets: SetsMark})), chain("d", AtForward, 0, dropIf(unmarked))}, "d?"},
		{"a mark that is set later", forward, []BaseChain{chain("m", AtPostRouting, 0, always(Step{Do: Next, Sets: SetsMark})), chain("d", AtForward, 0, dropIf(unmarked))}, "d"},
		{"a mark in one chain", forward, []BaseChain{chain("m", AtForward, 0, func(p Packet, _ string) ([]Step, error) {
			return []Step{{Met: Yes, Do: Next, Sets: SetsMark}, {Met: unmarked(p), Do: Drop}}, nil
		})}, "m?"},
		{"before conntrack", forward, []BaseChain{chain("raw", AtPreRouting, PriorityRaw, dropIf(untracked)), chain("filter", AtForward, PriorityRaw, dropIf(untracked))}, "raw"},
		{"beside conntrack", forward, []BaseChain{chain("c", AtPreRouting, PriorityConntrack, dropIf(untracked))}, "c?"},
		{"not tracked", forward, []BaseChain{chain("raw", AtPreRouting, PriorityRaw, always(Step{Do: Next, Sets: SetsTracking})), chain("filter", AtForward, 0, dropIf(untracked))}, "filter?"},
		{"header", forward, []BaseChain{chain("h", AtPreRouting, PriorityRaw, always(Step{Do: Next, Sets: SetsHeader})), chain("filter", AtForward, 0, always(Step{Do: Drop}))}, "h=?"},
		{"bridges", forward, []BaseChain{bridge(chain("b", AtInput, 0, always(Step{Do: Drop})))}, ""},
		{"from a bridge", bridged, []BaseChain{bridge(chain("b", AtInput, 0, always(Step{Do: Drop}))), bridge(chain("o", AtOutput, 0, always(Step{Do: Drop})))}, "b?"},
	} {
		path, err := Evaluate(c.packet, c.chains)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, b := range path.Barriers {
			s := b.Chain
			if b.Translates {
				s += "="
			}
			if !b.Certain {
				s += "?"
			}
			got = append(got, s)
		}
		if fmt.Sprint(got) != "["+c.want+"]" {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestLoopsOfManyJumps: the kernel has no loops, but a listing may. Each chain is evaluated once.
func TestLoopsOfManyJumps(t *testing.T) {
	read := map[string]int{}
	w := Walk{Steps: func(chain string) (steps []Step, err error) {
		read[chain]++
		for i := range 300 {
			steps = append(steps, Step{Met: Maybe, Do: Jump, Chain: fmt.Sprint(i)})
		}
		return steps, nil
	}}
	if fate, err := w.Base("0", Passes); err != nil || fate != Passes|Drops {
		t.Errorf("%b, %v", fate, err)
	}
	for chain, n := range read {
		if n != 1 {
			t.Errorf("chain %s was read %d times", chain, n)
		}
	}
}

// TestCommandsThatTrustANetwork for the tool or the chain that drops.
func TestCommandsThatTrustANetwork(t *testing.T) {
	network := netip.MustParsePrefix("10.42.0.0/16")
	for _, c := range []struct {
		barrier Barrier
		want    string
	}{
		{Barrier{Kind: "nftables", Table: "inet firewalld", Chain: "filter_FORWARD", Tool: "firewalld"}, "firewall-cmd --zone=trusted --add-source=10.42.0.0/16; firewall-cmd --permanent"},
		{Barrier{Kind: "nftables", Table: "ip filter", Chain: "FORWARD", Tool: "ufw", Point: AtForward}, "ufw route allow from 10.42.0.0/16; ufw route allow to 10.42.0.0/16"},
		{Barrier{Kind: "nftables", Table: "ip filter", Chain: "FORWARD"}, "iptables-nft -I FORWARD -s 10.42.0.0/16 -j ACCEPT; iptables-nft -I FORWARD -d 10.42.0.0/16 -j ACCEPT"},
		{Barrier{Kind: "nftables", Table: "ip raw", Chain: "PREROUTING"}, "iptables-nft -t raw -I PREROUTING -s"},
		{Barrier{Kind: "nftables", Table: "ip filter", Chain: "forward"}, "nft insert rule ip filter forward ip saddr 10.42.0.0/16 accept; nft insert rule ip filter forward ip daddr 10.42.0.0/16 accept"},
		{Barrier{Kind: "iptables-legacy", Table: "mangle", Chain: "FORWARD"}, "iptables-legacy -t mangle -I FORWARD -s"},
	} {
		if got := c.barrier.TrustCommand(network); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %s", c.barrier, got)
		}
	}
}
