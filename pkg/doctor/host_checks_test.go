package doctor

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/iptables"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lease"
)

// localFacts are what the checks of the packet filter and of this host's settings read.
type localFacts struct {
	device       dataplane.State
	surroundings host.Surroundings
	sysctls      map[string]string
	bridge       Bridge
	port         []kernel.Holder
	rules        string // as iptables-save prints them
	legacy       error
	release      string
	files        Files
}

const (
	flannelMAC = "02:00:00:00:00:07"
	// ourRules are those of flanneld on a host with docker's policy.
	ourRules = `*nat
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -s 10.42.0.0/16 -d 10.42.0.0/16 -j RETURN
-A POSTROUTING -s 10.42.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:FLANNEL-FWD - [0:0]
-A FORWARD -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.42.0.0/16 -j ACCEPT
-A FLANNEL-FWD -d 10.42.0.0/16 -j ACCEPT
COMMIT
`
)

// healthyLocal returns the facts of a host with docker.
func healthyLocal() localFacts {
	f := localFacts{device: dataplane.NewState(), release: "6.1.0-18-amd64", rules: ourRules}
	var mac dataplane.MAC
	copy(mac[:], []byte{2, 0, 0, 0, 0, 7})
	f.device.Links["flannel.1"] = dataplane.Link{Kind: dataplane.KindVXLAN, VNI: 1, Port: 8472, MAC: mac, MTU: 1450, Up: true, Parent: "eth0"}
	f.surroundings = host.Surroundings{Links: []host.Link{
		{Name: "eth0", Kind: "device", Addrs: prefixes("192.0.2.7/24")},
		{Name: "docker0", Kind: "bridge", Addrs: prefixes("10.42.7.1/24")},
	}}
	f.surroundings.Paths = []host.Path{{Route: host.Route{Dst: prefix("0.0.0.0/0"), Iface: "eth0", Gateway: addr("192.0.2.1")}}}
	f.sysctls = map[string]string{
		"net/ipv4/ip_forward": "1", bridgeFilter: "1", "net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/eth0/rp_filter": "2", neighLimit: "1024",
		"net/netfilter/nf_conntrack_count": "10", "net/netfilter/nf_conntrack_max": "100",
	}
	f.bridge = Bridge{Port: kernel.Port{Name: "docker0", MTU: 1450}, Ports: []kernel.Port{{Name: "veth1", MTU: 1450}}}
	f.port = []kernel.Holder{{Kernel: true}}
	f.files = Files{Modules: wantedModules()}
	return f
}

// add adds the facts to inputs.
func (f localFacts) add(in *Inputs) {
	in.Device, in.Surroundings, in.Sysctls, in.Bridge = Given(f.device), Given(f.surroundings), Given(f.sysctls), Given(f.bridge)
	in.Port, in.Release, in.Files = Given(f.port), Given(f.release), Given(f.files)
	w := Ways{
		Network: prefix("10.42.0.0/16"), Subnet: prefix("10.42.7.0/24"), Bridge: "docker0", Overlay: "flannel.1", Uplink: "eth0",
		Addr: addr("192.0.2.7"), Peers: addrs("192.0.2.8", "192.0.2.9"), Peer: addr("10.42.8.2"), Port: 8472,
		Index: map[string]int{"docker0": 3, "flannel.1": 4, "eth0": 2},
	}
	in.Ways, in.Legacy = Given(w), Missing[*iptables.Listing](f.legacy)
	p := Passages{Legacy: f.legacy}
	if f.legacy == nil {
		l, err := iptables.ParseListing("iptables-legacy", f.rules)
		if err != nil {
			panic(err)
		}
		in.Legacy = Given(l)
		p.All, _ = w.follow(l.BaseChains()) // cannot fail: there is nothing to read
	}
	in.Passages = Given(p)
}

// filter inserts rules into table filter.
func (f *localFacts) filter(rules ...string) {
	f.rules = strings.Replace(f.rules, "-A FORWARD", strings.Join(rules, "\n")+"\n-A FORWARD", 1)
}

// hostAreas are the checks of the packet filter and of this host's settings.
func hostAreas() []Check { return slices.Concat(filterChecks(), hostChecks(), deviceChecks()) }

