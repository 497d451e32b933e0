package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"flanneld/pkg/lab"
)

// TestSubnetAvoidsTheLAN: in a network that contains the LAN, a new host leases a subnet outside
// the LAN; if there is none, that is logged. A host keeps the subnet that it has, and the log says
// how to change it.
func TestSubnetAvoidsTheLAN(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 4, Underlay: netip.MustParsePrefix("10.99.0.0/16")})
	// Fifteen subnets on the LAN, and three beside it.
	c.put("config", `{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.99.16.0","SubnetMax":"10.100.32.0","Backend":{"Type":"vxlan"}}`)
	held := c.Hosts[0]
	c.put("subnets/10.99.32.0-20", fmt.Sprintf(`{"PublicIP":"%s"}`, held.Addr))
	lan, all := netip.MustParsePrefix("10.99.0.0/16"), c.Hosts
	c.Hosts = all[:3]
	c.must(c.StartAll(c.ctx))
	for _, h := range all[1:3] {
		if got := c.subnet(h); lan.Overlaps(got) {
			t.Errorf("%s has %s", h.Name, got)
		}
	}
	if got := c.subnet(held); got != netip.MustParsePrefix("10.99.32.0/20") {
		t.Errorf("%s has %s", held.Name, got)
	}
	const words = "own subnet is part of another network"
	c.saysTimes(held.Flanneld(), 1, "level=WARN", words, "10.99.0.0/16 dev eth0")

	// The third of the subnets outside the LAN is left for it; systemd is not available here.
	command := c.says(held.Flanneld(), words)
	c.stop(held.Flanneld())
	between, stop := strings.CutPrefix(command, "systemctl stop flanneld; ")
	between, start := strings.CutSuffix(between, "; systemctl start flanneld")
	if !stop || !start {
		t.Fatalf("suggested %s", command)
	}
	c.paste(held, between)
	c.start(held)
	if got := c.subnet(held); lan.Overlaps(got) {
		t.Errorf("%s then has %s", held.Name, got)
	}
	c.connect()

	last := all[3]
	c.launch(last)
	c.saysTimes(last.Flanneld(), 1, "level=ERROR", "no subnet can be used", "10.99.0.0/16", "SubnetMin")
}
