package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab/netns"
)

// TestDoctorOnMachine makes the faults that concern the whole machine, one after another. It runs on
// a machine that has nothing else to do: "make test-vm".
func TestDoctorOnMachine(t *testing.T) {
	if os.Getenv("FLANNEL_LAB_MACHINE") == "" {
		t.Skip("changes settings of the whole machine: make test-vm")
	}
	// Docker loads it; without it, that is what the doctor says.
	if out, err := exec.Command("modprobe", "br_netfilter").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, f := range machineFaults() {
		t.Run(f.name, f.run)
	}
}

// machineFaults are the faults of settings and modules that all network namespaces share.
func machineFaults() []fault {
	const limit, most = "net/netfilter/nf_conntrack_max", "net/ipv4/neigh/default/gc_thresh3"
	return []fault{
		{
			name: "no module for the backend", id: "FL-MODULES", said: []string{"no module vxlan", "modprobe vxlan"},
			also:   []string{"FL-DRIFT"},
			before: func(c *faultCluster) { c.put("config", vxlanConfig); c.hideModule("vxlan") },
			start: func(c *faultCluster) {
				for _, h := range c.Hosts {
					c.launch(h)
				}
			},
			cure: func(c *faultCluster) {
				c.sh(c.h, "mv /root/vxlan.ko* \"$(cat /root/place)\"; mv /root/modules.dep /lib/modules/*/")
			},
		},
		{
			name: "the conntrack table is full", id: "FL-CONNTRACK-FULL", also: append([]string{"FL-ETCD-DOWN", "FL-CONDITION"}, unreachable...), said: []string{"conntrack table is nearly full", "sysctl -w net.netfilter.nf_conntrack_max="},
			make: func(c *faultCluster) {
				c.sh(c.h, "iptables -I FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT; echo 600 >/proc/sys/net/netfilter/nf_conntrack_udp_timeout")
				from, to := c.container(c.h), c.container(c.peer)
				c.must(from.Do(func() error {
					for port := range 300 {
						conn, err := net.Dial("udp", netip.AddrPortFrom(to.Addr, uint16(10000+port)).String())
						if err != nil {
							return err
						}
						defer conn.Close()
						if _, err := conn.Write([]byte("x")); err != nil {
							return err
						}
					}
					return nil
				}))
				n, err := strconv.Atoi(strings.TrimSpace(c.sh(c.h, "cat /proc/sys/net/netfilter/nf_conntrack_count")))
				c.must(err)
				if n < 300 {
					c.t.Fatalf("%d connections are tracked", n)
				}
				c.setOnMachine(limit, n)
			},
			cure: func(c *faultCluster) { c.setOnMachine(limit, 65536) },
		},
		{
			// The limit is visible only in the first network namespace, so the first host moves there.
			name: "too many neighbours", id: "FL-NEIGH-LIMIT", also: unreachable, said: []string{"need 11", "gc_thresh3 is 1024", "gc_thresh3="},
			before: func(c *faultCluster) {
				c.put("config", `{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.200.0.0","Backend":{"Type":"vxlan"}}`)
				for i := range 1100 {
					c.put(fmt.Sprintf("subnets/10.%d.%d.0-24", i>>8, i&0xff), phantomValue(fmt.Sprintf("100.64.%d.%d", i>>8, i&0xff), fmt.Sprintf("0a:00:00:00:%02x:%02x", i>>8, i&0xff)))
				}
				c.setOnMachine(most, 1024)
				c.sh(c.h, "ip link set eth0 netns 1")
				c.h.NS.Close()
				var err error
				c.h.NS.Namespace, err = netns.First()
				c.must(err)
				c.sh(c.h, fmt.Sprintf("echo 1 >/proc/sys/net/ipv4/ip_forward; ip addr add %s/24 dev eth0; ip link set eth0 up; ip route add 100.64.0.0/16 dev eth0", c.h.Addr))
			},
			start: func(c *faultCluster) { c.must(c.StartAll(c.ctx, "-iface=eth0")) },
			cure:  func(c *faultCluster) { c.setOnMachine(most, 8192) },
		},
	}
}

// setOnMachine sets a sysctl of the first network namespace until the end of the test.
func (c *faultCluster) setOnMachine(name string, value int) {
	c.t.Helper()
	path := "/proc/sys/" + name
	before, err := os.ReadFile(path)
	c.must(err)
	c.must(os.WriteFile(path, []byte(strconv.Itoa(value)), 0))
	c.t.Cleanup(func() { c.must(os.WriteFile(path, before, 0)) })
}

// hideModule removes a module from the kernel and its file from where the kernel looks for it. Links
// of tests before, which are removed in the background, may still use it for a moment.
func (c *faultCluster) hideModule(name string) {
	c.t.Helper()
	c.within(time.Minute, "removal of module "+name, func() error {
		_, err := c.try(c.h, fmt.Sprintf("! grep -q '^%[1]s ' /proc/modules || modprobe -r %[1]s", name))
		return err
	})
	c.sh(c.h, fmt.Sprintf(`set -e
		cd /lib/modules/$(uname -r)
		file=$(find "$PWD" -name '%[1]s.ko*')
		dirname "$file" >/root/place
		cp modules.dep /root/modules.dep
		sed -i '/%[1]s\.ko[.xz]*:/d' modules.dep
		mv "$file" /root/`, name))
}