// TestHostChecks: each row changes a healthy host, and names the check that fails because of it,
// first, with a part of its summary and of its remedy. No other check may fail, except those
// listed. With an empty id none may fail. unknown are the checks that may not know, and must not.
func TestHostChecks(t *testing.T) {
	for _, x := range []struct {
		name                string
		change              func(*facts)
		id, summary, remedy string
		also, unknown       string
	}{
		{"healthy", func(*facts) {}, "", "", "", "", ""},
		{"policy", func(f *facts) { f.local.rules = strings.ReplaceAll(ourRules, "-A FORWARD -j FLANNEL-FWD\n", "") }, aboutForward,
			"new ICMP packets from containers of this host to those of other hosts are dropped by the policy of chain FORWARD in iptables-legacy table filter, and 11 other kinds",
			"iptables-legacy -t filter -I FORWARD -s 10.42.0.0/16 -j ACCEPT; iptables-legacy -t filter -I FORWARD -d 10.42.0.0/16 -j ACCEPT", aboutBridge, ""},
		{"UDP only", func(f *facts) {
			f.local.filter("-A FORWARD -i flannel.1 -p udp -j REJECT --reject-with icmp-port-unreachable")
		}, aboutForward,
			`new UDP packets from containers of other hosts to those of this host are dropped by rule "-A FORWARD -i flannel.1 -p udp -j REJECT --reject-with icmp-port-unreachable"`, "iptables-legacy", "", ""},
		{"new ones only", func(f *facts) {
			f.local.filter("-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-A FORWARD -i flannel.1 -j DROP")
		}, aboutForward, "new ICMP packets from containers of other hosts", "", "", ""},
		{"one port", func(f *facts) { f.local.filter("-A FORWARD -p tcp -m tcp --dport 25 -j DROP") }, "", "", "", "", ""},
		{"some ports", func(f *facts) {
			f.local.filter("-A FORWARD -p tcp -m multiport --dports 443,8443 -j ACCEPT", "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT", "-A FORWARD -p tcp -j DROP")
		}, "", "", "", "", ""},
		{"an odd port", func(f *facts) {
			f.local.filter("-A FORWARD -p tcp -m tcp --dport 4711 -j ACCEPT", "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT", "-A FORWARD -p tcp -j DROP")
		}, "", "", "", "", aboutForward},
		{"set", func(f *facts) { f.local.filter("-A FORWARD -m set --match-set bad src -j DROP") }, "", "", "", "", aboutForward + " " + aboutBridge},
		{"set, decided before", func(f *facts) {
			f.local.filter("-A FORWARD -j FLANNEL-FWD", "-A FORWARD -m set --match-set bad src -j DROP")
		}, "", "", "", "", ""},
		{"set, decided after", func(f *facts) {
			f.local.filter("-A FORWARD -m set --match-set bad src -j DROP", "-A FORWARD -i flannel.1 -j DROP")
		}, aboutForward, "-i flannel.1 -j DROP", "", "", aboutBridge},
		{"rules that nobody can list", func(f *facts) { f.local.legacy = errors.New("iptables-legacy-save: no answer in time") }, "", "", "",
			"", strings.Join([]string{aboutForward, aboutInput, aboutOutput, aboutNAT, aboutBridge}, " ")},
		{"tunnel port", func(f *facts) {
			f.local.filter("-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT", "-A INPUT -p icmp -j ACCEPT", "-A INPUT -j REJECT --reject-with icmp-host-prohibited")
		}, aboutInput, `tunnel packets from 192.0.2.8 are dropped by rule "-A INPUT -j REJECT --reject-with icmp-host-prohibited" in iptables-legacy table filter, and one other`,
			"iptables-legacy -t filter -I INPUT -p udp --dport 8472 -j ACCEPT", "", ""},
		{"one peer", func(f *facts) { f.local.filter("-A INPUT -s 192.0.2.9/32 -j DROP") }, aboutInput, "tunnel packets from 192.0.2.9 are dropped", "8472", "", ""},
		{"to peers", func(f *facts) {
			f.local.rules = strings.Replace(f.local.rules, ":INPUT ", ":OUTPUT DROP [0:0]\n:INPUT ", 1)
		}, aboutOutput, "tunnel packets to 192.0.2.8 are dropped by the policy of chain OUTPUT", "-I OUTPUT -p udp --dport 8472", "", ""},
		{"ufw", func(f *facts) {
			f.local.files.UFW = true
			f.local.rules = strings.Replace(f.local.rules, ":INPUT ACCEPT", ":ufw-before-input - [0:0]\n:INPUT DROP", 1)
			f.local.filter("-A INPUT -j ufw-before-input")
		}, aboutInput, "policy of chain INPUT", "ufw allow 8472/udp", "FL-FIREWALL-TOOL", ""},
		{"docker masquerades", func(f *facts) {
			f.local.rules = strings.Replace(ourRules, "-A POSTROUTING", "-A POSTROUTING -s 10.42.7.0/24 ! -o docker0 -j MASQUERADE\n-A POSTROUTING", 1)
		}, aboutNAT, `get another source address from rule "-A POSTROUTING -s 10.42.7.0/24 ! -o docker0 -j MASQUERADE"`, "iptables-legacy -t nat -I POSTROUTING -s 10.42.0.0/16 -d 10.42.0.0/16 -j ACCEPT", "", ""},
		{"nobody masquerades", func(f *facts) {
			f.env.IPMasq = true
			f.local.rules = strings.ReplaceAll(ourRules, "-A POSTROUTING -s 10.42.0.0/16 ! -d", "-A POSTROUTING -s 10.43.0.0/16 ! -d")
		}, aboutOutside, "are not masqueraded", "restart flanneld", "", ""},
		{"one bridge", func(f *facts) { f.local.filter("-A FORWARD -i docker0 -o docker0 -j DROP") }, aboutBridge, "packets between containers of this host are dropped", "FORWARD", "", ""},
		{"one bridge without filter", func(f *facts) {
			f.local.sysctls[bridgeFilter] = "0"
			f.local.filter("-A FORWARD -i docker0 -o docker0 -j DROP")
		}, "", "", "", "", ""},
		{"no forwarding", func(f *facts) { f.local.sysctls["net/ipv4/ip_forward"] = "0" }, "FL-IP-FORWARD", "IP forwarding is off", "sysctl -w net.ipv4.ip_forward=1", "", ""},
		{"forwarding is not visible", func(f *facts) { delete(f.local.sysctls, "net/ipv4/ip_forward") }, "", "", "", "", "FL-IP-FORWARD"},
		{"strict on all", func(f *facts) {
			f.local.sysctls["net/ipv4/conf/all/rp_filter"] = "1"
			f.local.sysctls["net/ipv4/conf/flannel.1/rp_filter"] = "0"
		}, "FL-RP-FILTER", "from outside the network", "rp_filter=2", "", ""},
		{"loose on the device wins", func(f *facts) {
			f.local.sysctls["net/ipv4/conf/all/rp_filter"] = "1"
			f.local.sysctls["net/ipv4/conf/flannel.1/rp_filter"] = "2"
		}, "", "", "", "", ""},
		{"conntrack", func(f *facts) { f.local.sysctls["net/netfilter/nf_conntrack_count"] = "95" }, "FL-CONNTRACK-FULL", "nearly full", "nf_conntrack_max=200", "", ""},
		{"many neighbours", func(f *facts) {
			f.inventory.Routes = append(f.inventory.Routes, host.Route{Dst: prefix("192.0.0.0/8"), Iface: "eth0"})
			f.overlay.Peers = manyPeers(1100)
		}, "FL-NEIGH-LIMIT", "1100 peers need 1100 entries, and gc_thresh3 is 1024", "gc_thresh3=4400", "", ""},
		{"many neighbours behind a router", func(f *facts) { f.overlay.Peers = manyPeers(1100) }, "", "", "", "", ""},
		{"many neighbours on an old kernel", func(f *facts) { f.overlay.Peers, f.local.release = manyPeers(1100), "4.19.0-27-amd64" }, "FL-NEIGH-LIMIT", "1100 peers", "", "", ""},
		{"many neighbours in a container", func(f *facts) {
			f.inventory.Routes = append(f.inventory.Routes, host.Route{Dst: prefix("192.0.0.0/8"), Iface: "eth0"})
			f.overlay.Peers = manyPeers(1100)
			delete(f.local.sysctls, neighLimit)
		}, "", "", "", "", "FL-NEIGH-LIMIT"},
		{"port", func(f *facts) { f.local.port = []kernel.Holder{{PID: 4711, UID: 1000, Program: "game"}} }, "FL-PORT-TAKEN", "game (pid 4711, uid 1000) has UDP port 8472", "kill 4711", "", ""},
		{"port of somebody unseen", func(f *facts) { f.local.port = []kernel.Holder{{UID: 1000}} }, "FL-PORT-TAKEN", "a process of uid 1000", "ss -ulpn", "", ""},
		{"port of the daemon", func(f *facts) {
			f.overlay.Backend, f.overlay.Device = "udp", "flannel0"
			f.local.device.Links["flannel0"] = dataplane.Link{Kind: dataplane.KindTUN, MTU: 1450, Up: true}
			f.local.port = []kernel.Holder{{PID: 7}}
		}, "", "", "", "", ""},
		{"docker0 elsewhere", func(f *facts) { f.local.surroundings.Links[1].Addrs = prefixes("172.17.0.1/16") }, "FL-DOCKER-SUBNET", "docker bridge is not on this host's subnet", "systemctl restart docker", "", ""},
		{"docker0 of another host", func(f *facts) { f.local.surroundings.Links[1].Addrs = prefixes("10.42.8.1/24") }, "FL-DOCKER-SUBNET", "another host's subnet", "", "", ""},
		{"MTU of containers", func(f *facts) { f.local.bridge.Ports[0].MTU = 1500 }, "FL-BRIDGE-MTU", "MTU 1500 (veth1), and the overlay carries 1450", "docker", "", ""},
		{"MTU without containers", func(f *facts) { f.local.bridge = Bridge{Port: kernel.Port{Name: "docker0", MTU: 1500}} }, "", "", "", "", "FL-BRIDGE-MTU"},
		{"no bridge", func(f *facts) { f.local.bridge = Bridge{} }, "", "", "", "", ""},
		{"foreign route", func(f *facts) {
			f.local.surroundings.Paths = append(f.local.surroundings.Paths, host.Path{Route: host.Route{Dst: prefix("10.42.8.0/25"), Iface: "tun9"}})
		}, "FL-ROUTE-FOREIGN", "diverts packets for a peer's containers", "ip route del 10.42.8.0/25 dev tun9", "", ""},
		{"no module", func(f *facts) {
			delete(f.local.device.Links, "flannel.1")
			f.local.files.Modules = []string{"nf_tables"}
			f.env.MTU, f.local.bridge = 0, Bridge{}
		}, "FL-MODULES", "no module vxlan", "modprobe vxlan", "", ""},
		{"no list of modules", func(f *facts) {
			delete(f.local.device.Links, "flannel.1")
			f.local.files.Modules, f.local.files.NoList = nil, errors.New("no such file")
			f.env.MTU, f.local.bridge = 0, Bridge{}
		}, "", "", "", "", "FL-MODULES"},
		{"MAC", func(f *facts) {
			l := f.local.device.Links["flannel.1"]
			l.MAC[5] = 9
			f.local.device.Links["flannel.1"] = l
		}, "FL-DEVICE-CHANGED", "its MAC is 02:00:00:00:00:09, and peers send to " + flannelMAC, "restart flanneld", "", ""},
		{"attributes", func(f *facts) {
			f.local.device.Links["flannel.1"] = dataplane.Link{Kind: dataplane.KindVXLAN, VNI: 1, Port: 4789, MAC: f.local.device.Links["flannel.1"].MAC, MTU: 1500}
		}, "FL-DEVICE-CHANGED", "it is down, its MTU is 1500 and not 1450, its port is 4789 and not 8472", "", "", ""},
		{"device is gone", func(f *facts) { delete(f.local.device.Links, "flannel.1") }, "FL-DEVICE-CHANGED", "does not exist", "", "", ""},
		{"old kernel", func(f *facts) { f.local.release = "4.19.90" }, "", "", "", "", ""},
		{"old kernel, tunnel is masqueraded", func(f *facts) {
			f.local.release = "5.3.18"
			f.local.rules = strings.Replace(ourRules, "-A POSTROUTING", "-A POSTROUTING -o eth0 -p udp -j MASQUERADE\n-A POSTROUTING", 1)
		}, "", "", "", "", "FL-CHECKSUM"},
		{"old kernel, tunnel is masqueraded with random ports", func(f *facts) {
			f.local.release = "5.3.18"
			f.local.rules = strings.Replace(ourRules, "-A POSTROUTING", "-A POSTROUTING -o eth0 -p udp -j MASQUERADE --random-fully\n-A POSTROUTING", 1)
		}, "FL-CHECKSUM", "5.3.18 writes wrong checksums", "ethtool -K flannel.1 tx-checksum-ip-generic off", "", ""},
		{"old kernel of a distribution", func(f *facts) {
			f.local.release = "4.18.0-553.el8"
			f.local.rules = strings.Replace(ourRules, "-A POSTROUTING", "-A POSTROUTING -o eth0 -p udp -j MASQUERADE --random-fully\n-A POSTROUTING", 1)
		}, "", "", "", "", "FL-CHECKSUM"},
	} {
		f := healthy()
		x.change(f)
		r := Run(t.Context(), hostAreas(), f.inputs(), nil)
		var unknown []string
		for i, c := range r.Findings {
			switch {
			case c.Status == Unknown:
				unknown = append(unknown, c.ID)
			case c.Status == OK:
			case c.ID == x.id && (i > 0 || !strings.Contains(c.Summary, x.summary) || !strings.Contains(c.Remedy, x.remedy) || c.Remedy == ""):
				t.Errorf("%s: place %d: %q, %q, want %q, %q", x.name, i, c.Summary, c.Remedy, x.summary, x.remedy)
			case c.ID != x.id && !strings.Contains(x.also, c.ID):
				t.Errorf("%s: %s fails: %s", x.name, c.ID, c.Summary)
			}
			if c.Status == Unknown && !strings.Contains(x.unknown, c.ID) {
				t.Errorf("%s: %s is unknown: %s", x.name, c.ID, c.Summary)
			}
		}
		if x.id != "" && (r.Findings[0].ID != x.id || r.Findings[0].Status != Fail) {
			t.Errorf("%s: first is %s %s: %s", x.name, r.Findings[0].ID, r.Findings[0].Status, r.Findings[0].Summary)
		}
		for _, id := range strings.Fields(x.unknown) {
			if !slices.Contains(unknown, id) {
				t.Errorf("%s: %s is not unknown", x.name, id)
			}
		}
	}
}

