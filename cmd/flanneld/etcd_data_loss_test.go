package main

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdkeys"
)

const (
	goneLine  = "own lease was deleted, creating it again"
	stolenIP  = "203.0.113.66"
	stolenMAC = "0a:00:00:00:00:66"
)

// TestEtcdForgets replaces the content of etcd, as a whole and key by key.
func TestEtcdForgets(t *testing.T) {
	t.Parallel()
	eachStore(t, lab.Options{Hosts: 3}, func(s *stage) {
		backup := filepath.Join(s.Dir, "backup")
		s.beginWithBackup(backup)
		s.row("own key deleted", (*stage).losesKey)
		s.row("own key about to expire", (*stage).keyExpiresSoon)
		s.row("own key expired", (*stage).keyExpired)
		s.row("etcd restored", func(s *stage) { s.restored(backup) })
		s.row("etcd wiped", (*stage).wiped)
		s.row("history lost", func(s *stage) { s.missesEvents(func() {}) })
		s.row("history lost and etcd restarted", func(s *stage) {
			s.missesEvents(func() {
				s.must(s.Etcd.Kill(s.ctx))
				s.must(s.Etcd.Start(s.ctx))
			})
		})
		s.row("subnet taken over", (*stage).subnetTaken)
		s.row("subnet taken over while stopped", (*stage).subnetTakenWhileStopped)
	})
}

// TestEtcdRestoredSoon: leases that are in the backup as they were last are no
// sign that all is as it was.
func TestEtcdRestoredSoon(t *testing.T) {
	t.Parallel()
	eachStore(t, lab.Options{Hosts: 3}, func(s *stage) {
		backup := filepath.Join(s.Dir, "backup")
		s.beginWithBackup(backup)
		s.restored(backup)
	})
}

// beginWithBackup starts all hosts, and takes a backup of etcd before the last one has a lease.
func (s *stage) beginWithBackup(dir string) {
	s.t.Helper()
	s.put("config", upperConfig)
	all := s.Hosts
	s.Hosts = all[:len(all)-1]
	for _, h := range s.Hosts {
		s.start(h, s.args...)
	}
	s.must(s.Etcd.Kill(s.ctx))
	s.must(os.CopyFS(dir, os.DirFS(filepath.Join(s.Dir, "etcd"))))
	s.must(s.Etcd.Start(s.ctx))
	s.Hosts = all
	last := all[len(all)-1]
	s.start(last, s.args...)
	s.connect()
	// Nothing that follows is to be blamed on this.
	for _, h := range s.Hosts {
		s.within(10*time.Second, "settled", func() error {
			if a, b := logged(h, awayLine), logged(h, backLine); a != b {
				return fmt.Errorf("%s is still waiting for etcd", h.Name)
			}
			return nil
		})
	}
}

// holdings are all hosts' subnets and lease values.
func (s *stage) holdings() map[string]string {
	s.t.Helper()
	all := map[string]string{}
	for _, h := range s.Hosts {
		key, e := s.lease(h)
		all[key] = e.Value
	}
	return all
}

// leasedAgain waits until a host's lease is what it was, for a day.
func (s *stage) leasedAgain(d time.Duration, key, value string) time.Duration {
	s.t.Helper()
	return s.within(d, key, func() error {
		e, err := s.keys.Get(s.ctx, key)
		if err == nil && (e.Value != value || e.TTL < 23*time.Hour) {
			err = fmt.Errorf("it is %+v", e)
		}
		return err
	})
}

func (s *stage) losesKey() {
	tr := s.traffic(s.containers...)
	for _, h := range s.Hosts {
		key, before := s.lease(h)
		said := logged(h, goneLine)
		s.must(s.keys.Delete(s.ctx, key))
		took := s.leasedAgain(3*time.Second, key, before.Value)
		s.saysTimes(h.Flanneld(), said+1, goneLine)
		s.t.Logf("%s made it again after %v", h.Name, took.Round(time.Millisecond))
	}
	s.follows()
	s.lossless(tr...)
}

