package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"time"

	"flanneld/pkg/lab"
)

// pathFaults are the faults of the uplink, the paths to other hosts, and the kernel's entries.
func pathFaults() []fault {
	const outside = "203.0.113.9" // a host that is not there
	return []fault{
		{
			name: "every host uses the NAT interface of its virtual machine", id: "FL-IFACE-NAT", said: []string{"10.0.2.15", "-iface=eth0"},
			start: func(c *faultCluster) {
				for _, h := range c.Hosts {
					c.sh(h, "ip link add nat0 type bridge; ip link set nat0 up; ip addr add 10.0.2.15/24 dev nat0; ip route replace default via 10.0.2.2 dev nat0; ip link add port0 type veth peer name port1; ip link set port0 master nat0 up; ip link set port1 up")
					c.start(h)
				}
			},
		},
		{
			name: "the default route is not by the interface to the other hosts", id: "FL-IFACE-CHOICE", said: []string{"-iface=eth0"},
			start: func(c *faultCluster) {
				c.start(c.peer)
				c.sh(c.h, "ip link add wan0 type bridge; ip link set wan0 up; ip link add port0 type veth peer name port1; ip link set port0 master wan0 up; ip link set port1 up; ip addr add 203.0.113.7/24 dev wan0; ip route replace default via 203.0.113.1 dev wan0")
				c.start(c.h)
			},
		},
		{
			name: "the interface is down", id: "FL-IFACE-GONE", said: []string{"ip link set eth0 up"},
			also: []string{"FL-ETCD-DOWN", "FL-HOST-UNREACHABLE", "FL-PEER-UNREACHABLE", "FL-DRIFT", "FL-CONDITION"},
			make: func(c *faultCluster) { c.sh(c.h, "ip link set eth0 down") },
		},
		{
			name: "another host is off", id: "FL-HOST-UNREACHABLE", said: []string{"start that host"},
			make: func(c *faultCluster) {
				c.probed()
				c.must(c.peer.Unplug())
			},
			cure: func(c *faultCluster) { c.must(c.peer.Plug()) },
		},
		{
			name: "another host drops the tunnel's packets", id: "FL-PEER-UNREACHABLE", said: []string{"UDP port 8472"}, needs: []string{"nft"},
			make: func(c *faultCluster) {
				c.probed()
				c.sh(c.peer, "nft add table inet t; nft add chain inet t c '{ type filter hook input priority -10; }'; nft add rule inet t c udp dport 8472 drop")
			},
			cure: func(c *faultCluster) { c.sh(c.peer, "nft delete table inet t") },
		},
		{
			name: "the network loses packets", id: "FL-PEER-LOSSY", said: []string{" % to 172.31.200.3", "ping -c 50 -i 0.2 172.31.200.3"}, needs: []string{"nft"},
			args: []string{"-probe-interval=200ms"},
			make: func(c *faultCluster) {
				c.probed()
				c.must(c.inFabric(fmt.Sprintf(`nft 'table bridge loss { chain c { type filter hook forward priority 0; iifname %s ether type ip udp dport 8472 numgen random mod 100 < 40 drop; }; }'`, c.peer.Name)))
			},
			cure: func(c *faultCluster) { c.must(c.inFabric("nft delete table bridge loss")) },
		},
		{
			name: "the network carries smaller packets only", id: "FL-PATH-MTU", said: []string{"1450 bytes", "Backend.MTU"},
			make: func(c *faultCluster) {
				_, err := c.Fabric.Shell(c.ctx, "ip link set "+c.peer.Name+" mtu 1400")
				c.must(err)
			},
			cure: func(c *faultCluster) {
				_, err := c.Fabric.Shell(c.ctx, "ip link set "+c.peer.Name+" mtu 1500")
				c.must(err)
			},
		},
		{
			name: "another program has the device's name", id: "FL-DRIFT", said: []string{"another device of that name"},
			start: func(c *faultCluster) {
				c.start(c.peer)
				c.sh(c.h, "ip link add flannel.1 type bridge")
				c.launch(c.h)
			},
		},
		{
			// The daemon repairs it at once, until it has to back off.
			name: "another program keeps changing the device", id: "FL-DEVICE-CHANGED", said: []string{"its MAC is 02:00:00:00:00:99, and peers send to"},
			also: append([]string{"FL-DRIFT"}, unreachable...),
			make: func(c *faultCluster) {
				_, err := c.h.Run(lab.Command{Path: "/bin/sh", Args: []string{"-c", "while ip link set flannel.1 address 02:00:00:00:00:99; do sleep 0.02; done"}})
				c.must(err)
			},
		},
		{
			name: "a lease of another backend", id: "FL-PEER-SKIPPED", said: []string{"10.42.7.0/24"},
			make: func(c *faultCluster) {
				c.put("subnets/10.42.7.0-24", `{"PublicIP":"`+outside+`","BackendType":"host-gw"}`)
			},
		},
		{
			name: "packets to the outside keep their addresses", id: "FL-NAT-OUTSIDE", args: []string{"-ip-masq", "-iptables-resync=3600"}, needs: []string{"iptables-nft"},
			make: func(c *faultCluster) { c.sh(c.h, "iptables-nft -t nat -I POSTROUTING -s 10.42.0.0/16 -j ACCEPT") },
			cure: func(c *faultCluster) { c.sh(c.h, "iptables-nft -t nat -D POSTROUTING -s 10.42.0.0/16 -j ACCEPT") },
		},
		{
			name: "the subnet file cannot be written", id: "FL-CONDITION", said: []string{"failed to write subnet file"},
			start: func(c *faultCluster) {
				c.start(c.peer)
				c.must(os.MkdirAll(c.h.SubnetFile, 0o755))
				c.launch(c.h)
			},
		},
	}
}

// probed waits until the other host has answered a probe of the first one: one that never answered
// may drop pings.
func (c *faultCluster) probed() {
	c.t.Helper()
	c.probedBy(c.h)
}

// probedBy waits until the only other host has answered a probe of a host.
func (c *faultCluster) probedBy(h *lab.Host) {
	c.t.Helper()
	answered := regexp.MustCompile(`"rtt_ms": *[0-9]`)
	c.within(20*time.Second, "an answer to a probe", func() error {
		if out, _ := c.runDoctor(h, "status", "--json", "-subnet-file="+h.SubnetFile); !answered.Match(out) {
			return errors.New(string(out))
		}
		return nil
	})
}
