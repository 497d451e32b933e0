package main

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdkeys"
)

// TestFight: another program keeps deleting objects. That is logged once as an error, and takes
// little processor time.
//
// FIGHT_PEERS is the number of peers (200), and FIGHT_TIME the duration (10s).
func TestFight(t *testing.T) {
	t.Parallel()
	peers := given(t, "FIGHT_PEERS", "200", strconv.Atoi)
	watch := given(t, "FIGHT_TIME", "10s", time.ParseDuration)
	c, h := oneHost(t, `{"Network":"10.42.0.0/16","SubnetLen":28,"SubnetMin":"10.42.128.0","Backend":{"Type":"vxlan"}}`)
	var leases []etcdkeys.Entry
	for n := range peers {
		leases = append(leases, etcdkeys.Entry{
			Key:   fmt.Sprintf("%s/subnets/10.42.%d.%d-28", c.prefix, n>>4, n<<4&255),
			Value: phantomValue(fmt.Sprintf("203.0.%d.%d", n>>8, n&255), fmt.Sprintf("0a:00:00:00:%02x:%02x", n>>8, n&255)),
		})
	}
	c.must(c.Etcd.PutAll(c.ctx, leases))
	p := c.start(h, "-iptables-forward-rules=false")
	begun := c.usage(p)
	defer c.flushNeighbours(h)()

	c.says(p, "keeps undoing changes to the kernel")
	spent, said := c.usage(p).CPU-begun.CPU, lines(p)
	share := 100 * c.share(watch, p)
	t.Logf("%.2f %% of a processor; %v until it was said", share, spent)
	if share > 5 {
		t.Errorf("%.2f %%", share)
	}
	if n := lines(p, "keeps undoing changes to the kernel"); n > 1 {
		t.Errorf("said %d times:\n%s", n, p.Logs())
	}
	if n := lines(p) - said; n > int(watch.Seconds()) {
		t.Errorf("%d lines in %v:\n%s", n, watch, p.Logs())
	}
}

// flushNeighbours deletes the permanent neighbours of flannel.1 as soon as there are any, until it
// is stopped.
func (c *cluster) flushNeighbours(h *lab.Host) (stop func()) {
	ctx, cancel := context.WithCancel(c.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := h.Do(func() error {
			for ctx.Err() == nil {
				link, err := netlink.LinkByName("flannel.1")
				if err != nil {
					return err
				}
				all, err := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_V4)
				if err != nil {
					return err
				}
				for _, n := range all {
					netlink.NeighDel(&n)
				}
				select {
				case <-ctx.Done():
				case <-time.After(10 * time.Millisecond):
				}
			}
			return nil
		})
		if err != nil {
			c.t.Error(err)
		}
	}()
	return func() { cancel(); <-done }
}
