package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestNewUplinkAddress: a host whose uplink gets another address, or is replaced
// by another device, keeps its subnet, and its peers follow.
func TestNewUplinkAddress(t *testing.T) {
	eachNewAddress(t, func(c *cluster, change string) { c.sh(c.Hosts[0], change) })
}

// TestNewUplinkAddressWhileAway: the same for a host whose flanneld is killed before
// it can follow, with its device deleted and not made again yet: the next one finds
// its lease at an address, and with a MAC, that are not the host's.
func TestNewUplinkAddressWhileAway(t *testing.T) {
	eachNewAddress(t, func(c *cluster, change string) {
		h := c.Hosts[0]
		c.must(h.Flanneld().Pause())
		c.sh(h, change)
		c.must(h.Flanneld().Kill(c.ctx))
		c.sh(h, "ip link del flannel.1 2>/dev/null || true")
		_, err := h.Start()
		c.must(err)
	})
}

// eachNewAddress changes the uplink's address of the first of three hosts in each
// way and with each backend that can follow it.
func eachNewAddress(t *testing.T, change func(c *cluster, command string)) {
	for _, backend := range []string{"vxlan", "udp", "host-gw"} {
		t.Run(backend, func(t *testing.T) {
			need(t, "ip")
			c := startCluster(t, 3, fmt.Sprintf(`{"Network":"10.42.0.0/16","Backend":{"Type":"%s"}}`, backend))
			h := c.Hosts[0]
			key, before := c.lease(h)
			gateway := strings.Fields(c.sh(h, "ip route show default"))[2]
			for i, command := range []string{
				// As DHCP does.
				"ip -4 addr flush dev eth0 && ip addr add %s/22 dev eth0 && ip route replace default via %s dev eth0",
				// Another device: the kernel has removed address and routes.
				"ip link set eth0 down && ip link set eth0 name eth7 && ip addr flush dev eth7 && ip addr add %s/22 dev eth7 && ip link set eth7 up && ip route replace default via %s dev eth7",
			} {
				addr := fmt.Sprintf("172.31.201.%d", 77+i)
				start := time.Now()
				change(c, fmt.Sprintf(command, addr, gateway))
				c.within(5*time.Second, "the lease follows", func() error {
					e, err := c.Etcd.Get(c.ctx, key)
					if err == nil && !strings.Contains(e.Value, `"`+addr+`"`) {
						err = fmt.Errorf("it says %s", e.Value)
					}
					return err
				})
				if _, now := c.lease(h); data(now.Value) != data(before.Value) {
					t.Errorf("the backend's data was %s, is %s", before.Value, now.Value)
				}
				c.waitAllPairs()
				t.Logf("followed after %v", time.Since(start).Round(time.Millisecond))
			}
			if n := logged(h, "another subnet") + logged(h, "taking a new one"); n != 0 || c.subnet(h).String() != strings.ReplaceAll(key[strings.LastIndex(key, "/")+1:], "-", "/") {
				t.Errorf("the subnet is %s, the lease was %s", c.subnet(h), key)
			}
		})
	}
}

// data is what a lease says beside its address.
func data(value string) string {
	_, rest, _ := strings.Cut(value, ",")
	return rest
}
