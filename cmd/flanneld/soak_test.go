package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdkeys"
)

const soakRate = 100 // events a second

// TestSoak: with very many peers, some of which are added, removed, moved or renewed all the time,
// a daemon does not grow, leaks nothing, and has exactly the right kernel state at the end. In a
// run of less than a minute, "does not grow" means that after a garbage collection, no more memory is
// in use than with a new daemon.
//
// SOAK_TIME is the duration (15s), SOAK_PEERS the number of peers (20000), and SOAK_SEED repeats
// the choices of another run.
func TestSoak(t *testing.T) {
	t.Parallel()
	total := given(t, "SOAK_TIME", "15s", time.ParseDuration)
	peers := given(t, "SOAK_PEERS", "20000", strconv.Atoi)
	seed := uint64(given(t, "SOAK_SEED", strconv.Itoa(rand.IntN(1e6)), strconv.Atoi))
	t.Logf("SOAK_SEED=%d", seed)
	s := startSoak(t, peers, seed, total)
	begun := s.usage(s.daemon)
	sizes := s.stir(total)
	took := s.within(10*time.Second, "the exact state", s.exact)
	ended := s.usage(s.daemon)
	middle, last := mean(sizes[len(sizes)/3:len(sizes)*2/3]), lastThird(sizes)
	t.Logf("%d events in %v among %d peers: exact %v after the last; %.1f %% of a processor, %v an event; %.1f MB at the most, %.1f in the middle third, %.1f in the last",
		s.events, total, peers, took.Round(time.Millisecond), 100*(ended.CPU-begun.CPU).Seconds()/total.Seconds(),
		((ended.CPU - begun.CPU) / time.Duration(s.events)).Round(time.Microsecond), float64(ended.HWM)/1e6, middle/1e6, last/1e6)
	// In a short run, the times of garbage collections make the few samples vary by more than 5 %.
	if total >= time.Minute && last > middle*1.03 {
		t.Errorf("memory grows by %.1f %%", 100*(last/middle-1))
	}
	goroutines, live := s.goroutines(), s.live()
	// What a daemon that has seen little of it needs.
	s.start()
	s.must(s.exact())
	again := lastThird(s.stir(min(total/3, 15*time.Second)))
	fresh := s.usage(s.daemon)
	freshGoroutines, freshLive := s.goroutines(), s.live()
	t.Logf("%d descriptors and %d goroutines; a new daemon has %d and %d", ended.Files, goroutines, fresh.Files, freshGoroutines)
	t.Logf("%.1f MB in the last third, %.1f with a new daemon; %.0f MB in use after a garbage collection, %.0f with a new daemon", last/1e6, again/1e6, live, freshLive)
	if total >= time.Minute && last > again*1.05 || live > freshLive*1.05 {
		t.Error("memory has grown")
	}
	if ended.Files > fresh.Files+2 || goroutines > freshGoroutines+3 {
		t.Error("there is a leak")
	}
}

// soak is a host among phantom peers.
type soak struct {
	*cluster
	etcd   etcdkeys.V3 // with one connection
	daemon *lab.Process
	random *rand.Rand
	peers  []soakPeer // by subnet; some of them are not there
	serial uint32     // of what was given last
	events int
}

// soakPeer has numbers from which its address and its MAC are derived; 0 if there is none.
type soakPeer struct{ ip, mac uint32 }

func startSoak(t *testing.T, peers int, seed uint64, total time.Duration) *soak {
	t.Helper()
	s := &soak{
		cluster: newCluster(t, lab.Options{Hosts: 1}), random: rand.New(rand.NewPCG(seed, 0)),
		peers: make([]soakPeer, peers+peers/20),
	}
	ctx, cancel := context.WithTimeout(t.Context(), total+3*time.Minute)
	t.Cleanup(cancel)
	s.ctx = ctx
	var err error
	s.etcd, err = s.Etcd.V3().Keep(ctx)
	s.must(err)
	s.must(s.etcd.Put(ctx, s.prefix+"/config", `{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.200.0.0","Backend":{"Type":"vxlan"}}`, 0))
	var leases []etcdkeys.Entry
	for i := range peers {
		s.peers[i] = soakPeer{s.next(), s.next()}
		leases = append(leases, etcdkeys.Entry{Key: s.key(i), Value: s.value(i)})
	}
	s.must(s.etcd.PutTogether(ctx, leases))
	s.start()
	s.within(5*time.Second, "the exact state", s.exact)
	return s
}

func (s *soak) start() {
	s.t.Helper()
	s.daemon = s.startCommand(s.Hosts[0], lab.Command{
		Args: []string{"-iptables-forward-rules=false"},
		Env:  []string{"GOTRACEBACK=all", "GODEBUG=gctrace=1"},
	})
}

func (s *soak) next() uint32 {
	s.serial++
	return s.serial
}

func (s *soak) subnetOf(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
}

func (s *soak) key(i int) string {
	return fmt.Sprintf("%s/subnets/%s-24", s.prefix, s.subnetOf(i).Addr())
}

func (p soakPeer) addr() netip.Addr {
	return netip.AddrFrom4([4]byte{100, 64 + byte(p.ip>>16), byte(p.ip >> 8), byte(p.ip)})
}