func prefixes(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		all = append(all, prefix(s))
	}
	return all
}

func manyPeers(n int) (all []lease.Lease) {
	for i := range n {
		all = append(all, lease.Lease{
			Subnets: lease.SubnetsOf(prefix(fmt.Sprintf("10.42.%d.%d/28", i/16, i%16*16))),
			Attrs:   lease.Attrs{PublicIP: addr(fmt.Sprintf("192.1.%d.%d", i/250, i%250+1)), BackendType: "vxlan"},
		})
	}
	return all
}

// TestManagersOfDevices reads the state files of other programs as they write them.
func TestManagersOfDevices(t *testing.T) {
	const file = "NETWORK_FILE=/usr/lib/systemd/network/99-default.network\n"
	for state, want := range map[string]Status{
		"ADMIN_STATE=unmanaged\nOPER_STATE=routable\n":               OK,
		"ADMIN_STATE=unmanaged\n" + file:                             OK,
		"# This is private data.\nADMIN_STATE=configured\n" + file:   Fail,
		"ADMIN_STATE=configuring\nOPER_STATE=off\n" + file:           Fail,
		"ADMIN_STATE=pending\nOPER_STATE=off\nNETWORK_FILE=\nMTU=\n": OK,
	} {
		if r := managedByNetworkd("flannel.1", []byte(state), nil); r.Status != want {
			t.Errorf("%q: %+v", state, r)
		}
	}
	if r := managedByNetworkd("flannel.1", nil, errors.New("no")); r.Status != Unknown {
		t.Errorf("unreadable: %+v", r)
	}
	const managed = "[device]\nmanaged=true\nperm-hw-addr-fake=02:E5:3E:A9:F3:AA\nconnection-uuid=fae68c3b-c74b-44e3-b01e-bdd4bd877862\nnm-owned=false\n"
	for _, c := range []struct {
		state, said string
		err         error
		want        Status
	}{
		{"[device]\nperm-hw-addr-fake=02:E5:3E:A9:F3:AA\nnm-owned=false\n", "", nil, OK}, // as NetworkManager 1.42 and 1.52 write it
		{"[device]\nmanaged=false\n", "", nil, OK},
		{managed, "100 (connected (externally))\nflannel.1\n", nil, OK},
		{managed, "100 (connected)\nflannel.1\n", nil, Fail},
		{managed, "70 (connecting (getting IP configuration))\nflannel.1\n", nil, Fail},
		{managed, "30 (disconnected)\n\n", nil, OK},
		{managed, "10 (unmanaged)\n\n", nil, OK},
		{managed, "", errors.New("nmcli: no answer in time"), Unknown},
	} {
		if r := managedByNM("flannel.1", []byte(c.state), nil, func() (string, error) { return c.said, c.err }); r.Status != c.want {
			t.Errorf("%q, %q: %+v", c.state, c.said, r)
		} else if c.want == Fail && (!strings.Contains(r.Summary, `connection "flannel.1",`) || !strings.Contains(r.Remedy, "unmanaged-devices+=")) { // with "=", it would replace the lists of other files
			t.Errorf("%s, remedy %q", r.Summary, r.Remedy)
		}
	}
	if r := managedByNM("flannel.1", nil, errors.New("no"), nil); r.Status != Unknown {
		t.Errorf("unreadable: %+v", r)
	}
}

