package main

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// configWithin is the longest time until a new network config is noticed.
const configWithin = 65 * time.Second

// TestFullPool: all three subnets are leased: to a host, to a peer, and to a peer that has taken
// another host's subnet. That host still follows its peers, and so does one that waits for its
// first subnet. Both log what is missing, and get a subnet once the pool is larger, without a
// restart.
func TestFullPool(t *testing.T) {
	t.Parallel()
	eachStore(t, lab.Options{Hosts: 3}, func(s *stage) {
		config := func(last int) string {
			return fmt.Sprintf(`{"Network":"10.42.0.0/16","SubnetMin":"10.42.10.0","SubnetMax":"10.42.%d.0","Backend":{"Type":"vxlan"}}`, last)
		}
		s.put("config", config(12))
		h, waits := s.Hosts[0], s.Hosts[2]
		for _, h := range s.Hosts[:2] {
			s.start(h, s.args...)
		}
		free := []string{"10.42.10.0/24", "10.42.11.0/24", "10.42.12.0/24"}
		peer := free[slices.IndexFunc(free, func(p string) bool { return p != s.subnet(h).String() && p != s.subnet(s.Hosts[1]).String() })]
		const peerIP, peerMAC, movedIP, movedMAC = "203.0.113.60", "0a:00:00:00:00:60", "203.0.113.61", "0a:00:00:00:00:61"
		peerKey := "subnets/" + strings.Replace(peer, "/", "-", 1)
		s.put(peerKey, phantomValue(peerIP, peerMAC))
		s.holds(h, 3*time.Second, peer, peerIP, peerMAC)

		pid := h.Flanneld().PID()
		key, old := s.steal(h)
		s.launch(waits, s.args...)
		const line = "cannot lease a subnet, waiting for a free one"
		s.saysTimes(h.Flanneld(), 1, "level=ERROR", line, "3 subnets of length 24 (10.42.10.0 to 10.42.12.0), and 3 leases")
		s.saysTimes(waits.Flanneld(), 1, "level=ERROR", line)
		s.readyzOf(h, time.Second, http.StatusServiceUnavailable, "flanneld is not ready: another host has the subnet of this one", line, "3 leases")
		s.readyzOf(waits, time.Second, http.StatusServiceUnavailable, "flanneld is not ready yet", line, "3 leases")

		for range 5 { // at other times of the attempts to lease a subnet
			s.put(peerKey, phantomValue(movedIP, movedMAC))
			s.holds(h, 3*time.Second, peer, movedIP, movedMAC)
			s.put(peerKey, phantomValue(peerIP, peerMAC))
			s.holds(h, 3*time.Second, peer, peerIP, peerMAC)
		}

		s.put("config", config(14))
		took := s.within(configWithin, "two more subnets", func() error {
			if waits.Flanneld().ReadyAfter() == 0 || s.subnet(h) == old {
				return fmt.Errorf("%s has %s, %s says:\n%s", h.Name, s.subnet(h), waits.Name, waits.Flanneld().Logs())
			}
			e, err := s.keys.Get(s.ctx, leaseKey(s.prefix, s.subnet(h)))
			if err == nil && !strings.Contains(e.Value, `"`+h.Addr.String()+`"`) {
				err = fmt.Errorf("%s has %s, where etcd has %s", h.Name, s.subnet(h), e.Value)
			}
			return err
		})
		for _, host := range []*lab.Host{h, waits} {
			s.readyzOf(host, time.Second, http.StatusOK, "flanneld is ready")
			s.saysTimes(host.Flanneld(), 1, "level=INFO", "no longer: "+line)
		}
		if now := s.subnet(h); now == old || h.Flanneld().Exited() || h.Flanneld().PID() != pid {
			s.t.Errorf("%s has %s, had %s, exited: %v", h.Name, now, old, h.Flanneld().Exited())
		}
		if e, err := s.keys.Get(s.ctx, key); err != nil || e.Value != phantomValue(stolenIP, stolenMAC) {
			s.t.Errorf("the other host's lease is %+v, %v", e, err)
		}
		s.holds(h, 3*time.Second, old.String(), stolenIP, stolenMAC)
		s.holds(waits, 3*time.Second, peer, peerIP, peerMAC)
		s.t.Logf("%s became %s, and %s has %s, after %v", old, s.subnet(h), waits.Name, s.subnet(waits), took.Round(time.Millisecond))
	})
}