// keyExpiresSoon makes the own key expire in a second, without another change.
func (s *stage) keyExpiresSoon() {
	tr := s.traffic(s.containers...)
	for i, h := range s.Hosts {
		key, before := s.lease(h)
		mended := func() int { return logged(h, goneLine) + logged(h, "lease renewed") }
		said := mended()
		s.must(s.keys.Put(s.ctx, key, before.Value, time.Duration(1+i%2)*time.Second))
		took := s.leasedAgain(5*time.Second, key, before.Value)
		s.within(5*time.Second, "log", func() error {
			if n := mended(); n != said+1 {
				return fmt.Errorf("said %d times", n-said)
			}
			return nil
		})
		s.t.Logf("%s has it for a day after %v", h.Name, took.Round(time.Millisecond))
	}
	s.follows()
	s.lossless(tr...)
}

// keyExpired lets the own key expire while the daemon cannot help it. Its peers
// have to believe that it is gone; the others are not concerned.
func (s *stage) keyExpired() {
	h := s.Hosts[0]
	key, before := s.lease(h)
	said := logged(h, goneLine)
	tr := s.traffic(s.containers[1:]...)
	s.must(h.Flanneld().Pause())
	s.must(s.keys.Put(s.ctx, key, before.Value, time.Second))
	s.within(5*time.Second, "expiry", func() error {
		if _, err := s.keys.Get(s.ctx, key); !errors.Is(err, etcdkeys.ErrNoKey) {
			return fmt.Errorf("it is there: %w", err)
		}
		return nil
	})
	s.must(h.Flanneld().Signal(syscall.SIGCONT))
	took := s.leasedAgain(3*time.Second, key, before.Value)
	s.waitAllPairs()
	s.saysTimes(h.Flanneld(), said+1, goneLine)
	s.follows() // and so watches, when something happens to etcd next
	s.lossless(tr...)
	s.t.Logf("made it again after %v", took.Round(time.Millisecond))
}

// wiped: all hosts get new leases of their old subnets, without any effect on traffic.
func (s *stage) wiped() {
	s.returns(func() {
		s.must(s.Etcd.Wipe(s.ctx))
		s.put("config", upperConfig)
	})
}

// restored: the last host's lease is not in the backup. Its daemon is slow to create it again, and
// until then the other hosts must keep their entries for it.
func (s *stage) restored(backup string) {
	last := s.Hosts[len(s.Hosts)-1]
	s.returns(func() {
		back := s.lines(backLine)
		s.must(last.Flanneld().Pause())
		s.must(s.Etcd.Kill(s.ctx))
		data := filepath.Join(s.Dir, "etcd")
		s.must(os.RemoveAll(data))
		s.must(os.CopyFS(data, os.DirFS(backup)))
		s.must(s.Etcd.Start(s.ctx))
		for i, h := range s.Hosts[:len(s.Hosts)-1] {
			s.saysTimes(h.Flanneld(), back[i]+1, backLine)
		}
		pauseFor(s.ctx, 2*time.Second) // for those to do wrong
		if _, err := s.keys.Get(s.ctx, leaseKey(s.prefix, s.subnet(last))); !errors.Is(err, etcdkeys.ErrNoKey) {
			s.t.Errorf("the backup has a lease of %s: %v", last.Name, err)
		}
		s.must(last.Flanneld().Signal(syscall.SIGCONT))
	})
}

// returns: after any change of etcd's content, it soon contains the same leases as before, and the
// hosts have not changed meanwhile.
func (s *stage) returns(happens func()) {
	leases := s.holdings()
	gone, back := s.lines(awayLine), s.lines(backLine)
	state := s.kernels()
	tr := s.traffic(s.containers...)
	happens()
	start := time.Now()
	for key, value := range leases {
		s.leasedAgain(30*time.Second-time.Since(start), key, value)
	}
	s.t.Logf("all leases are back after %v", time.Since(start).Round(time.Millisecond))
	s.once(10*time.Second, gone, awayLine)
	s.once(10*time.Second, back, backLine)
	s.readyz(5*time.Second, "flanneld is ready")
	for i, now := range s.kernels() {
		if now != state[i] {
			s.t.Errorf("%s held\n%sand holds\n%s", s.Hosts[i].Name, state[i], now)
		}
	}
	if now := s.holdings(); !maps.Equal(now, leases) {
		s.t.Errorf("leases were %v, are %v", leases, now)
	}
	s.follows()
	s.lossless(tr...)
}

