package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

const lockTable = "ip flannel-lock-10.42.0.0/16"

// lockHolds fails unless a host's lock has exactly these addresses.
func (c *cluster) lockHolds(h *lab.Host, table string, want ...netip.Addr) error {
	out, err := c.try(h, "nft -n list set "+table+" peers")
	if err != nil {
		return errors.New(out)
	}
	_, list, _ := strings.Cut(out, "elements = {")
	list, _, _ = strings.Cut(list, "}")
	got := strings.FieldsFunc(list, func(r rune) bool { return strings.ContainsRune(" ,\t\n", r) })
	if len(got) != len(want) {
		return fmt.Errorf("%d addresses, want %d: %v", len(got), len(want), got)
	}
	for _, a := range want {
		if !strings.Contains(" "+strings.Join(got, " ")+" ", " "+a.String()+" ") {
			return fmt.Errorf("%s is not there: %v", a, got)
		}
	}
	return nil
}

// lockDropped is how many packets a host's lock has dropped.
func (c *cluster) lockDropped(h *lab.Host) (n int) {
	c.t.Helper()
	_, counter, _ := strings.Cut(c.sh(h, "nft list table "+lockTable), "counter packets ")
	fmt.Sscan(counter, &n)
	return n
}

// TestUnderlayLock: only hosts with a lease reach the tunnel port, with any keeper of the other
// rules. A new host is admitted before its route exists, a removed one is not any more, and damage
// is repaired.
func TestUnderlayLock(t *testing.T) {
	t.Parallel()
	need(t, "nft", "iptables-nft", "iptables-legacy")
	for _, k := range []struct{ name, config, iptables string }{
		keepers[0], keepers[2], keepers[3],
		{"udp", `{"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}`, "legacy"},
	} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, lab.Options{Hosts: 4})
			stranger, last := c.Hosts[3], c.Hosts[2]
			c.put("config", k.config)
			path := "PATH=" + variantPath(t, k.iptables)
			start := func(h *lab.Host, args ...string) *lab.Process {
				t.Helper()
				return c.startCommand(h, lab.Command{Args: append([]string{"-ip-masq=true"}, args...), Env: []string{path}})
			}
			h := c.Hosts[0]
			first := start(h, "-underlay-lock")
			start(c.Hosts[1], "-underlay-lock")
			c.connect(c.Hosts[:2]...)
			c.within(3*time.Second, "the peer is let in", func() error { return c.lockHolds(h, lockTable, c.Hosts[1].Addr) })

			victim, other := c.containers[0], c.containers[1]
			received := c.listener(&victim.Endpoint, 7777)
			packet, port := inner(other.Addr, victim.Addr, 7777, "forged"), uint16(8285)
			if k.name != "udp" {
				packet, port = inVXLAN(1, c.iface(h, "flannel.1").HardwareAddr, packet), 8472
			}
			before := c.lockDropped(h)
			for range 3 {
				_, err := c.dial(stranger, netip.AddrPortFrom(h.Addr, port)).Write(packet)
				c.must(err)
			}
			if got := received(200 * time.Millisecond); got != "" {
				t.Errorf("received %q from a stranger", got)
			}
			c.within(3*time.Second, "it is counted", func() error {
				if n := c.lockDropped(h) - before; n != 3 {
					return fmt.Errorf("%d packets", n)
				}
				return nil
			})

			// A network of docker's own, masqueraded by docker, on a peer.
			sender := c.Hosts[1]
			file := filepath.Join(c.Dir, "own.env")
			c.must(os.WriteFile(file, []byte("FLANNEL_NETWORK=172.18.0.0/24\nFLANNEL_SUBNET=172.18.0.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"), 0o644))
			foreign := c.containerTo(sender, "docker9", file)
			c.sh(sender, `echo 'table ip docker9 { chain post { type nat hook postrouting priority 100; ip saddr 172.18.0.0/24 oifname != "docker9" masquerade; }; }' | nft -f -`)
			reached := c.listener(&h.Endpoint, 9999)
			outside := c.dialFrom(&foreign.Endpoint, 0, netip.AddrPortFrom(h.Addr, 9999))
			_, err := outside.Write([]byte("out"))
			c.must(err)
			if got := reached(2 * time.Second); got != "out" {
				t.Errorf("to another port: %q", got)
			}
			for _, from := range []int{0, int(port)} {
				_, err := c.dialFrom(&foreign.Endpoint, from, netip.AddrPortFrom(h.Addr, port)).Write(packet)
				c.must(err)
				if got := received(150 * time.Millisecond); got != "" {
					t.Errorf("received %q from a network of docker's own", got)
				}
			}

			p := start(last)
			joined := c.container(last)
			if _, err := victim.WaitPing(c.ctx, joined.Addr); err != nil {
				t.Error(err)
			}
			c.must(c.lockHolds(h, lockTable, c.Hosts[1].Addr, last.Addr))

			ping, err := victim.StartPinger(other.Addr, 5*time.Millisecond)
			c.must(err)
			for _, damage := range []string{"flush set " + lockTable + " peers", "delete table " + lockTable, "insert rule " + lockTable + " input drop",
				"add element " + lockTable + " peers { 203.0.113.9 }"} {
				c.sh(h, "nft '"+damage+"'")
				c.within(5*time.Second, damage+": it is right again", func() error {
					if rules := c.sh(h, "nft list table "+lockTable+" || true"); strings.Contains(rules, "\t\tdrop\n") {
						return errors.New(rules)
					}
					return c.lockHolds(h, lockTable, c.Hosts[1].Addr, last.Addr)
				})
			}
			if s := ping.Stop(); s.Outage > 2*time.Second {
				t.Errorf("an outage of %v", s.Outage)
			}
			c.waitAllPairs()

			key, _ := c.lease(last)
			c.stop(p)
			c.must(c.Etcd.Delete(c.ctx, key))
			c.within(10*time.Second, "who has left is not let in", func() error { return c.lockHolds(h, lockTable, c.Hosts[1].Addr) })

			if n := lines(first, "failed to sync") + lines(first, "drops packets to the tunnel port") + lines(first, "keeps undoing"); n > 0 {
				t.Errorf("%d complaints:\n%s", n, first.Logs())
			}
			c.stop(first)
			c.must(c.lockHolds(h, lockTable, c.Hosts[1].Addr))
			first = start(h, "-underlay-lock")
			c.said(first, 0, "repaired underlay lock")
			c.stop(first)
			first = start(h)
			c.within(5*time.Second, "without the flag the lock is gone", func() error {
				if out, err := c.try(h, "nft list table "+lockTable); err == nil {
					return errors.New(out)
				}
				return nil
			})
			c.said(first, 1, "removed underlay lock")
		})
	}
}