// TestKernelsWithWrongChecksums: distributions add fixes without changing the version.
func TestKernelsWithWrongChecksums(t *testing.T) {
	for release, want := range map[string][2]bool{
		"6.1.0-18-amd64": {true, true}, "5.7.0": {true, true}, "5.6.13": {true, true}, "5.6.12": {false, true}, "5.4.41-x": {true, true},
		"5.4.0-42-generic": {false, false}, "4.19.123": {true, true}, "4.19.122": {false, true}, "4.18.0-553.el8": {false, false},
		"4.14.181": {true, true}, "4.15.1": {false, true}, "3.10.0-1160.el7": {false, false}, "5.10": {true, true}, "odd": {false, false}, "": {false, false},
	} {
		if fixed, certain := checksumFixed(release); fixed != want[0] || certain != want[1] {
			t.Errorf("%q: %v, %v", release, fixed, certain)
		}
	}
}

func TestModulesInLists(t *testing.T) {
	got := modulesIn([]byte("vxlan 155648 0 - Live 0x0\nip_tables_x 1 0\n"), []byte("kernel/drivers/net/tun.ko\nkernel/x/not_nf_tables.ko\n"), []byte("kernel/net/ipv4/netfilter/ip_tables.ko.xz: kernel/net/netfilter/x_tables.ko.xz\n"))
	if strings.Join(got, " ") != "vxlan tun ip_tables" {
		t.Errorf("%v", got)
	}
}

