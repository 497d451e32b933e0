package main

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"flanneld/pkg/lab"
)

// unreachable are the checks that may find the consequences of a packet filter or a setting.
var unreachable = []string{"FL-PEER-UNREACHABLE", "FL-PATH-MTU", "FL-HOST-UNREACHABLE"}

// shell returns a step that runs a command on the first host. SUBNET stands for its subnet, and
// PEER for that of the other host.
func shell(command string) func(*faultCluster) {
	return func(c *faultCluster) {
		c.t.Helper()
		c.sh(c.h, strings.NewReplacer("SUBNET", c.subnet(c.h).String(), "PEER", c.subnet(c.peer).String()).Replace(command))
	}
}

// filterFaults are the faults of packet filters.
func filterFaults() []fault {
	noForward := []string{"-iptables-forward-rules=false"}
	return []fault{
		{
			name: "forward policy of iptables", id: "FL-FORWARD-DROP", args: noForward, also: append([]string{"FL-BRIDGE-FILTER"}, unreachable...), needs: []string{"iptables-nft"},
			said: []string{"new ICMP packets from containers of this host", "policy of chain FORWARD", "iptables-nft -I FORWARD -s 10.42.0.0/16 -j ACCEPT"},
			make: shell("iptables-nft -P FORWARD DROP"), cure: shell("iptables-nft -I FORWARD -s 10.42.0.0/16 -j ACCEPT; iptables-nft -I FORWARD -d 10.42.0.0/16 -j ACCEPT"),
		},
		{
			name: "forward policy of iptables-legacy", id: "FL-FORWARD-DROP", args: noForward, also: append([]string{"FL-BRIDGE-FILTER"}, unreachable...), needs: []string{"iptables-legacy"},
			said: []string{"policy of chain FORWARD in iptables-legacy table filter", "iptables-legacy -t filter -I FORWARD"},
			make: shell("iptables-legacy -P FORWARD DROP"), cure: shell("iptables-legacy -P FORWARD ACCEPT"),
		},
		{
			name: "the operator's rule", id: "FL-FORWARD-DROP", also: unreachable, needs: []string{"iptables-nft"},
			said: []string{"new UDP packets from containers of other hosts", `rule "-A DOCKER-USER -i flannel.1 -p udp -j DROP" in nftables table ip filter`},
			make: shell("iptables-nft -N DOCKER-USER; iptables-nft -I FORWARD -j DOCKER-USER; iptables-nft -A DOCKER-USER -i flannel.1 -p udp -j DROP"),
			cure: shell("iptables-nft -F DOCKER-USER"),
		},
		{
			name: "new connections in nftables", id: "FL-FORWARD-DROP", also: unreachable, needs: []string{"nft"}, args: noForward,
			said: []string{"new ICMP packets from containers of other hosts", `"iifname \"flannel.1\" ct state new drop"`, "nft insert rule inet t c ip saddr 10.42.0.0/16 accept"},
			make: shell(`echo 'table inet t { chain c { type filter hook forward priority 10; iifname "flannel.1" ct state new drop; }; }' | nft -f -`),
			cure: shell("nft delete table inet t"),
		},
		{
			name: "after routing", id: "FL-FORWARD-DROP", also: unreachable, needs: []string{"nft"},
			said: []string{"TCP packets from containers of this host", "tcp drop"},
			make: shell(`echo 'table ip t { chain c { type filter hook postrouting priority 0; oifname "flannel.1" ip protocol tcp drop; }; }' | nft -f -`),
			cure: shell("nft delete table ip t"),
		},
		{
			name: "tunnel port in iptables", id: "FL-TUNNEL-INPUT", also: unreachable, needs: []string{"iptables-nft"},
			said: []string{"tunnel packets from", "policy of chain INPUT", "iptables-nft -I INPUT -p udp --dport 8472 -j ACCEPT"},
			make: shell("iptables-nft -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; iptables-nft -A INPUT -p icmp -j ACCEPT; iptables-nft -A INPUT -p tcp -j ACCEPT; iptables-nft -P INPUT DROP"),
			cure: shell("iptables-nft -I INPUT -p udp --dport 8472 -j ACCEPT"),
		},
		{
			name: "tunnel port at the device", id: "FL-TUNNEL-INPUT", also: unreachable, needs: []string{"nft"},
			said: []string{"udp dport 8472 drop", "nft insert rule netdev t c udp dport 8472 accept"},
			make: func(c *faultCluster) {
				shell(fmt.Sprintf(`echo 'table netdev t { chain c { type filter hook ingress device %s priority 0; udp dport 8472 drop; }; }' | nft -f -`, c.h.Uplink))(c)
			},
			cure: shell("nft insert rule netdev t c udp dport 8472 accept"),
		},
		{
			name: "tunnel port of ufw", id: "FL-TUNNEL-INPUT", also: append([]string{"FL-FIREWALL-TOOL"}, unreachable...), needs: []string{"iptables-nft"},
			said: []string{"ufw allow 8472/udp"},
			make: shell("iptables-nft -N ufw-before-input; iptables-nft -A INPUT -j ufw-before-input; iptables-nft -A ufw-before-input -p tcp -j ACCEPT; iptables-nft -A ufw-before-input -p icmp -j ACCEPT; iptables-nft -P INPUT DROP"),
			cure: shell("iptables-nft -P INPUT ACCEPT"),
		},
		{
			name: "packets to peers", id: "FL-TUNNEL-OUTPUT", also: unreachable, needs: []string{"nft"},
			said: []string{"tunnel packets to", "udp dport 8472 reject"},
			make: shell(`echo 'table inet t { chain c { type filter hook output priority 0; udp dport 8472 reject; }; }' | nft -f -`),
			cure: shell("nft delete table inet t"),
		},
		{
			name: "docker masquerades", id: "FL-NAT-OVERLAY", needs: []string{"iptables-nft"},
			said: []string{"get another source address", "! -o docker0 -j MASQUERADE", "iptables-nft -t nat -I POSTROUTING -s 10.42.0.0/16 -d 10.42.0.0/16 -j ACCEPT"},
			make: shell("iptables-nft -t nat -A POSTROUTING -s SUBNET ! -o docker0 -j MASQUERADE"),
			cure: shell("iptables-nft -t nat -I POSTROUTING -s 10.42.0.0/16 -d 10.42.0.0/16 -j ACCEPT"),
		},
		{
			name: "between containers of one host", id: "FL-BRIDGE-FILTER", needs: []string{"iptables-nft"},
			said: []string{"packets between containers of this host", "-i docker0 -o docker0 -j DROP"},
			make: shell("sysctl -qw net.bridge.bridge-nf-call-iptables=1; iptables-nft -N DOCKER-USER; iptables-nft -I FORWARD -j DOCKER-USER; iptables-nft -A DOCKER-USER -i docker0 -o docker0 -j DROP"),
			cure: shell("iptables-nft -F DOCKER-USER"),
		},
	}
}