// subnetTaken: another host creates the lease that ours has lost: the other one keeps the subnet,
// and ours moves to another one.
func (s *stage) subnetTaken() {
	h := s.Hosts[0]
	pid := h.Flanneld().PID()
	gone, moved, docker := "lost own subnet to another host", "moved to another subnet", "restart docker"
	said := logged(h, docker)
	tr := s.traffic(s.containers[1:]...)
	key, old := s.steal(h)
	took := s.within(5*time.Second, "another subnet", func() error {
		if now := s.subnet(h); now == old {
			return fmt.Errorf("it is %s", now)
		}
		return nil
	})
	s.saysTimes(h.Flanneld(), 1, "level=ERROR", gone, old.String(), stolenIP, "times=1")
	s.saysTimes(h.Flanneld(), 1, "level=ERROR", moved, old.String())
	s.saysTimes(h.Flanneld(), said+1, "level=WARN", docker, h.SubnetFile)
	if _, e := s.lease(h); !strings.Contains(e.Value, `"`+h.Addr.String()+`"`) || e.TTL < 23*time.Hour {
		s.t.Errorf("the new lease is %+v", e)
	}
	if e, err := s.keys.Get(s.ctx, key); err != nil || e.Value != phantomValue(stolenIP, stolenMAC) {
		s.t.Errorf("the other host's lease is %+v, %v", e, err)
	}
	for _, other := range s.Hosts[1:] {
		s.holds(other, 5*time.Second, old.String(), stolenIP, stolenMAC)
	}
	if h.Flanneld().Exited() || h.Flanneld().PID() != pid {
		s.t.Error("flanneld has ended")
	}
	s.restartDocker(0)
	// Until then the old subnet was the bridge's.
	s.holds(h, 5*time.Second, old.String(), stolenIP, stolenMAC)
	s.waitAllPairs()
	s.lossless(tr...)
	s.t.Logf("%s became %s after %v", old, s.subnet(h), took.Round(time.Millisecond))
	s.must(s.keys.Delete(s.ctx, key))
}

// steal has another host take a host's subnet, while the daemon cannot create its lease again.
func (c *cluster) steal(h *lab.Host) (key string, subnet netip.Prefix) {
	c.t.Helper()
	key, _ = c.lease(h)
	subnet = c.subnet(h)
	c.must(h.Flanneld().Pause())
	c.must(c.keys.Delete(c.ctx, key))
	c.must(c.keys.Put(c.ctx, key, phantomValue(stolenIP, stolenMAC), 0))
	c.must(h.Flanneld().Signal(syscall.SIGCONT))
	return key, subnet
}

// restartDocker replaces a container, and has docker take the subnet in the subnet file.
func (c *cluster) restartDocker(i int) {
	c.t.Helper()
	c.containers[i] = c.container(c.Hosts[i])
}

// subnetTakenWhileStopped does it to a host that finds out when it starts.
func (s *stage) subnetTakenWhileStopped() {
	h := s.Hosts[1]
	key, _ := s.lease(h)
	old := s.subnet(h)
	tr := s.traffic(s.containers[0], s.containers[2])
	s.stop(h.Flanneld())
	s.must(s.keys.Put(s.ctx, key, phantomValue(stolenIP, stolenMAC), 0))
	s.start(h, s.args...)
	s.saysTimes(h.Flanneld(), 1, "level=ERROR", "previous subnet is leased by another host", old.String())
	s.saysTimes(h.Flanneld(), 1, "level=WARN", "restart docker", h.SubnetFile)
	if now := s.subnet(h); now == old {
		s.t.Errorf("the subnet file still tells of %s", now)
	}
	if e, err := s.keys.Get(s.ctx, key); err != nil || e.Value != phantomValue(stolenIP, stolenMAC) {
		s.t.Errorf("the other host's lease is %+v, %v", e, err)
	}
	s.restartDocker(1)
	for _, host := range s.Hosts {
		s.holds(host, 5*time.Second, old.String(), stolenIP, stolenMAC)
	}
	s.waitAllPairs()
	s.lossless(tr...)
}

