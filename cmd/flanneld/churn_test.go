package main

import (
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
)

const (
	churnLinks = 5000 // that are there
	churnRate  = 100  // pairs a second that come, and as many that go
	churners   = 4    // who make them
)

// inNetlink runs f with a netlink handle of a host.
func (c *cluster) inNetlink(h *lab.Host, f func(*netlink.Handle) error) error {
	var handle *netlink.Handle
	err := h.Do(func() (err error) {
		handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return err
	}
	defer handle.Close()
	return f(handle)
}

func pair(name string, up bool) *netlink.Veth {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if up {
		attrs.Flags = net.FlagUp
	}
	v := netlink.NewVeth(attrs)
	v.PeerName = "p" + name
	return v
}

// churn creates as many links as a host with many containers has, and then keeps creating and
// deleting some until stop is called. It returns the number of changes.
func (c *cluster) churn(h *lab.Host) (stop func() int) {
	c.t.Helper()
	c.must(c.inNetlink(h, func(n *netlink.Handle) error {
		for i := range churnLinks / 2 {
			if err := n.LinkAdd(pair(fmt.Sprint("c", i), false)); err != nil {
				return err
			}
		}
		return nil
	}))
	quit, ended := make(chan struct{}), make(chan error, churners)
	var changes atomic.Int64
	for n := range churners { // the kernel takes its time for each
		go func() {
			ended <- c.inNetlink(h, func(handle *netlink.Handle) error {
				tick := time.NewTicker(churners * time.Second / churnRate)
				defer tick.Stop()
				const alive = 5
				for i := 0; ; i++ {
					select {
					case <-quit:
						return nil
					case <-tick.C:
					}
					if err := handle.LinkAdd(pair(fmt.Sprintf("v%d.%d", n, i), true)); err != nil {
						return err
					}
					changes.Add(1)
					if i < alive {
						continue
					}
					if err := handle.LinkDel(pair(fmt.Sprintf("v%d.%d", n, i-alive), false)); err != nil {
						return err
					}
					changes.Add(1)
				}
			})
		}()
	}
	stopped := false
	stop = func() int {
		if !stopped {
			stopped = true
			close(quit)
			for range churners {
				c.must(<-ended)
			}
		}
		return int(changes.Load())
	}
	c.t.Cleanup(func() { stop() })
	return stop
}

// TestDockerChurn: on a host with thousands of links, where containers start and stop constantly,
// no list of all links is ever complete. The daemon starts, repairs and keeps its rules as usual.
func TestDockerChurn(t *testing.T) {
	// Not parallel: the links come and go under the kernel's lock.
	need(t, "iptables", "nft")
	c := newCluster(t, lab.Options{Hosts: 2})
	h := c.Hosts[0]
	c.put("config", vxlanConfig)
	c.must(c.StartAll(c.ctx))
	begun := time.Now()
	stop := c.churn(h)
	t.Logf("%d links after %v", churnLinks, time.Since(begun).Round(time.Millisecond))
	begun = time.Now()
	restart := func() *lab.Process {
		t.Helper()
		c.stop(h.Flanneld())
		p := c.start(h)
		return p
	}
	t.Run("starts", func(t *testing.T) {
		var took []string
		for range 10 {
			p := restart()
			took = append(took, p.ReadyAfter().Round(time.Millisecond).String())
		}
		t.Log("ready after", strings.Join(took, ", "))
	})
	t.Run("repairs", func(t *testing.T) {
		for _, d := range damages {
			before := c.snapshot(h, "10.42.0.0/16", "flannel.1")
			c.onLink(h, "flannel.1", d.do)
			took := c.within(3*time.Second, d.name, func() error {
				if s := c.snapshot(h, "10.42.0.0/16", "flannel.1"); !s.Equal(before) {
					return fmt.Errorf("the kernel holds\n%s", s.Text())
				}
				return nil
			})
			t.Logf("%-24s repaired after %v", d.name, took.Round(time.Millisecond))
		}
	})
	t.Run("rules", func(t *testing.T) {
		const ours = "iptables -S FORWARD | grep FLANNEL"
		before := c.sh(h, ours)
		c.sh(h, "iptables -F FORWARD")
		took := c.prints(h, 10*time.Second, ours, before)
		t.Logf("repaired after %v", took.Round(time.Millisecond))
	})
	t.Run("follows the uplink", func(t *testing.T) {
		c.onLink(h, h.Uplink, func(l netlink.Link) error { return netlink.LinkSetMTU(l, 1400) })
		c.within(5*time.Second, "the MTU", func() error {
			if env, err := h.ReadSubnet(); err != nil || env.MTU != 1350 {
				return fmt.Errorf("%+v, %v", env, err)
			}
			return nil
		})
	})
	t.Run("udp", func(t *testing.T) {
		c.put("config", `{"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}`)
		for range 3 {
			restart()
		}
	})
	elapsed := time.Since(begun)
	n := stop()
	t.Logf("%d changes in %v", n, elapsed.Round(time.Millisecond)) // how many, is up to the machine
	if n == 0 {
		t.Error("no link has come or gone")
	}
}
