package main

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// A stage is a cluster whose network is in one of etcd's APIs, for a sequence of failures.
type stage struct {
	*cluster
	args []string // of flanneld
}

const (
	awayLine = "registry is unreachable"
	backLine = "registry is reachable again"
)

// eachStore plays the same on a cluster of each API.
func eachStore(t *testing.T, o lab.Options, play func(*stage)) {
	eachAPI(t, o, func(t *testing.T, c *cluster) { play(newStage(c)) })
}

func newStage(c *cluster) *stage {
	return &stage{c, []string{"-etcd-api=" + c.api, "-healthz-ip=127.0.0.1", "-healthz-port=8080"}}
}

// row plays a part as a test of its own. What follows needs a sound cluster.
func (s *stage) row(name string, play func(*stage)) {
	s.t.Helper()
	ok := s.t.Run(name, func(t *testing.T) {
		c := *s.cluster
		c.t = t
		play(&stage{&c, s.args})
	})
	if !ok {
		s.t.FailNow()
	}
}

// lines counts the lines with some words in the log of each host.
func (s *stage) lines(words ...string) []int {
	var n []int
	for _, h := range s.Hosts {
		n = append(n, logged(h, words...))
	}
	return n
}

// once waits until each host has logged some words one time more than before.
func (s *stage) once(d time.Duration, before []int, words ...string) time.Duration {
	s.t.Helper()
	return s.within(d, strings.Join(words, ", "), func() error {
		for i, n := range s.lines(words...) {
			if n != before[i]+1 {
				return fmt.Errorf("%s said it %d times more", s.Hosts[i].Name, n-before[i])
			}
		}
		return nil
	})
}

// readyz waits until /readyz of each host has this answer.
func (s *stage) readyz(d time.Duration, begin string) {
	s.t.Helper()
	for _, h := range s.Hosts {
		s.readyzOf(h, d, http.StatusOK, begin)
	}
}

// readyzOf waits until /readyz of a host has this status, prefix and words.
func (s *stage) readyzOf(h *lab.Host, d time.Duration, status int, begin string, words ...string) {
	s.t.Helper()
	s.within(d, "readyz of "+h.Name, func() error {
		code, body, err := s.get(h, "/readyz")
		missing := func(word string) bool { return !strings.Contains(body, word) }
		if err == nil && (code != status || !strings.HasPrefix(body, begin) || slices.ContainsFunc(words, missing)) {
			err = fmt.Errorf("%d %s; want %d %s %q", code, body, status, begin, words)
		}
		return err
	})
}

// idle measures the share of a CPU that the busiest daemon takes.
func (s *stage) idle(d time.Duration) float64 {
	s.t.Helper()
	var all []*lab.Process
	for _, h := range s.Hosts {
		all = append(all, h.Flanneld())
	}
	return s.share(d, all...)
}

// phantomValue is the lease of a peer that does not exist.
func phantomValue(publicIP, mac string) string {
	return fmt.Sprintf(`{"PublicIP":"%s","BackendType":"vxlan","BackendData":{"VtepMAC":"%s"}}`, publicIP, mac)
}

var visits atomic.Int32

// follows adds and removes a peer, which all hosts must follow. It is another one each time:
// repeated changes of one object look like a conflict.
func (s *stage) follows() {
	s.t.Helper()
	n := 121 + visits.Add(1)%6
	subnet, ip, mac := fmt.Sprintf("10.42.%d.0/24", n), fmt.Sprintf("203.0.113.%d", n), fmt.Sprintf("0a:00:00:00:00:%02x", n)
	key := "subnets/" + strings.ReplaceAll(subnet, "/", "-")
	s.put(key, phantomValue(ip, mac))
	for _, h := range s.Hosts {
		s.holds(h, 5*time.Second, subnet, ip, mac)
	}
	s.must(s.keys.Delete(s.ctx, s.prefix+"/"+key))
	for _, h := range s.Hosts {
		s.holds(h, 5*time.Second, subnet, "", "")
	}
}

// An outage is etcd gone for all hosts, and back.
type outage struct {
	begin, end func() error
	noticed    time.Duration // bound of the first line about it
	cause      []string      // words of a line about why
	during     func()        // after it was noticed
	after      func()        // right after the end
}

// kernels returns the objects of each host's kernel.
func (s *stage) kernels() (all []string) {
	s.t.Helper()
	for _, h := range s.Hosts {
		all = append(all, s.snapshot(h, "10.42.0.0/16", "flannel.1").Text())
	}
	return all
}

