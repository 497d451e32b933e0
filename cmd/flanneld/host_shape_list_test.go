package main

import "flanneld/pkg/lab"

// The zoo: host configurations of users. TestZoo builds hosts of each shape, runs flanneld on them,
// and checks the expectations of the row. A report about a host that does not work becomes a row:
// its name, the commands that build it, and the expected result.
//
// The network of a row consists of a router and hosts with the numbers 2, 3 and 4, which have the
// NICs of the row, down and without addresses. Commands are lines of a shell, run one by one; in
// them, $N is the number of the host, and, on the router, $HOSTS are all of the numbers. The
// router's end of a host's cable is h$N.eth0, and so on. "replug eth0" removes the card and inserts
// it again.
//
// In every row the router is reached at 10.99.0.1, and peers send to 10.99.0.$N. Defaults: one NIC,
// eth0, at the router's bridge "lan" (oneRouter, oneAddress); the uplink is eth0 with that address
// and an MTU of 1500; the overlay is 10.42.0.0/16; it works again after a flap of "ip link set eth0
// down; ip link set eth0 up".
type shape struct {
	name string

	// What it is.
	nics    []lab.NIC
	router  string // on the router, once
	once    string // on each host at boot, before up
	up      string // on each host at boot, and again after a flap, as DHCP and network managers do
	flap    string // on one host, whose packets then go again after up
	args    string // of flanneld
	overlay string // the network config without Backend
	filter  string // iptables: "nft" or "legacy" is what flanneld finds under that name; else what the machine has
	second  bool   // a second flanneld on each host, for another network
	late    bool   // flanneld is started before anything else, at the first time too
	needs   string // kind of link that not every kernel knows: such a row is run by "make test-vm"

	// What is right.
	uplink  string
	addr    string            // of the uplink, where peers send to another one
	mtu     int               // of the uplink
	routed  bool              // hosts reach each other by a router only: no host-gw, no direct routing
	outside string            // network that no subnet may be leased in
	warns   []string          // that the logs of all hosts have, and no other
	refused map[string]string // what flanneld says, and ends, by the name of the backend

	everyBackend bool // not only with vxlan, where time is short
}

// What many rows have in common.
const (
	oneRouter = `
		ip addr add 10.99.0.1/16 dev lan`
	twoRouters = `
		ip addr add 10.99.0.1/16 dev lan
		ip addr add 192.168.77.1/24 dev mgmt`
	oneAddress = `
		ip link set eth0 up
		ip addr replace 10.99.0.$N/16 dev eth0
		ip route replace default via 10.99.0.1 dev eth0`

	bondOfTwo = `
		ip link add bond0 type bond mode active-backup miimon 100
		ip link set eth0 master bond0
		ip link set eth1 master bond0`
	onBond = `
		ip link set bond0 up
		ip addr replace 10.99.0.$N/16 dev bond0
		ip route replace default via 10.99.0.1 dev bond0`
	bridgeOfOne = `
		ip link add br0 type bridge
		ip link set eth0 master br0`
	onBridge = `
		ip link set eth0 up
		ip link set br0 up
		ip addr replace 10.99.0.$N/16 dev br0
		ip route replace default via 10.99.0.1 dev br0`
	pppRouter = `
		for N in $HOSTS; do ip addr add 10.99.0.1 peer 10.99.0.$N dev h$N.ppp0; ip link set h$N.ppp0 mtu 1492 up; done`
	onPPP = `
		ip link set ppp0 mtu 1492 up
		ip addr replace 10.99.0.$N peer 10.99.0.1 dev ppp0
		ip route replace default dev ppp0`
	addressBehind = `
		ip addr add 172.20.0.1/24 dev lan
		ip addr add 10.99.0.1/32 dev lo
		for N in $HOSTS; do ip route add 10.99.0.$N via 172.20.0.$N; done`
	onOtherSubnet = `
		ip link set eth0 up
		ip addr replace 172.20.0.$N/24 dev eth0
		ip route replace default via 172.20.0.1 dev eth0 src 10.99.0.$N`
)

var (
	oneNIC  = []lab.NIC{{Name: "eth0", LAN: "lan"}}
	twoNICs = []lab.NIC{{Name: "eth0", LAN: "lan"}, {Name: "mgmt", LAN: "mgmt"}}

	twoPorts = []lab.NIC{{Name: "eth0", LAN: "lan"}, {Name: "eth1", LAN: "lan"}}
)