// missesEvents stops a daemon while more happens than etcd remembers.
func (s *stage) missesEvents(also func()) {
	const peers, rounds = 120, 13 // 1,560 events
	h := s.Hosts[0]
	key := func(i int) string { return fmt.Sprintf("%s/subnets/10.42.%d.0-24", s.prefix, i) }
	round := func(r int) (all []etcdkeys.Entry) {
		for i := 1; i <= peers; i++ {
			all = append(all, etcdkeys.Entry{Key: key(i), Value: phantomValue(fmt.Sprintf("203.0.113.%d", i), fmt.Sprintf("0a:00:00:00:%02x:%02x", r, i))})
		}
		return all
	}
	base := make([][]string, len(s.Hosts))
	for i, host := range s.Hosts {
		base[i] = s.sortedLines(host)
	}
	tr := s.traffic(s.containers...)
	s.must(s.keys.PutAll(s.ctx, round(0)[:20])) // who changes and who leaves
	s.within(5*time.Second, "the first peers", func() error {
		if n := len(s.sortedLines(h)); n != len(base[0])+3*20 {
			return fmt.Errorf("%d objects", n)
		}
		return nil
	})
	s.must(h.Flanneld().Pause())
	for r := 1; r <= rounds; r++ {
		s.must(s.keys.PutAll(s.ctx, round(r)))
	}
	var want []string
	for i := 1; i <= peers; i++ {
		if i%3 == 0 {
			s.must(s.keys.Delete(s.ctx, key(i)))
			continue
		}
		mac := fmt.Sprintf("0a:00:00:00:%02x:%02x", rounds, i)
		want = append(want, fmt.Sprintf("fdb %s dev flannel.1 dst 203.0.113.%d self permanent", mac, i),
			fmt.Sprintf("neigh 10.42.%d.0 lladdr %s dev flannel.1 nud permanent", i, mac),
			fmt.Sprintf("route 10.42.%[1]d.0/24 via 10.42.%[1]d.0 dev flannel.1 onlink", i))
	}
	if v3, ok := s.keys.(etcdkeys.V3); ok { // in v2, so many events are enough
		s.must(v3.ForgetHistory(s.ctx))
	}
	also()
	again := logged(h, "listing all leases again")
	s.must(h.Flanneld().Signal(syscall.SIGCONT))
	start := time.Now()
	s.sees(h, 10*time.Second, append(slices.Clone(base[0]), want...))
	took := time.Since(start)
	for i, other := range s.Hosts {
		s.sees(other, 10*time.Second, append(slices.Clone(base[i]), want...))
	}
	s.t.Logf("all is known after %v, listed again %d times", took.Round(time.Millisecond), logged(h, "listing all leases again")-again)
	for i := 1; i <= peers; i++ {
		if i%3 != 0 {
			s.must(s.keys.Delete(s.ctx, key(i)))
		}
	}
	for i, other := range s.Hosts {
		s.sees(other, 10*time.Second, base[i])
	}
	s.follows()
	s.lossless(tr...)
}

// sortedLines returns the objects of a host's kernel.
func (s *stage) sortedLines(h *lab.Host) []string {
	s.t.Helper()
	return slices.Sorted(strings.SplitSeq(strings.TrimSpace(s.snapshot(h, "10.42.0.0/16", "flannel.1").Text()), "\n"))
}

// sees waits until a host's kernel has exactly these objects.
func (s *stage) sees(h *lab.Host, d time.Duration, want []string) {
	s.t.Helper()
	slices.Sort(want)
	s.within(d, "peers of "+h.Name, func() error {
		got := s.sortedLines(h)
		if slices.Equal(got, want) {
			return nil
		}
		lack := slices.DeleteFunc(slices.Clone(want), func(l string) bool { return slices.Contains(got, l) })
		excess := slices.DeleteFunc(got, func(l string) bool { return slices.Contains(want, l) })
		return fmt.Errorf("it lacks %d\n%s\nand has %d too many\n%s", len(lack), strings.Join(lack, "\n"), len(excess), strings.Join(excess, "\n"))
	})
}
