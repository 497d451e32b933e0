package main

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// TestContainersReachNoTunnelPort: packets of a container to the VXLAN port of any host, at any
// address, inject nothing, with any keeper of the rules. Packets between containers pass.
func TestContainersReachNoTunnelPort(t *testing.T) {
	t.Parallel()
	need(t, "iptables-nft", "iptables-legacy", "nft")
	inside := keepers[0]
	inside.name = "the hosts' LAN lies in the network"
	for _, k := range append(slices.Clone(keepers), inside) {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			o, named := lab.Options{Hosts: 2}, 4 // rules
			if k.name == inside.name {
				o.Underlay, named = netip.MustParsePrefix("10.42.200.0/24"), 8
			}
			c := newCluster(t, o)
			c.put("config", k.config)
			daemons := c.startEach(lab.Command{Args: []string{"-ip-masq=true"}, Env: []string{"PATH=" + variantPath(t, k.iptables)}}, c.Hosts...)
			c.connect()
			victim, other := c.containers[0], c.containers[1]
			received := c.listener(&victim.Endpoint, 7777)
			forged := inVXLAN(1, c.iface(c.Hosts[0], "flannel.1").HardwareAddr, inner(other.Addr, victim.Addr, 7777, "forged"))
			own := c.subnet(c.Hosts[0]).Addr()
			for _, attack := range []struct {
				from *lab.Endpoint
				to   netip.Addr
			}{
				{&other.Endpoint, c.Hosts[0].Addr},  // masqueraded
				{&other.Endpoint, own},              // the device, by way of the overlay
				{&other.Endpoint, own.Next()},       // the bridge
				{&victim.Endpoint, c.Hosts[0].Addr}, // its own host
				{&victim.Endpoint, own},
				{&victim.Endpoint, own.Next()},
			} {
				_, err := c.dialFrom(attack.from, 0, netip.AddrPortFrom(attack.to, 8472)).Write(forged)
				c.must(err)
				if got := received(150 * time.Millisecond); got != "" {
					t.Errorf("%s to %s: the container received %q", attack.from.Name, attack.to, got)
				}
			}
			nested := c.listener(&victim.Endpoint, 8472)
			_, err := c.dialFrom(&other.Endpoint, 0, netip.AddrPortFrom(victim.Addr, 8472)).Write([]byte("of their own"))
			c.must(err)
			if got := nested(2 * time.Second); got != "of their own" {
				t.Errorf("between containers: %q", got)
			}
			for _, p := range daemons {
				if n := lines(p, "repaired packet filter rules") + lines(p, "drops packets to the tunnel port"); n > 0 {
					t.Errorf("%d complaints:\n%s", n, p.Logs())
				}
			}
			rules := c.sh(c.Hosts[0], "{ iptables-nft-save -t filter; iptables-legacy-save -t filter; nft list table ip flannel-ipv4; } 2>/dev/null; true")
			if n := strings.Count(rules, "8472"); n != named {
				t.Errorf("%d rules name the port:\n%s", n, rules)
			}
		})
	}
}

// TestLocalProcessAtTheTunnelsPort: with udp, a process that has the tunnel's port at the
// bridge's address is not masqueraded into the tunnel.
func TestLocalProcessAtTheTunnelsPort(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 2, udpConfig, "-ip-masq=true")
	victim, other := c.containers[0], c.containers[1]
	received := c.listener(&victim.Endpoint, 7777)
	bridge := c.subnet(c.Hosts[1]).Addr().Next()
	var conn net.Conn
	c.must(c.Hosts[1].Do(func() (err error) {
		conn, err = net.DialUDP("udp4", &net.UDPAddr{IP: bridge.AsSlice(), Port: 8285}, &net.UDPAddr{IP: c.Hosts[0].Addr.AsSlice(), Port: 8285})
		return err
	}))
	defer conn.Close()
	for i := range 20 {
		_, err := conn.Write(inner(other.Addr, victim.Addr, 7777, fmt.Sprint("forged ", i)))
		if err == nil {
			t.Error("sent")
		}
	}
	if got := received(150 * time.Millisecond); got != "" {
		t.Errorf("the container received %q", got)
	}
	c.waitAllPairs()
}