var shapes = []shape{
	{
		name:         "one NIC",
		everyBackend: true,
	},
	{
		name: "one NIC, a USB device, taken out and put in",
		flap: `
			replug eth0`,
	},
	{
		name:   "two NICs and two default routes",
		nics:   twoNICs,
		router: twoRouters,
		up: `
			ip link set eth0 up
			ip addr replace 10.99.0.$N/16 dev eth0
			ip route replace default via 10.99.0.1 dev eth0 metric 100
			ip link set mgmt up
			ip addr replace 192.168.77.$N/24 dev mgmt
			ip route replace default via 192.168.77.1 dev mgmt metric 600`,
		everyBackend: true,
	},
	{
		name:   "default route over two gateways, -iface",
		nics:   twoNICs,
		router: twoRouters,
		up: `
			ip link set eth0 up
			ip addr replace 10.99.0.$N/16 dev eth0
			ip link set mgmt up
			ip addr replace 192.168.77.$N/24 dev mgmt
			ip route replace default nexthop via 10.99.0.1 dev eth0 nexthop via 192.168.77.1 dev mgmt`,
		args: "-iface=eth0",
	},
	{
		name: "VLAN",
		router: `
			ip link add link lan name lan.100 type vlan id 100
			ip link set lan.100 up
			ip addr add 10.99.0.1/16 dev lan.100`,
		once: `
			ip link add link eth0 name eth0.100 type vlan id 100`,
		up: `
			ip link set eth0 up
			ip link set eth0.100 up
			ip addr replace 10.99.0.$N/16 dev eth0.100
			ip route replace default via 10.99.0.1 dev eth0.100`,
		needs:  "vlan",
		uplink: "eth0.100",
	},
	{
		name: "bond, active-backup, the active port fails",
		nics: twoPorts,
		once: bondOfTwo,
		up:   onBond,
		flap: `
			ip link set eth0 down`,
		needs:  "bond",
		uplink: "bond0",
	},
	{
		name: "bond, both ports fail",
		nics: twoPorts,
		once: bondOfTwo,
		up:   onBond,
		flap: `
			ip link set eth0 down
			ip link set eth1 down
			ip link set eth1 up
			ip link set eth0 up`,
		needs:  "bond",
		uplink: "bond0",
	},
	{
		name:   "bridge as uplink",
		once:   bridgeOfOne,
		up:     onBridge,
		uplink: "br0",
	},
	{
		name: "bridge as uplink, its port flaps",
		once: bridgeOfOne,
		up:   onBridge,
		flap: `
			ip link set eth0 down
			ip link set eth0 up`,
		uplink: "br0",
	},
	{
		name: "32-bit address with an on-link gateway",
		up: `
			ip link set eth0 up
			ip addr replace 10.99.0.$N/32 dev eth0
			ip route replace 10.99.0.1 dev eth0 scope link
			ip route replace default via 10.99.0.1 dev eth0`,
		routed:       true,
		everyBackend: true,
	},
	{
		name:   "PPP, default route without a gateway",
		nics:   []lab.NIC{{Name: "ppp0"}},
		router: pppRouter,
		up:     onPPP,
		uplink: "ppp0",
		mtu:    1492,
		routed: true,
	},
	{
		name:   "PPP, dialled anew",
		nics:   []lab.NIC{{Name: "ppp0"}},
		router: pppRouter,
		up:     onPPP,
		flap: `
			replug ppp0`,
		uplink: "ppp0",
		mtu:    1492,
		routed: true,
	},
	{
		name:   "address on lo, src in the default route",
		router: addressBehind,
		once: `
			ip addr add 10.99.0.$N/32 dev lo`,
		up:     onOtherSubnet,
		routed: true,
	},
	{
		name:   "address on a dummy, src in the default route",
		router: addressBehind,
		once: `
			ip link add dummy0 type dummy
			ip link set dummy0 up
			ip addr add 10.99.0.$N/32 dev dummy0`,
		up:     onOtherSubnet,
		needs:  "dummy",
		routed: true,
	},
	{
		name: "floating address beside a DHCP address",
		up: `
			ip link set eth0 up
			ip addr replace 10.99.0.$N/16 dev eth0 valid_lft 3600 preferred_lft 3600
			ip route replace default via 10.99.0.1 dev eth0 proto dhcp src 10.99.0.$N
			ip addr replace 10.99.0.10$N/32 dev eth0`,
	},
	{
		name: "floating address first, default route without src",
		up: `
			ip link set eth0 up
			ip addr replace 10.99.0.10$N/32 dev eth0
			ip addr replace 10.99.0.$N/16 dev eth0
			ip route replace default via 10.99.0.1 dev eth0`,
	},
	{
		name: "several addresses",
		up: `
			ip link set eth0 up
			ip addr replace 10.99.0.$N/16 dev eth0
			ip addr replace 10.99.1.$N/16 dev eth0
			ip addr replace 192.168.7.$N/24 dev eth0
			ip addr replace 10.98.0.$N/32 dev lo
			ip route replace default via 10.99.0.1 dev eth0`,
	},
	{
		name:   "policy routing, a table for each NIC",
		nics:   twoNICs,
		router: twoRouters,
		once: `
			ip rule add from 10.99.0.$N lookup 100
			ip rule add from 192.168.77.$N lookup 101`,
		up: `
			ip link set eth0 up
			ip addr replace 10.99.0.$N/16 dev eth0
			ip route replace default via 10.99.0.1 dev eth0
			ip route replace default via 10.99.0.1 dev eth0 table 100
			ip link set mgmt up
			ip addr replace 192.168.77.$N/24 dev mgmt
			ip route replace default via 192.168.77.1 dev mgmt table 101`,
	},
	{
		name:   "policy routing, all that main's default route would carry goes into a VPN",
		nics:   twoNICs,
		router: twoRouters,
		once: `
			ip rule add pref 100 lookup main suppress_prefixlength 0
			ip rule add pref 101 lookup 51820`,
		up: `
			ip link set eth0 up
			ip addr replace 10.99.0.$N/16 dev eth0
			ip route replace default via 10.99.0.1 dev eth0
			ip link set mgmt up
			ip addr replace 192.168.77.$N/24 dev mgmt
			ip route replace default via 192.168.77.1 dev mgmt table 51820`,
	},
	{
		name: "uplink that is a tunnel, MTU 1280",
		router: `
			ip addr add 172.20.0.1/24 dev lan
			ip link add wan0 mtu 1280 type vxlan id 77 dstport 4790 group 239.0.0.77 dev lan
			ip link set wan0 up
			ip addr add 10.99.0.1/16 dev wan0`,
		once: `
			ip link add wan0 mtu 1280 type vxlan id 77 dstport 4790 group 239.0.0.77 dev eth0`,
		up: `
			ip link set eth0 up
			ip addr replace 172.20.0.$N/24 dev eth0
			ip link set wan0 up
			ip addr replace 10.99.0.$N/16 dev wan0
			ip route replace default via 10.99.0.1 dev wan0`,
		uplink: "wan0",
		mtu:    1280,
	},
	{
		name: "jumbo frames",
		once: `
			ip link set eth0 mtu 9000`,
		mtu: 9000,
	},
	{
		name: "LAN wider than the overlay",
		router: `
			ip addr add 10.99.0.1/8 dev lan`,
		up: `
			ip link set eth0 up
			ip addr replace 10.99.0.$N/8 dev eth0
			ip route replace default via 10.99.0.1 dev eth0`,
	},
	{
		name: "on-link route wider than the overlay",
		up: `
			ip link set eth0 up
			ip addr replace 10.99.0.$N/16 dev eth0
			ip route replace 10.0.0.0/8 dev eth0 scope link
			ip route replace default via 10.99.0.1 dev eth0`,
	},
	{
		name:    "LAN inside the overlay's Network",
		overlay: `"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.99.16.0","SubnetMax":"10.150.240.0"`,
		outside: "10.99.0.0/16",
	},
	{
		name: "no IPv6",
		once: `
			echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
			echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6`,
	},
	{
		name: "1,000 other links",
		once: `
			seq 1 500 | sed 's/.*/link add v& type veth peer name w&/' | ip -batch -`,
	},
	{
		name: "docker bridges of other prefixes",
		once: `
			for B in docker0=172.17.0.1/16 br-0a1b2c=172.18.0.1/16 docker_gwbridge=172.19.0.1/16; do ip link add ${B%=*} type bridge; ip addr add ${B#*=} dev ${B%=*}; ip link set ${B%=*} up; done`,
		warns: []string{"docker0"},
	},
	{
		name: "iptables-nft, docker's rules in it",
		once: `
			iptables-nft -P FORWARD DROP`,
		filter: "nft",
	},
	{
		name: "iptables-legacy, docker's rules in it",
		once: `
			iptables-legacy -P FORWARD DROP`,
		filter: "legacy",
	},
	{
		name: "iptables-nft, docker's rules in iptables-legacy",
		once: `
			iptables-legacy -P FORWARD DROP`,
		filter: "nft",
	},
	{
		name: "iptables-legacy, docker's rules in iptables-nft",
		once: `
			iptables-nft -P FORWARD DROP`,
		filter: "legacy",
	},
	{
		name: "nftables, a ruleset of one's own that drops what is forwarded",
		once: `
			nft add table inet mine
			nft add chain inet mine forward '{ type filter hook forward priority 10; policy drop; }'`,
	},
	{
		name: "two flannelds",
		once: `
			iptables -P FORWARD DROP`,
		second: true,
	},
	{
		name: "NAT, -public-ip",
		router: `
			ip addr add 172.20.0.1/24 dev lan
			ip addr add 10.99.0.1/32 dev lo
			echo 0 >/proc/sys/net/ipv4/conf/all/send_redirects
			echo 0 >/proc/sys/net/ipv4/conf/lan/send_redirects
			for N in $HOSTS; do iptables -t nat -A PREROUTING -d 10.99.0.$N -j DNAT --to 172.20.0.$N; done
			for N in $HOSTS; do iptables -t nat -A POSTROUTING -s 172.20.0.$N -j SNAT --to 10.99.0.$N; done`,
		up: `
			ip link set eth0 up
			ip addr replace 172.20.0.$N/24 dev eth0
			ip route replace default via 172.20.0.1 dev eth0`,
		args:    "-public-ip=10.99.0.$N",
		addr:    "172.20.0.$N",
		routed:  true,
		refused: map[string]string{"host-gw": "host-gw cannot reach hosts behind NAT"},
	},
	{
		name:   "interfaces that come late",
		nics:   twoNICs,
		router: twoRouters,
		up: `
			ip link set mgmt up
			ip addr replace 192.168.77.$N/24 dev mgmt
			ip link set eth0 up
			ip addr replace 10.99.0.$N/16 dev eth0
			ip route replace default via 10.99.0.1 dev eth0`,
		late: true,
	},
}