func (p soakPeer) vtep() dataplane.MAC {
	return dataplane.MAC{0x0a, 0, byte(p.mac >> 24), byte(p.mac >> 16), byte(p.mac >> 8), byte(p.mac)}
}

func (s *soak) value(i int) string {
	return phantomValue(s.peers[i].addr().String(), s.peers[i].vtep().String())
}

// stir generates events at a constant rate, and returns the daemon's size each second.
func (s *soak) stir(total time.Duration) (sizes []float64) {
	s.t.Helper()
	begun, before := time.Now(), s.events
	for told := begun; time.Since(begun) < total; {
		if due := int(time.Since(begun).Seconds() * soakRate); s.events-before >= due {
			time.Sleep(time.Second / soakRate)
			continue
		}
		s.must(s.event(s.random.IntN(len(s.peers))))
		s.events++
		if time.Since(begun) >= time.Duration(len(sizes)+1)*time.Second {
			u := s.usage(s.daemon)
			sizes = append(sizes, float64(u.RSS))
		}
		if time.Since(told) > time.Minute {
			told = time.Now()
			s.t.Logf("%v: %d events, %.1f MB", time.Since(begun).Round(time.Second), s.events, sizes[len(sizes)-1]/1e6)
		}
	}
	return sizes
}

// event has something happen to a peer.
func (s *soak) event(i int) error {
	p := &s.peers[i]
	choice := s.random.IntN(100)
	switch {
	case p.ip == 0: // it joins
		*p = soakPeer{s.next(), s.next()}
	case choice < 5: // it goes, or its key is lost and comes back never
		*p = soakPeer{}
		return s.etcd.Delete(s.ctx, s.key(i))
	case choice < 10: // it says that it goes
		value := strings.TrimSuffix(s.value(i), "}") + `,"Leaving":true}`
		*p = soakPeer{}
		return errors.Join(s.etcd.Put(s.ctx, s.key(i), value, 0), s.etcd.Delete(s.ctx, s.key(i)))
	case choice < 35: // it has another device
		p.mac = s.next()
	case choice < 60: // it has another address
		p.ip = s.next()
	} // or it is renewed
	return s.etcd.Put(s.ctx, s.key(i), s.value(i), 0)
}

// exact returns the surplus and the missing objects of the kernel.
func (s *soak) exact() error {
	have := s.snapshot(s.Hosts[0], "10.0.0.0/8", "flannel.1")
	want := dataplane.NewState()
	vias := map[netip.Prefix]netip.Addr{}
	for i, p := range s.peers {
		if p.ip == 0 {
			continue
		}
		subnet := s.subnetOf(i)
		want.FDB[dataplane.FDB{Link: "flannel.1", MAC: p.vtep(), Dst: p.addr()}] = struct{}{}
		want.Neighs[dataplane.NeighKey{Link: "flannel.1", IP: subnet.Addr()}] = p.vtep()
		vias[subnet] = subnet.Addr()
	}
	if !maps.Equal(want.FDB, have.FDB) {
		return fmt.Errorf("%d FDB entries, and not those that should be there (%d)", len(have.FDB), len(want.FDB))
	}
	if !maps.Equal(want.Neighs, have.Neighs) {
		return fmt.Errorf("%d neighbours, and not those that should be there (%d)", len(have.Neighs), len(want.Neighs))
	}
	if len(have.Routes) != len(vias) {
		return fmt.Errorf("%d routes, not %d", len(have.Routes), len(vias))
	}
	for k, r := range have.Routes {
		if k.Link != "flannel.1" || r.Via != vias[k.Dst] {
			return fmt.Errorf("route to %s by %s at %s", k.Dst, k.Link, r.Via)
		}
	}
	if n := len(have.NextHops); n != len(vias) && n != 0 {
		return fmt.Errorf("%d nexthops for %d routes", n, len(vias))
	}
	return nil
}

// goroutines ends the daemon in a way that has it list them.
func (s *soak) goroutines() int {
	s.t.Helper()
	s.end(s.daemon, syscall.SIGQUIT)
	return strings.Count(s.daemon.Logs(), "\ngoroutine ")
}

// live returns how many MB of the heap were in use after a garbage collection: the least of the last
// five, which does not depend on their times.
func (s *soak) live() float64 {
	s.t.Helper()
	var sizes []float64
	for _, found := range collection.FindAllStringSubmatch(s.daemon.Logs(), -1) {
		size, err := strconv.ParseFloat(found[1], 64)
		s.must(err)
		sizes = append(sizes, size)
	}
	if len(sizes) < 5 {
		s.t.Fatalf("%d garbage collections", len(sizes))
	}
	return slices.Min(sizes[len(sizes)-5:])
}

// collection is a line of gctrace=1.
var collection = regexp.MustCompile(`(?m)^gc \d+ @.*\d+->\d+->(\d+) MB,`)

func mean(values []float64) (m float64) {
	for _, v := range values {
		m += v / float64(len(values))
	}
	return m
}

func lastThird(values []float64) float64 { return mean(values[len(values)*2/3:]) }
