package firewall

import (
	"errors"
	"testing"
)

// TestWalk: what may happen to it is the sum of all ways that are open.
func TestWalk(t *testing.T) {
	const either = Passes | Drops
	for _, c := range []struct {
		name   string
		policy Fate
		chains map[string][]Step
		want   Fate
	}{
		{"nothing", Passes, nil, Passes},
		{"policy", Drops, nil, Drops},
		{"accepted", Drops, map[string][]Step{"base": {{Met: Yes, Do: Pass}}}, Passes},
		{"not met", Drops, map[string][]Step{"base": {{Met: No, Do: Pass}}}, Drops},
		{"perhaps accepted", Drops, map[string][]Step{"base": {{Met: Maybe, Do: Pass}}}, either},
		{"perhaps dropped, then dropped", Passes, map[string][]Step{"base": {{Met: Maybe, Do: Drop}, {Met: Yes, Do: Drop}}}, Drops},
		{"the first counts", Drops, map[string][]Step{"base": {{Met: Yes, Do: Drop}, {Met: Yes, Do: Pass}}}, Drops},
		{"return", Drops, map[string][]Step{"base": {{Met: Yes, Do: Back}, {Met: Yes, Do: Pass}}}, Drops},
		{"jump and back", Drops, map[string][]Step{"base": {{Met: Yes, Do: Jump, Chain: "a"}, {Met: Yes, Do: Pass}}, "a": {{Met: Yes, Do: Back}}}, Passes},
		{"jump to nowhere", Drops, map[string][]Step{"base": {{Met: Yes, Do: Jump, Chain: "a"}, {Met: Yes, Do: Pass}}}, Passes},
		{"goto and not back", Drops, map[string][]Step{"base": {{Met: Yes, Do: GoTo, Chain: "a"}, {Met: Yes, Do: Pass}}, "a": {{Met: Yes, Do: Back}}}, Drops},
		{"goto from a jump", Passes, map[string][]Step{"base": {{Met: Yes, Do: Jump, Chain: "a"}, {Met: Yes, Do: Drop}}, "a": {{Met: Yes, Do: GoTo, Chain: "b"}, {Met: Yes, Do: Pass}}}, Drops},
		{"jump to a perhaps", Drops, map[string][]Step{"base": {{Met: Yes, Do: Jump, Chain: "a"}}, "a": {{Met: Maybe, Do: Pass}}}, either},
		{"somebody else decides", Drops, map[string][]Step{"base": {{Met: Yes, Do: PassOrDrop}}}, either},
		{"loop", Passes, map[string][]Step{"base": {{Met: Yes, Do: Jump, Chain: "a"}}, "a": {{Met: Yes, Do: Jump, Chain: "a"}, {Met: Maybe, Do: Jump, Chain: "base"}}}, either},
	} {
		w := Walk{Steps: func(chain string) ([]Step, error) { return c.chains[chain], nil }}
		if got, err := w.Base("base", c.policy); err != nil || got != c.want {
			t.Errorf("%s: %b, %v, want %b", c.name, got, err, c.want)
		}
	}
	w := Walk{Steps: func(string) ([]Step, error) { return nil, errors.New("no") }}
	if got, err := w.Base("base", Passes); err == nil || got != either {
		t.Errorf("unreadable: %b, %v", got, err)
	}
}

// TestCommandsThatOpenAPort for the tool that closes it.
func TestCommandsThatOpenAPort(t *testing.T) {
	for _, c := range []struct {
		barrier Barrier
		walked  []string
		want    string
	}{
		{Barrier{Kind: "nftables", Table: "inet firewalld", Chain: "filter_INPUT"}, []string{"filter_IN_public", "filter_IN_public_allow", "filter_IN_policy_allow-host-ipv6_allow"},
			"firewall-cmd --zone=public --add-port=8472/udp; firewall-cmd --permanent --zone=public --add-port=8472/udp"},
		{Barrier{Kind: "nftables", Table: "inet firewalld", Chain: "filter_INPUT"}, nil, "firewall-cmd --add-port=8472/udp; firewall-cmd --permanent --add-port=8472/udp"},
		{Barrier{Kind: "iptables-legacy", Table: "filter", Chain: "INPUT"}, []string{"INPUT_ZONES", "IN_work", "IN_work_allow"},
			"firewall-cmd --zone=work --add-port=8472/udp; firewall-cmd --permanent --zone=work --add-port=8472/udp"},
		{Barrier{Kind: "nftables", Table: "ip filter", Chain: "INPUT"}, []string{"ufw-before-input"}, "ufw allow 8472/udp"},
		{Barrier{Kind: "nftables", Table: "ip filter", Chain: "INPUT"}, nil, "iptables-nft -I INPUT -p udp --dport 8472 -j ACCEPT"},
		{Barrier{Kind: "nftables", Table: "inet filter", Chain: "input"}, nil, "nft insert rule inet filter input udp dport 8472 accept"},
		{Barrier{Kind: "iptables-legacy", Table: "filter", Chain: "INPUT"}, nil, "iptables-legacy -t filter -I INPUT -p udp --dport 8472 -j ACCEPT"},
	} {
		w := Walk{known: map[string]outcome{}}
		for _, chain := range c.walked {
			w.known[chain] = outcome{fate: returns}
		}
		c.barrier.DetectTool(&w)
		if got := c.barrier.OpenCommand(8472); got != c.want {
			t.Errorf("%s: %s", c.barrier, got)
		}
	}
}