func TestRuleWithHandle(t *testing.T) {
	const listing = "table inet t {\n\tchain c { # handle 1\n\t\ttype filter hook input priority filter; policy accept;\n\t\tudp dport 8472 counter packets 1 bytes 2 drop # handle 12\n\t}\n}\n"
	for handle, want := range map[uint64]string{12: "udp dport 8472 counter packets 1 bytes 2 drop", 1: "", 2: ""} {
		if got := ruleWithHandle(listing, handle); got != want {
			t.Errorf("%d: %q", handle, got)
		}
	}
}

func addrs(list ...string) (all []netip.Addr) {
	for _, s := range list {
		all = append(all, addr(s))
	}
	return all
}

// TestNothingFailsForLackOfLocalInput: without one of the inputs of this host, a check is unknown or
// fine.
func TestNothingFailsForLackOfLocalInput(t *testing.T) {
	for i := range reflect.TypeFor[hostInputs]().NumField() {
		in := healthy().inputs()
		reflect.ValueOf(&in.hostInputs).Elem().Field(i).SetZero()
		for _, f := range Run(t.Context(), Checks(), in, nil).Findings {
			if f.Status == Fail {
				t.Errorf("without input %d: %s fails: %s", i, f.ID, f.Summary)
			}
		}
	}
}

// FuzzFiles reads files of other programs, which may contain anything.
func FuzzFiles(f *testing.F) {
	f.Add("ADMIN_STATE=configured\nNETWORK_FILE=/x\nmanaged=true\nconnection-uuid=a\n", "5.4.0-42-generic", uint64(12))
	f.Add("vxlan 1 0 - Live 0x0\nkernel/net/tun.ko.xz: a b\nudp drop # handle 12\n", "6", uint64(1))
	f.Fuzz(func(t *testing.T, text, release string, handle uint64) {
		managedByNetworkd("flannel.1", []byte(text), nil)
		if r := managedByNM("flannel.1", []byte(text), nil, func() (string, error) { return text, nil }); r.Summary == "" {
			t.Errorf("%q: %+v", text, r)
		}
		if found := modulesIn([]byte(text), []byte(text), []byte(text)); len(found) > len(wantedModules()) {
			t.Errorf("%q: %v", text, found)
		}
		if rule := ruleWithHandle(text, handle); rule != "" && !strings.Contains(text, rule) {
			t.Errorf("%q: %q", text, rule)
		}
		if fixed, certain := checksumFixed(release); fixed && !certain {
			t.Errorf("%q", release)
		}
	})
}