// TestWaitingHostTakesOverAnyConfig: a host without a subnet joins the network of the latest
// config, even if it is another one.
func TestWaitingHostTakesOverAnyConfig(t *testing.T) {
	t.Parallel()
	c, h := oneHost(t, `{"Network":"10.42.0.0/16","SubnetMin":"10.42.7.0","SubnetMax":"10.42.7.0","Backend":{"Type":"vxlan"}}`)
	c.phantom("10.42.7.0-24", "203.0.113.7", "0a:00:00:00:00:07")
	p := c.launch(h)
	c.says(p, "cannot lease a subnet, waiting for a free one")
	c.put("config", `{"Network":"10.43.0.0/16","SubnetMin":"10.43.7.0","SubnetMax":"10.43.7.0","Backend":{"Type":"vxlan","VNI":7}}`)
	c.within(configWithin, "the other network", func() error {
		if p.ReadyAfter() == 0 {
			return fmt.Errorf("not ready:\n%s", p.Logs())
		}
		return nil
	})
	if got := c.subnet(h).String(); got != "10.43.7.0/24" {
		t.Errorf("it has %s", got)
	}
	c.sh(h, "ip link show flannel.7")
	if out, err := c.try(h, "ip link show flannel.1"); err == nil {
		t.Errorf("it has a device of the first network: %s", out)
	}
}

// TestLastSubnet: of two hosts that want the last subnet one gets it, and the
// other waits for the next, saying why and what to do.
func TestLastSubnet(t *testing.T) {
	t.Parallel()
	eachStore(t, lab.Options{Hosts: 4}, func(s *stage) {
		s.put("config", `{"Network":"10.42.0.0/28","SubnetLen":30,"Backend":{"Type":"vxlan"}}`) // subnets .4, .8 and .12
		all := s.Hosts
		s.Hosts = all[:2]
		s.must(s.StartAll(s.ctx, s.args...))
		s.connect()
		tr := s.traffic(s.containers...)

		contenders := all[2:]
		for _, h := range contenders {
			s.launch(h, s.args...)
		}
		var won, waits *lab.Host
		s.within(5*time.Second, "one has it and one waits", func() error {
			for i, h := range contenders {
				other := contenders[1-i]
				if logged(h, "msg=ready") == 1 && logged(other, "cannot lease a subnet") == 1 {
					won, waits = h, other
					return nil
				}
			}
			return errors.New("not yet")
		})
		s.saysTimes(waits.Flanneld(), 1, "level=ERROR", "cannot lease a subnet", "out of subnets", "10.42.0.0/28", "3 subnets of length 30", "10.42.0.4 to 10.42.0.12", "3 leases")
		s.saysTimes(waits.Flanneld(), 1, "cannot lease a subnet", "delete", "SubnetLen")
		s.must(won.Flanneld().WaitReady(s.ctx))
		s.lossless(tr...)

		// A running owner would defend its lease.
		s.stop(all[0].Flanneld())
		key, _ := s.lease(all[0])
		s.must(s.keys.Delete(s.ctx, key))
		freed := time.Now()
		s.saysTimes(waits.Flanneld(), 1, "msg=ready")
		took := time.Since(freed)
		if took > 12*time.Second {
			s.t.Errorf("it took %v to get the subnet that became free", took)
		}
		if now, e := s.lease(waits); now != key || !strings.Contains(e.Value, `"`+waits.Addr.String()+`"`) {
			s.t.Errorf("the waiting host has %+v, not %s", e, key)
		}
		s.saysTimes(waits.Flanneld(), 1, "level=ERROR", "cannot lease a subnet")
		s.t.Logf("%s won, %s got the next after %v", won.Name, waits.Name, took.Round(time.Millisecond))
	})
}