// endures: no packet is lost, each host logs once that etcd is unreachable and once that it is
// back, and uses almost no processor time meanwhile.
func (s *stage) endures(o outage) {
	gone, back := s.lines(awayLine), s.lines(backLine)
	cause := append([]string{"level=WARN"}, o.cause...)
	explained := s.lines(cause...)
	state := s.kernels()
	tr := s.traffic(s.containers...)
	s.must(o.begin()) // an orderly stop takes seconds
	noticed := s.once(o.noticed, gone, awayLine)
	if o.cause != nil {
		s.once(10*time.Second, explained, cause...)
	}
	s.readyz(5*time.Second, "flanneld is ready, degraded: etcd does not answer since 20")
	if o.during != nil {
		o.during()
	}
	share := s.idle(4 * time.Second)
	if share > 0.01 {
		s.t.Errorf("a daemon takes %.2f %% of a CPU", share*100)
	}
	for i, now := range s.kernels() {
		if now != state[i] {
			s.t.Errorf("%s held\n%sand holds\n%s", s.Hosts[i].Name, state[i], now)
		}
	}
	ended := time.Now()
	s.must(o.end())
	served := time.Now() // etcd takes its time to start
	if o.after != nil {
		o.after()
	}
	s.once(10*time.Second, back, backLine)
	recovered := time.Since(served)
	s.readyz(5*time.Second, "flanneld is ready")
	s.follows()
	s.lossless(tr...)
	s.once(5*time.Second, gone, awayLine)
	s.once(5*time.Second, back, backLine)
	s.t.Logf("noticed after %v, CPU %.3f %%, etcd back after %v, all hosts %v later", noticed.Round(time.Millisecond),
		share*100, served.Sub(ended).Round(time.Millisecond), recovered.Round(time.Millisecond))
}

// TestEtcdAway makes etcd unreachable in all possible ways.
func TestEtcdAway(t *testing.T) {
	t.Parallel()
	need(t, "nft")
	eachStore(t, lab.Options{Hosts: 3}, func(s *stage) {
		s.join(upperConfig, s.args...)
		s.row("killed", func(s *stage) {
			s.endures(outage{
				begin:   func() error { return s.Etcd.Kill(s.ctx) },
				end:     func() error { return s.Etcd.Start(s.ctx) },
				noticed: 5 * time.Second,
			})
		})
		s.row("refuses", func(s *stage) {
			s.endures(outage{
				begin:   func() error { return s.Etcd.Stop(s.ctx) },
				end:     func() error { return s.Etcd.Start(s.ctx) },
				noticed: 5 * time.Second,
				during:  func() { pauseFor(s.ctx, 6*time.Second) }, // until attempts are as rare as they get
			})
		})
		s.row("black hole", func(s *stage) {
			const subnet, ip, mac = "10.42.88.0/24", "203.0.113.88", "0a:00:00:00:00:88"
			s.endures(outage{
				begin:   s.blackHole,
				end:     func() error { return s.inFabric("nft delete table ip hole") },
				noticed: 30 * time.Second,
				during:  func() { s.put("subnets/10.42.88.0-24", phantomValue(ip, mac)) },
				after: func() {
					for _, h := range s.Hosts {
						took := time.Now()
						s.holds(h, 10*time.Second, subnet, ip, mac)
						s.t.Logf("%s has the peer of meanwhile after %v more", h.Name, time.Since(took).Round(time.Millisecond))
					}
					s.del("subnets/10.42.88.0-24")
					for _, h := range s.Hosts {
						s.holds(h, 5*time.Second, subnet, "", "")
					}
				},
			})
		})
		s.row("hangs", func(s *stage) {
			s.endures(outage{
				begin: s.Etcd.Pause,
				end:   s.Etcd.Resume,
				// Its kernel still accepts connections, so that only timeouts reveal the failure.
				noticed: 60 * time.Second,
			})
		})
		s.row("slow", (*stage).slowEtcd)
	})
}

// blackHole silently drops packets between the hosts and etcd. The test itself still reaches etcd.
func (s *stage) blackHole() error {
	return s.inFabric(`nft 'table ip hole {
		chain to   { type filter hook input priority 0; iifname != "lo" tcp dport 2379 drop; }
		chain from { type filter hook output priority 0; oifname != "lo" tcp sport 2379 drop; }
	}'`)
}

// inFabric runs a shell command where etcd is.
func (c *cluster) inFabric(command string) error {
	_, err := c.Fabric.Shell(c.ctx, command)
	return err
}