// TestLocksOfTwoNetworks: two VXLAN networks of a host share a port, and the lock of one does not
// drop what the other's hosts send.
func TestLocksOfTwoNetworks(t *testing.T) {
	t.Parallel()
	need(t, "nft")
	c := newCluster(t, lab.Options{Hosts: 3})
	h := c.Hosts[0]
	c.put("config", vxlanConfig)
	second := c.network("/second", `{"Network":"10.43.0.0/16","Backend":{"Type":"vxlan","VNI":2}}`)
	for _, on := range c.Hosts[:2] {
		c.start(on, "-underlay-lock")
	}
	var ends []*lab.Container
	for _, on := range []*lab.Host{h, c.Hosts[2]} { // the third host is in the second network alone
		c.must(second.start(on, nil).WaitReady(c.ctx))
		k := c.containerTo(on, "docker1", second.file(on))
		ends = append(ends, k)
	}
	if _, err := ends[0].WaitPing(c.ctx, ends[1].Addr); err != nil {
		t.Error(err)
	}
	if n := c.lockDropped(h); n != 0 {
		t.Errorf("%d packets dropped", n)
	}
	c.must(c.lockHolds(h, lockTable, c.Hosts[1].Addr))
	if _, err := c.try(h, "nft list table ip flannel-lock-10.43.0.0/16"); err == nil {
		t.Error("the second network is locked")
	}
	// And cleanup takes the lock away.
	c.stop(h.Flanneld())
	if code, said := c.cleanup(h, "-subnet-file="+h.SubnetFile); code != 0 || !strings.Contains(said, "nft delete table "+lockTable+"\n") {
		t.Errorf("exit code %d: %s", code, said)
	}
	if out, err := c.try(h, "nft list table "+lockTable); err == nil {
		t.Error(out)
	}
}

// TestLockLetsPeersInBeforeTheirRoute: among many, a peer that joins is in the set when its
// entries are in the kernel.
func TestLockLetsPeersInBeforeTheirRoute(t *testing.T) {
	t.Parallel()
	need(t, "nft")
	c, h := oneHost(t, upperConfig)
	c.must(c.StartAll(c.ctx, "-underlay-lock"))
	for i := range 40 {
		ip := fmt.Sprintf("203.0.113.%d", i+1)
		c.phantom(fmt.Sprintf("10.42.%d.0-24", i+1), ip, fmt.Sprintf("0e:00:00:00:00:%02x", i+1))
		for begun := time.Now(); time.Since(begun) < 5*time.Second; {
			if out, err := c.try(h, fmt.Sprintf("ip route show 10.42.%d.0/24", i+1)); err == nil && strings.TrimSpace(out) != "" {
				break
			}
		}
		if out, err := c.try(h, "nft get element "+lockTable+" peers { "+ip+" }"); err != nil {
			t.Errorf("peer %d: %s", i, out)
		}
	}
	c.said(h.Flanneld(), 0, "repaired")
}
