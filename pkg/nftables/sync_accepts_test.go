package nftables

import (
	"context"
	"strings"
	"testing"

	"flanneld/pkg/firewall"
)

// TestWithRulesHeldByIPTablesForeignChainsOnlyAreChanged: if iptables holds the rules, our table is not created,
// or is removed, and only chains outside of iptables get accepts.
func TestWithRulesHeldByIPTablesForeignChainsOnlyAreChanged(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	beside := func(want []firewall.Chain) []string {
		t.Helper()
		changes, err := b.tables.Sync(context.Background(), firewall.Ruleset{Owner: oneDaemon(), Chains: want, HeldIn: firewall.Compat})
		if err != nil {
			t.Fatal(err)
		}
		return changes
	}
	b.run(docker, "iptables-nft-restore")
	b.nft(plainTable)
	before := b.ruleset()
	b.sync(firewall.IPv4, all(four))
	beside(all(four))
	if got := b.ruleset(); strings.Contains(got, "flannel-ipv4") || strings.Contains(b.saved("filter")+b.saved("raw"), "flanneld") {
		t.Errorf("kept where iptables does it:\n%s", got)
	}
	has(t, b.sh("nft -s list chain inet firewalld filter_FORWARD"), "\t\tip saddr 10.42.0.0/16 counter accept comment \"flanneld\"\n"+
		"\t\tip daddr 10.42.0.0/16 counter accept comment \"flanneld\"\n\t\tct state ")
	if changes := beside(all(four)); len(changes) > 0 {
		t.Errorf("not settled: %q", changes)
	}
	b.nft("flush chain inet firewalld filter_FORWARD")
	b.nft("add rule inet firewalld filter_FORWARD reject")
	if changes := beside(all(four)); len(changes) != 1 {
		t.Errorf("after a reload: %q", changes)
	}
	b.nft("flush ruleset")
	b.run(docker, "iptables-nft-restore")
	b.nft(plainTable)
	beside(all(four))
	beside(nil)
	equal(t, b.ruleset(), before)
}