// mtuOfPorts returns a command that sets the MTU of all ports of docker0.
func mtuOfPorts(mtu int) string {
	return fmt.Sprintf(`set -e
		ports=$(ip -o link | sed -n 's/^[0-9]*: \([^@:]*\)[@:].* master docker0 .*/\1/p')
		test -n "$ports"
		for port in $ports; do ip link set mtu %d dev $port; done`, mtu)
}

// settingFaults are the faults of this host's settings and of other programs on it.
func settingFaults() []fault {
	return []fault{
		{
			name: "forwarding is off", id: "FL-IP-FORWARD", also: unreachable, said: []string{"IP forwarding is off", "sysctl -w net.ipv4.ip_forward=1"},
			make: shell("sysctl -qw net.ipv4.ip_forward=0"), cure: shell("sysctl -qw net.ipv4.ip_forward=1"),
		},
		{
			name: "strict reverse path filtering", id: "FL-RP-FILTER", said: []string{"flannel.1", "rp_filter=2"},
			make: shell("sysctl -qw net.ipv4.conf.flannel/1.rp_filter=1"), cure: shell("sysctl -qw net.ipv4.conf.flannel/1.rp_filter=2"),
		},
		{
			name: "docker0 is elsewhere", id: "FL-DOCKER-SUBNET", also: unreachable, said: []string{"docker bridge is not on this host's subnet", "systemctl restart docker"},
			make: shell("ip addr flush dev docker0; ip addr add 172.17.0.1/16 dev docker0"),
		},
		{
			name: "containers send longer packets", id: "FL-BRIDGE-MTU", also: unreachable, said: []string{"MTU 1500", "overlay carries 1450"},
			make: shell(mtuOfPorts(1500)), cure: shell(mtuOfPorts(1450)),
		},
		{
			name: "route of another program", id: "FL-ROUTE-FOREIGN", also: append([]string{"FL-PEER-SKIPPED"}, unreachable...), said: []string{"foreign route diverts packets for a peer's containers", "ip route del"},
			make: func(c *faultCluster) {
				c.sh(c.h, fmt.Sprintf("ip route add %s/25 dev %s", c.subnet(c.peer).Addr(), c.h.Uplink))
			},
			cure: func(c *faultCluster) {
				c.sh(c.h, fmt.Sprintf("ip route del %s/25 dev %s", c.subnet(c.peer).Addr(), c.h.Uplink))
			},
		},
		{
			name: "tunnel port is taken", id: "FL-PORT-TAKEN", said: []string{"UDP port 8472, which the tunnel needs", "kill "},
			also: slices.Concat(unreachable, []string{"FL-LEASE-MISSING", "FL-DEVICE-CHANGED", "FL-DRIFT", "FL-PEER-SKIPPED", "FL-CONDITION"}),
			start: func(c *faultCluster) {
				var taken net.PacketConn
				c.must(c.h.Do(func() (err error) {
					taken, err = net.ListenPacket("udp4", "0.0.0.0:8472")
					return err
				}))
				c.t.Cleanup(func() { taken.Close() })
				c.start(c.peer)
				p := c.launch(c.h)
				c.within(20*time.Second, "the port is in use", func() error { return sayingOf(p, "failed to set up the overlay") })
			},
		},
	}
}

// sayingOf reports, as an error, that a process has not logged a text.
func sayingOf(p *lab.Process, text string) error {
	if !strings.Contains(p.Logs(), text) {
		return fmt.Errorf("not logged: %s", text)
	}
	return nil
}
