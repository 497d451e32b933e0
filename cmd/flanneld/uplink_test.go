package main

import (
	"flanneld/pkg/lab/logs"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// TestNewUplinkAddress: a host whose uplink gets another address, or is replaced
// by another device, keeps its subnet, and its peers follow.
func TestNewUplinkAddress(t *testing.T) {
	t.Parallel()
	eachNewAddress(t, func(c *cluster, change string) { c.sh(c.Hosts[0], change) })
}

// TestNewUplinkAddressWhileAway is the same for a host whose flanneld is killed before it can
// follow, with its device deleted: the next one finds its lease with an address and a MAC that are
// no longer the host's.
func TestNewUplinkAddressWhileAway(t *testing.T) {
	t.Parallel()
	eachNewAddress(t, func(c *cluster, change string) {
		h := c.Hosts[0]
		c.must(h.Flanneld().Pause())
		c.sh(h, change)
		c.must(h.Flanneld().Kill(c.ctx))
		c.sh(h, "ip link del flannel.1 2>/dev/null || true")
		c.launch(h)
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
			if n := logged(h, "another subnet") + logged(h, "leasing a new"); n != 0 || c.subnet(h).String() != strings.ReplaceAll(key[strings.LastIndex(key, "/")+1:], "-", "/") {
				t.Errorf("the subnet is %s, the lease was %s", c.subnet(h), key)
			}
		})
	}
}

// data returns the backend data of a lease.
func data(value string) string {
	_, rest, _ := strings.Cut(value, ",")
	return rest
}

// absences are ways in which an uplink disappears and comes back unchanged: commands on the host,
// or on the fabric if they begin with "fabric: ". $ADDR, $GW and $NS are the host's.
var absences = []struct {
	name, goes, comes string
	long              bool // tried for more than 3 s, too
}{
	{"link", "ip link set eth0 down", "ip link set eth0 up && ip route replace default via $GW dev eth0", true},
	{"carrier", "fabric: ip link set h1 down", "fabric: ip link set h1 up", true},
	{"address", "ip -4 addr flush dev eth0", "ip addr add $ADDR/22 dev eth0 && ip route replace default via $GW dev eth0", false},
	{"route", "ip route del default via $GW dev eth0", "ip route replace default via $GW dev eth0", false},
	{"device", "ip link del eth0", "fabric: ip link add h1 mtu 1500 master rack1 type veth peer name eth0 netns $NS && ip link set h1 up && " +
		"ip -n $NS link set eth0 up && ip -n $NS addr add $ADDR/22 dev eth0 && ip -n $NS route replace default via $GW dev eth0", true},
}

// TestUplinkComesBack: an uplink that is down for less than 3 s stays the uplink, though there is
// another default route. After a longer time it becomes the uplink again once it is complete, also
// if there was no alternative.
func TestUplinkComesBack(t *testing.T) {
	t.Parallel() // it waits most of the time
	for _, alone := range []bool{false, true} {
		t.Run(map[bool]string{false: "two networks", true: "one network"}[alone], func(t *testing.T) {
			t.Parallel()
			need(t, "ip")
			c := newCluster(t, lab.Options{Hosts: 2})
			c.put("config", vxlanConfig)
			h := c.Hosts[0]
			gateway := strings.Fields(c.sh(h, "ip route show default"))[2]
			if !alone {
				c.sh(h, "ip link add mgmt type veth peer name mgmt-far && ip link set mgmt-far up && ip link set mgmt up && "+
					"ip addr add 192.168.77.2/24 dev mgmt && ip route add default via 192.168.77.1 dev mgmt metric 600")
			}
			c.must(c.StartAll(c.ctx, "-v=1"))
			c.connect()
			words := strings.NewReplacer("$ADDR", h.Addr.String(), "$GW", gateway, "$NS", h.NS.Name)
			do := func(command string) {
				t.Helper()
				if command, onFabric := strings.CutPrefix(words.Replace(command), "fabric: "); onFabric {
					c.must(c.inFabric(command))
				} else {
					c.sh(h, command)
				}
			}
			var want []string
			for _, a := range absences {
				do(a.goes)
				do(a.comes)
				c.waitAllPairs()
			}
			for _, a := range absences {
				if !a.long {
					continue
				}
				before := len(h.Flanneld().Logs())
				do(a.goes)
				if !alone {
					want = append(want, "mgmt", "eth0")
					c.within(30*time.Second, a.name+": another uplink is chosen", func() error { return chosen(h, want[:len(want)-1]) })
					// By the times in its log: on a busy machine, the commands take their time.
					log := h.Flanneld().Logs()[before:]
					lost, err := logs.Time(logs.Find(log, "kernel events", "uplink")[0])
					c.must(err)
					changed, err := logs.Time(logs.Find(log, "uplink changed")[0])
					c.must(err)
					if took := changed.Sub(lost); took > 5*time.Second {
						t.Errorf("%s: another uplink is chosen after %v", a.name, took)
					}
				}
				do(a.comes)
				c.within(5*time.Second, a.name+": the former one is taken back", func() error { return chosen(h, want) })
				c.waitAllPairs()
			}
			if _, e := c.lease(h); !strings.Contains(e.Value, `"`+h.Addr.String()+`"`) {
				t.Errorf("the lease says %s", e.Value)
			}
			c.must(chosen(h, want))
		})
	}
}

// chosen checks which interfaces were chosen after eth0, in order.
func chosen(h *lab.Host, want []string) error {
	var got []string
	for line := range strings.Lines(h.Flanneld().Logs()) {
		if before, after, ok := strings.Cut(line, " iface="); ok && (strings.Contains(before, `msg="chose uplink"`) || strings.Contains(before, `msg="uplink changed"`)) {
			name, _, _ := strings.Cut(after, " ")
			got = append(got, name)
		}
	}
	if want = append([]string{"eth0"}, want...); !slices.Equal(got, want) {
		return fmt.Errorf("%v were chosen, want %v", got, want)
	}
	return nil
}

// TestUplinkIsNeverTheOverlay: with an expression that fits the overlay's devices as well, an
// uplink without address is waited for.
func TestUplinkIsNeverTheOverlay(t *testing.T) {
	t.Parallel()
	need(t, "ip")
	c := newCluster(t, lab.Options{Hosts: 2, Underlay: netip.MustParsePrefix("10.99.0.0/16")})
	c.join(vxlanConfig, `-iface-regex=^10\.`)
	h := c.Hosts[0]
	c.sh(h, "ip -4 addr flush dev eth0")
	c.says(h.Flanneld(), "uplink is unusable", "no address or name matches")
	// The next run has docker0 and flannel.1 from the start.
	c.must(h.Flanneld().Kill(c.ctx))
	p := c.launch(h, `-iface-regex=^10\.`)
	if code, err := p.Wait(c.ctx); err != nil || code != 1 {
		t.Errorf("without an uplink, it ends with %d, %v", code, err)
	}
	c.sh(h, "ip addr add "+h.Addr.String()+"/16 dev eth0")
	c.launch(h, `-iface-regex=^10\.`)
	c.waitAllPairs()
	if _, e := c.lease(h); !strings.Contains(e.Value, `"`+h.Addr.String()+`"`) {
		t.Errorf("the lease says %s", e.Value)
	}
}
