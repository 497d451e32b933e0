package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/api"
	"flanneld/pkg/lab"
	"flanneld/pkg/page"
	"flanneld/pkg/status"
	"flanneld/pkg/subnetenv"
)

// events receives the events of a host's daemon until the test ends.
func (c *cluster) events(h *lab.Host) <-chan page.Event {
	c.t.Helper()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", subnetenv.SocketPath(h.SubnetFile))
	}}}
	ctx, cancel := context.WithCancel(c.ctx)
	c.t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://flanneld/events", nil)
	c.must(err)
	answer, err := client.Do(r)
	c.must(err)
	if answer.StatusCode != http.StatusOK {
		c.t.Fatal(answer.Status)
	}
	all := make(chan page.Event, 1000)
	go func() {
		defer answer.Body.Close()
		defer close(all)
		for lines := bufio.NewReader(answer.Body); ; {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			var e page.Event
			if data, is := strings.CutPrefix(line, "data: "); is && json.Unmarshal([]byte(data), &e) == nil {
				all <- e
			}
		}
	}()
	return all
}

// awaitEvent returns the next event for which a condition is true.
func (c *cluster) awaitEvent(events <-chan page.Event, what string, is func(page.Event) bool) page.Event {
	c.t.Helper()
	late := time.After(20 * time.Second)
	for {
		select {
		case e, there := <-events:
			if !there {
				c.t.Fatalf("%s: the events have ended", what)
			}
			if is(e) {
				return e
			}
		case <-late:
			c.t.Fatalf("%s: no such event", what)
		}
	}
}

// TestPageFollowsTheDaemon: the page is on the socket; watchers are sent traffic, a repair, a peer
// that is cut off, one that comes and goes, and the end of the daemon.
func TestPageFollowsTheDaemon(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 2, vxlanConfig)
	h := c.Hosts[0]
	html, err := api.Dial(h.SubnetFile).Get(c.ctx, "/")
	c.must(err)
	if !strings.HasPrefix(string(html), "<!doctype html>") {
		t.Errorf("the page is %.100s", html)
	}
	events := c.events(h)
	first := c.awaitEvent(events, "the first event", func(page.Event) bool { return true })
	if !first.Whole || len(first.Peers) != 1 || first.Lease.Subnet != c.subnet(h) || first.Traffic == nil || len(first.Facts) == 0 {
		t.Errorf("first: %+v", first)
	}
	c.awaitEvent(events, "traffic", func(e page.Event) bool {
		if e.Traffic == nil || e.Traffic.Device != "flannel.1" || len(e.Traffic.Rates) == 0 {
			return false
		}
		last := e.Traffic.Rates[len(e.Traffic.Rates)-1]
		return last != nil && last[0] > 0 && last[1] > 0 // at least that of the probes
	})
	peer := first.Peers[0].Subnet.String()
	c.sh(h, "ip route del "+peer)
	c.awaitEvent(events, "the repair", func(e page.Event) bool {
		return len(e.Repairs) > 0 && e.Repairs[0].What == "+1 route" && strings.HasPrefix(e.Repairs[0].Example, "ip route replace "+peer)
	})
	c.sh(h, "ip link set flannel.1 down && ip link del flannel.1")
	c.awaitEvent(events, "the repair of the device", func(e page.Event) bool {
		return len(e.Repairs) > 1 && strings.Contains(e.Repairs[0].What, "+1 link") && e.Drift != nil && *e.Drift == 0
	})
	other := c.Hosts[1]
	c.cutWay(other, h)
	c.awaitEvent(events, "the peer fails", func(e page.Event) bool {
		return len(e.Peers) == 1 && e.Peers[0].Subnet == c.subnet(other) && e.Peers[0].Probe == status.ProbeFailing
	})
	c.awaitEvent(events, "the verdict", func(e page.Event) bool {
		return e.Verdict == status.VerdictDegraded && len(e.Conditions) > 0
	})
	c.mendWays()
	c.awaitEvent(events, "the peer answers", func(e page.Event) bool {
		return len(e.Peers) == 1 && e.Peers[0].Subnet == c.subnet(other) && e.Peers[0].Probe == status.ProbeOK
	})
	c.put("subnets/10.42.250.0-24", phantomValue("172.31.200.250", "02:00:00:00:00:fa"))
	of := func(e page.Event) *status.Peer {
		for i := range e.Peers {
			if e.Peers[i].Subnet.String() == "10.42.250.0/24" {
				return &e.Peers[i]
			}
		}
		return nil
	}
	c.awaitEvent(events, "another peer", func(e page.Event) bool { p := of(e); return p != nil && p.State == status.OK })
	c.del("subnets/10.42.250.0-24")
	c.awaitEvent(events, "the end of the peer", func(e page.Event) bool {
		return len(e.Gone) == 1 && e.Gone[0].String() == "10.42.250.0/24"
	})
	if _, err := h.Flanneld().Stop(c.ctx); err != nil {
		t.Fatal(err)
	}
	c.within(10*time.Second, "the end of the events", func() error {
		for {
			select {
			case _, there := <-events:
				if !there {
					return nil
				}
			default:
				return errors.New("they go on")
			}
		}
	})
}
