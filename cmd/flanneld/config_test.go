package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestConfigChanges: a running host applies the parts of a new network config that may change at
// runtime, and logs the others.
func TestConfigChanges(t *testing.T) {
	t.Parallel()
	need(t, "iptables", "nft")
	c := startCluster(t, 2, filters[0].config, "-ip-masq=true")
	h := c.Hosts[0]
	rules := c.sh(h, filters[0].rules)
	if rules == "" {
		t.Fatal("iptables has no rules of ours")
	}
	subnets := []string{c.subnet(h).String(), c.subnet(c.Hosts[1]).String()}
	c.put("config", `{"Network":"10.42.0.0/16","SubnetMin":"10.42.200.0","SubnetMax":"10.42.201.0","SubnetLeaseTTL":3600,"EnableNFTables":true,"Backend":{"Type":"vxlan"}}`)
	c.within(time.Minute+5*time.Second, "the new config", func() error {
		for _, h := range c.Hosts {
			if n := logged(h, "applied new network config", "10.42.200.0"); n != 1 {
				return fmt.Errorf("%s says so %d times", h.Name, n)
			}
		}
		return nil
	})
	c.within(5*time.Second, "nftables", func() error {
		if left, table := c.sh(h, "iptables-save | grep FLANNEL || true"), c.sh(h, "nft list ruleset"); left != "" || !strings.Contains(table, "masquerade") {
			return fmt.Errorf("iptables holds %s, nftables\n%s", left, table)
		}
		return nil
	})
	// What needs a restart.
	c.put("config", `{"Network":"10.43.0.0/16","Backend":{"Type":"udp"}}`)
	c.within(time.Minute+5*time.Second, "refusal", func() error {
		if n := logged(h, "level=WARN", "needs a restart", "Network is 10.43.0.0/16, was 10.42.0.0/16", "Backend.Type is udp, was vxlan"); n != 1 {
			return fmt.Errorf("%d times", n)
		}
		return nil
	})
	c.waitAllPairs()
	for i, h := range c.Hosts {
		if got := c.subnet(h).String(); got != subnets[i] {
			t.Errorf("%s has %s, had %s", h.Name, got, subnets[i])
		}
	}
}
