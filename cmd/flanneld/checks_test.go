package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"flanneld/pkg/lab"
)

// TestHostChecks: a configuration of other programs that breaks the overlay is logged once, with
// the command that fixes it, at the start or when it appears, and again when it is over.
func TestHostChecks(t *testing.T) {
	t.Parallel()
	need(t, "ip")
	c, h := oneHost(t, vxlanConfig)
	c.put("subnets/10.42.7.0-24", fmt.Sprintf(`{"PublicIP":"%s"}`, h.Addr)) // reserved
	c.put("subnets/10.42.9.0-24", phantomValue("203.0.113.9", "0a:00:00:00:00:09"))
	gateway := strings.Fields(c.sh(h, "ip route show default"))[2]
	// There at the start: docker came first, and a route is left over.
	c.sh(h, "ip link add docker0 type bridge; ip link set docker0 up; ip addr add 172.17.0.1/16 dev docker0; ip route add 10.42.7.0/24 via "+gateway+" dev eth0")
	c.must(c.StartAll(c.ctx))
	p := h.Flanneld()
	const docker, route, peer = "docker bridge", "foreign route diverts packets for this host's containers", "foreign route diverts packets for a peer's"
	if command := c.says(p, "WARN", docker, "device=docker0", "addr=172.17.0.1/16", "subnet=10.42.7.0/24"); command != "systemctl restart docker" {
		t.Errorf("command %q", command)
	}
	// Docker restarted has the subnet; the stale route still wins.
	restart := "ip addr flush dev docker0; ip addr add 10.42.7.1/24 dev docker0"
	c.sh(h, restart)
	c.says(p, "INFO", "no longer: "+docker, "addr=172.17.0.1/16", "duration=")
	if got := c.sh(h, "ip route get 10.42.7.5"); !strings.Contains(got, "eth0") {
		t.Fatalf("the stale route does not win: %s", got)
	}
	c.sh(h, c.says(p, "WARN", route, "10.42.7.0/24 via "+gateway+" dev eth0"))
	c.says(p, "INFO", "no longer: "+route)

	// There are no events about routing rules: they are checked with another event, or after a
	// minute.
	const event = "; ip route add 10.42.250.0/24 dev docker0; ip route del 10.42.250.0/24"
	for _, appears := range []struct {
		do   string
		said []string
		mend string // instead of the command
	}{
		{"ip addr flush dev docker0; ip addr add 10.42.9.1/24 dev docker0", []string{docker + " has addresses of another host's subnet", "peer=10.42.9.0/24"}, restart},
		{"ip addr flush dev docker0; ip addr add 10.42.0.1/16 dev docker0", []string{docker + " covers the whole network", "addr=10.42.0.1/16"}, restart},
		{"ip addr flush dev docker0; ip addr add 10.42.8.1/24 dev docker0", []string{docker + " is not on this host's subnet", "addr=10.42.8.1/24"}, restart},
		{"ip link add br-0123456789ab type bridge; ip addr add 10.42.200.1/20 dev br-0123456789ab", []string{docker, "device=br-0123456789ab", "docker network rm 0123456789ab"}, "ip link del br-0123456789ab"},
		{"ip route prepend 10.42.7.0/24 via " + gateway + " dev eth0", []string{route, "routes=1"}, ""},
		{"ip route add unreachable 10.42.7.128/25", []string{route, "unreachable 10.42.7.128/25"}, ""},
		{"ip route add 10.42.7.64/26 nexthop via " + gateway + " dev eth0 nexthop via " + gateway + " dev eth0 weight 2", []string{route, "10.42.7.64/26"}, ""},
		{"for i in 1 2 3; do ip route add 10.42.7.$i dev eth0; done", []string{route, "routes=3"}, ""},
		{"ip link add dummy0 type bridge; ip link set dummy0 up; ip addr add 10.42.7.130/25 dev dummy0", []string{route, "10.42.7.128/25 dev dummy0", "ip addr del 10.42.7.130/25 dev dummy0"}, ""},
		{"ip route add 10.0.0.0/8 dev eth0 table 52; ip rule add lookup 52 priority 5270", []string{"routing rule diverts packets", "table=52"}, ""},
		{"ip route add 10.42.9.64/26 via " + gateway + " dev eth0", []string{peer, "peer=10.42.9.0/24"}, ""},
	} {
		before := len(p.Logs())
		c.sh(h, appears.do+event)
		command := c.saysAfter(p, before, append([]string{"WARN"}, appears.said...)...)
		if appears.mend != "" {
			command = appears.mend
		}
		c.sh(h, command+event)
		c.saysAfter(p, before, "no longer: "+appears.said[0])
	}
	c.said(p, 4, "WARN", "device=docker0")
}

