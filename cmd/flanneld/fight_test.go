package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// TestFight: two daemons with two networks on one host, and one device for both by
// mistake. It is said loudly and once, and neither spends its time on it. The one that
// has had enough slows down and says so; the other may never come that far.
//
// FIGHT_PEERS is how many peers each of them has (200), and FIGHT_TIME how long it
// is watched (10s).
func TestFight(t *testing.T) {
	peers, err := strconv.Atoi(cmp.Or(os.Getenv("FIGHT_PEERS"), "200"))
	if err != nil {
		t.Fatal(err)
	}
	watch, err := time.ParseDuration(cmp.Or(os.Getenv("FIGHT_TIME"), "10s"))
	if err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, lab.Options{Hosts: 1})
	h := c.Hosts[0]
	var rivals []*lab.Process
	for i := range 2 {
		network := netip.AddrFrom4([4]byte{10, byte(16 + 16*i), 0, 0})
		prefix := fmt.Sprintf("/network%d", i)
		c.must(c.Etcd.Put(c.ctx, prefix+"/config", fmt.Sprintf(`{"Network":"%s/12","SubnetLen":28,"SubnetMin":"10.%d.0.0","Backend":{"Type":"vxlan"}}`,
			network, 16+16*i+15), 0))
		var leases []lab.Entry
		for n := range peers {
			leases = append(leases, lab.Entry{
				Key:   fmt.Sprintf("%s/subnets/10.%d.%d.%d-28", prefix, 16+16*i+n>>12, n>>4&255, n<<4&255),
				Value: phantomValue(fmt.Sprintf("203.%d.%d.%d", i, n>>8, n&255), fmt.Sprintf("0a:0%d:00:00:%02x:%02x", i, n>>8, n&255)),
			})
		}
		c.must(c.Etcd.PutAll(c.ctx, leases))
		p, err := h.Run(lab.Command{Args: []string{
			"-etcd-endpoints=" + c.Etcd.Endpoint(), "-etcd-prefix=" + prefix, "-subnet-file=" + filepath.Join(c.Dir, prefix+".env"),
			"-iptables-forward-rules=false",
		}})
		c.must(err)
		c.must(p.WaitReady(c.ctx))
		rivals = append(rivals, p)
	}
	usage := func() (u []lab.Usage) {
		for _, p := range rivals {
			one, err := p.Usage()
			c.must(err)
			u = append(u, one)
		}
		return u
	}
	begun := usage()
	c.within(60*time.Second, "loud", func() error {
		if lines(rivals[0], "keeps undoing our work")+lines(rivals[1], "keeps undoing our work") == 0 {
			return fmt.Errorf("nothing is said by\n%s\n%s", rivals[0].Logs(), rivals[1].Logs())
		}
		return nil
	})
	before, said := usage(), lines(rivals[0])
	time.Sleep(watch) // it is what happens in it that is measured
	for i, after := range usage() {
		share := 100 * (after.CPU - before[i].CPU).Seconds() / watch.Seconds()
		t.Logf("daemon %d: %.2f %% of a processor; %v until it was said", i, share, before[i].CPU-begun[i].CPU)
		if share > 5 {
			t.Errorf("%.2f %%", share)
		}
		if n := lines(rivals[i], "keeps undoing our work"); n > 1 {
			t.Errorf("said %d times:\n%s", n, rivals[i].Logs())
		}
	}
	if n := lines(rivals[0]) - said; n > int(watch.Seconds()) {
		t.Errorf("%d lines in %v:\n%s", n, watch, rivals[0].Logs())
	}
}