// TestTakenPlaces: if an object that the host itself needs cannot be created, an error names the
// conflicting program and the command. READY is sent only once the object exists.
func TestTakenPlaces(t *testing.T) {
	t.Parallel()
	need(t, "ip")
	const vxlan, udp = vxlanConfig, udpConfig
	me, kill := fmt.Sprintf("pid %d", os.Getpid()), fmt.Sprint("kill ", os.Getpid())
	if strings.HasPrefix(t.Name(), underTheUnit) { // which may not see whose a socket is
		me, kill = "a process of uid 0, or the kernel", "ss -ulpnH"
	}
	listen := func(addr string) func(*cluster) (end func()) {
		return func(c *cluster) func() {
			var s net.PacketConn
			c.must(c.Hosts[0].Do(func() (err error) {
				s, err = net.ListenPacket("udp4", addr)
				return err
			}))
			return func() { s.Close() }
		}
	}
	run := func(command string) func(*cluster) func() {
		return func(c *cluster) func() {
			c.sh(c.Hosts[0], command)
			return nil
		}
	}
	for _, x := range []struct {
		name, config string
		take         func(*cluster) (end func())
		said         []string
		command      string // if it isn't run
	}{
		{"udp port", udp, listen("0.0.0.0:8285"), []string{"address already in use", "port=8285", me, "at 0.0.0.0"}, kill},
		{"vxlan port", vxlan, listen("127.0.0.1:8472"), []string{"address already in use", "port=8472", me, "at 127.0.0.1"}, kill},
		{"vxlan port, by another vxlan device", vxlan, run("ip link add v9 up type vxlan id 9 dstport 8472 gbp dev eth0"),
			[]string{"address already in use", "port=8472", "the kernel has UDP port 8472 for the VXLAN device v9"}, ""},
		{"VNI", vxlan, run("ip link add v9 up type vxlan id 1 dstport 8472 dev eth0"), []string{"the VXLAN device v9 has VNI 1 and port 8472"}, ""},
		{"flannel.1 of another kind", vxlan, run("ip link add flannel.1 type bridge"), []string{"another device of that name and of type bridge exists"}, ""},
		{"flannel0 of another kind", udp, run("ip link add flannel0 type bridge"), []string{"another device of that name and of type bridge exists"}, ""},
		{"TAP", udp, run("ip tuntap add flannel0 mode tap"), []string{"flannel0 is a TAP device"}, ""},
		{"multi-queue", udp, run("ip tuntap add flannel0 mode tun multi_queue"), []string{"flannel0 is a TUN device with several queues"}, ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			c, h := oneHost(t, x.config)
			end := x.take(c)
			p := c.launch(h)
			command := c.says(p, append([]string{"ERROR", "failed to set up the overlay on this host, will retry"}, x.said...)...)
			if x.command != "" && !strings.HasPrefix(command, x.command) {
				t.Errorf("command %q", command)
			}
			if p.ReadyAfter() != 0 {
				t.Error("READY")
			}
			if end != nil {
				end()
			} else {
				c.sh(h, command)
			}
			c.must(p.WaitReady(c.ctx))
			c.says(p, "INFO", "no longer: failed to set up the overlay")
			if n := lines(p, "ERROR"); n != 1 || lines(p, "failed to apply changes") != 0 || lines(p, "operations blocked by a conflict") != 0 {
				t.Errorf("said %d times:\n%s", n, p.Logs())
			}
		})
	}
}

// TestNetworkAndLAN: a network whose subnets include the hosts' own link is rejected with the
// reason, without READY and without a change of the link. A network that only contains the link
// works, and so does one that equals the link, with subnets that leave out the hosts.
func TestNetworkAndLAN(t *testing.T) {
	t.Parallel()
	need(t, "ip")
	for _, x := range []struct {
		name, network, min string
		refused            bool
	}{
		{"the same", "172.31.200.0/22", "172.31.200.0", true},
		{"the same, with subnets beside the hosts", "172.31.200.0/22", "172.31.200.128", false},
		{"a part, with the hosts", "172.31.200.0/24", "172.31.200.0", true},
		{"a part, without the hosts", "172.31.202.0/23", "172.31.203.0", false},
		{"more", "172.16.0.0/12", "172.31.203.0", false},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, lab.Options{Hosts: 2, Underlay: netip.MustParsePrefix("172.31.200.0/22")})
			h := c.Hosts[0]
			c.put("config", fmt.Sprintf(`{"Network":"%s","SubnetLen":26,"SubnetMin":"%s","Backend":{"Type":"udp"}}`, x.network, x.min))
			if !x.refused {
				c.must(c.StartAll(c.ctx))
				c.connect()
				return
			}
			p := c.launch(h)
			c.says(p, "WARN", "network config is invalid", x.network+" takes the addresses of 172.31.200.0/22 dev eth0", "choose another Network")
			if p.ReadyAfter() != 0 {
				t.Error("READY")
			}
			if got := c.sh(h, "ip route get "+c.Hosts[1].Addr.String()); !strings.Contains(got, "dev eth0") {
				t.Errorf("the link is led elsewhere: %s", got)
			}
			if _, err := h.Ping(c.ctx, c.Hosts[1].Addr, lab.PingOptions{}); err != nil {
				t.Errorf("the other host is cut off: %v", err)
			}
		})
	}
}

// TestNetworkWithAHostsAddress: with udp, packets to a host whose address is inside the network do
// not enter the tunnel. If the address is among the leasable subnets, they do, unless there is a
// longer route.
func TestNetworkWithAHostsAddress(t *testing.T) {
	t.Parallel()
	need(t, "ip")
	c := newCluster(t, lab.Options{Hosts: 1})
	h := c.Hosts[0]
	const beside, among = "10.42.7.9", "10.42.200.9"
	c.put("config", `{"Network":"10.42.0.0/16","SubnetMin":"10.42.128.0","Backend":{"Type":"udp"}}`)
	c.put("subnets/10.42.130.0-24", `{"PublicIP":"`+beside+`"}`)
	c.put("subnets/10.42.131.0-24", `{"PublicIP":"`+among+`"}`)
	c.must(c.StartAll(c.ctx))
	command := c.says(h.Flanneld(), "WARN", "network contains the address of a peer", "public_ip="+among, "peers=1")
	leads := func(to, device string) {
		t.Helper()
		if got := c.sh(h, "ip route get "+to); !strings.Contains(got, "dev "+device) {
			t.Errorf("the route to %s is not by %s: %s", to, device, got)
		}
	}
	leads(beside, "eth0")
	leads(among, "flannel0")
	c.sh(h, command)
	leads(among, "eth0")
	c.says(h.Flanneld(), "no longer: network contains the address of a peer")
}
