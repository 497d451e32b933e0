package main

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/lab"
)

const (
	// siegeEvery has each of the 20 pairs of containers send five pings a second: together 100.
	siegeEvery = 200 * time.Millisecond
	// siegeFiles is the limit of open files that the daemons run with.
	siegeFiles = 1024

	// Limits of a daemon under attack. Most of the memory are messages of etcd's v3 API with values
	// of 1.4 MB, several of which wait for garbage collection (17 MB measured, 6 with v2); most of
	// the descriptors are connections to the health port (170).
	siegeGrowth = 24 << 20 // bytes of resident memory more than before, at the most
	siegeOpen   = 200      // descriptors
	siegeLines  = 10       // lines of log a second, on average (5, with those of starts)
)

// TestSiege runs all siegeAttacks on a cluster of five at the same time, while containers ping each
// other: no ping is lost, no forged packet arrives, and memory, descriptors and logs stay within
// limits.
//
// SIEGE_TIME is the duration (36s), SIEGE_BACKEND are the backends and SIEGE_API the stores, which
// are used in turns: "vxlan udp" and "v2 v3" are vxlan with v2 and udp with v3, half the time each.
// SIEGE_ATTACKS selects attacks by name, separated by commas; default are all.
func TestSiege(t *testing.T) {
	// Not parallel: the attacks use all CPUs.
	need(t, "ip", "nft", "iptables")
	total := given(t, "SIEGE_TIME", "36s", time.ParseDuration)
	backends := strings.Fields(cmp.Or(os.Getenv("SIEGE_BACKEND"), "vxlan udp"))
	apis := strings.Fields(cmp.Or(os.Getenv("SIEGE_API"), "v2 v3"))
	runs := max(len(backends), len(apis))
	for i := range runs {
		backend, api := backends[i%len(backends)], apis[i%len(apis)]
		t.Run(backend+" "+api, func(t *testing.T) {
			s := startSiege(t, backend, api, total/time.Duration(runs))
			s.run()
		})
	}
}

// wanted reports whether an attack is wanted.
func wanted(attack string) bool {
	all := os.Getenv("SIEGE_ATTACKS")
	return all == "" || slices.Contains(strings.Split(all, ","), attack)
}

// siege is a cluster with an attacker beside it.
type siege struct {
	*cluster
	backend  string
	total    time.Duration
	port     int // of the tunnel; 0: there is none
	daemons  []*besieged
	proxy    *proxy
	stranger *lab.Host      // on their link, none of them
	evil     *lab.Container // on the last host
	traps    []*trap        // for what must not arrive
}

// besieged is a host whose daemon is attacked.
type besieged struct {
	*member
	container *lab.Container
	mac       net.HardwareAddr // of its VXLAN device
	endpoints string
	log       string // what its log is written to
	open      *os.File

	mu      sync.Mutex // held while it is restarted
	daemon  *lab.Process
	runs    int
	slowest time.Duration // from a start to READY

	begun, most lab.Usage
	files       int
	spent       time.Duration // processor time of the daemons before this one
	lines       int           // of the logs that are read here
}

func startSiege(t *testing.T, backend, api string, total time.Duration) *siege {
	t.Helper()
	const hosts = 5
	s := &siege{cluster: newCluster(t, lab.Options{Hosts: hosts + 1}), backend: backend, total: total}
	s.use(api)
	ctx, cancel := context.WithTimeout(t.Context(), total+3*time.Minute)
	t.Cleanup(cancel)
	s.ctx = ctx
	s.port = map[string]int{"vxlan": 8472, "udp": 8285}[backend]
	s.put("config", fmt.Sprintf(`{"Network":"10.42.0.0/16","SubnetMin":"10.42.128.0","Backend":{"Type":%q}}`, backend))
	s.stranger = s.Hosts[hosts]
	s.Hosts = s.Hosts[:hosts]
	s.proxy = s.startProxy()
	through := "http://" + netip.AddrPortFrom(s.stranger.Addr, 2379).String()
	for i, h := range s.Hosts {
		b := &besieged{member: &member{Host: h, addr: h.Addr}, endpoints: through}
		if i < hosts-1 {
			b.endpoints += "," + s.Etcd.Endpoint()
		}
		// The logs of the first two are read from a pipe, whose reader will stop or end.
		b.log = filepath.Join(s.Dir, h.Name, "siege.log")
		if i < 2 && wanted("stop and end the log's reader") {
			s.openPipe(b)
		}
		s.daemons = append(s.daemons, b)
		s.must(s.start(b, nil))
	}
	t.Cleanup(s.tell)
	for _, b := range s.daemons {
		s.must(b.daemon.WaitReady(ctx))
	}
	s.connect()
	for i, m := range s.members() {
		s.daemons[i].subnet, s.daemons[i].container = m.subnet, s.containers[i]
		s.traps = append(s.traps, s.setTrap(s.containers[i]))
		if backend == "vxlan" {
			s.daemons[i].mac = s.iface(m.Host, "flannel.1").HardwareAddr
		}
	}
	var err error
	s.evil, err = s.Hosts[hosts-1].AddContainer()
	s.must(err)
	return s
}

// start runs a daemon with a health port and few files.
func (s *siege) start(b *besieged, stored []*os.File) error {
	path, err := built()
	if err != nil {
		return err
	}
	args := []string{
		"-c", fmt.Sprintf(`ulimit -n %d; log=$1; shift; exec "$@" >>"$log" 2>&1`, siegeFiles), "sh", b.log, path,
		"-etcd-endpoints=" + b.endpoints, "-subnet-file=" + b.SubnetFile, "-etcd-api=" + s.api, "-ip-masq=true", "-healthz-port=8080", "-healthz-ip=0.0.0.0", "-underlay-lock",
	}
	if b.open != nil {
		args = append(args, "-v=1") // has much to say
	}
	p, err := b.Run(lab.Command{Path: "/bin/sh", Args: args, Stored: stored})
	if err != nil {
		return err
	}
	p.KeepStored()
	b.daemon, b.runs = p, b.runs+1
	return nil
}

// tell logs the output of the daemons, as far as it can be read.
func (s *siege) tell() {
	if !s.t.Failed() {
		return
	}
	for _, b := range s.daemons {
		if b.open != nil {
			continue
		}
		text, err := os.ReadFile(b.log)
		if len(text) > 20000 {
			text = append(append(text[:10000:10000], "\n…\n"...), text[len(text)-10000:]...)
		}
		s.t.Logf("log on %s: %v\n%s", b.Name, err, text)
	}
}

// run starts the attacks, and reports their results.
func (s *siege) run() {
	s.t.Helper()
	pings := s.startPings()
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	s.measure(func(b *besieged, u lab.Usage) { b.begun, b.most = u, u })
	var attacks sync.WaitGroup
	counts := make([]atomic.Int64, len(siegeAttacks))
	for i, a := range siegeAttacks {
		if !wanted(a.name) {
			continue
		}
		attacks.Go(func() {
			if err := a.run(s, ctx, &counts[i]); err != nil && ctx.Err() == nil {
				s.t.Errorf("%s: %v", a.name, err)
			}
		})
	}
	for end := time.Now().Add(s.total); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(time.Second) {
		s.measure(func(b *besieged, u lab.Usage) { b.most.RSS = max(b.most.RSS, u.RSS) })
	}
	cancel()
	attacks.Wait()
	s.judgePings(pings)
	for i, a := range siegeAttacks {
		s.t.Logf("%-40s %8d, %7.1f a second", a.name, counts[i].Load(), float64(counts[i].Load())/s.total.Seconds())
	}
	s.judge()
}

func (s *siege) startPings() (pings []*lab.Pinger) {
	s.t.Helper()
	for _, a := range s.containers {
		for _, b := range s.containers {
			if a != b {
				p, err := a.StartPinger(b.Addr, siegeEvery)
				s.must(err)
				pings = append(pings, p)
			}
		}
	}
	return pings
}

func (s *siege) judgePings(pings []*lab.Pinger) {
	s.t.Helper()
	var all lab.PingStats
	for _, p := range pings {
		one := p.Stop()
		all.Sent, all.Lost, all.Outage = all.Sent+one.Sent, all.Lost+one.Lost, max(all.Outage, one.Outage)
		for _, d := range one.RTTs {
			if all.RTTs == nil || d > all.RTTs[0] {
				all.RTTs = []time.Duration{d} // the longest
			}
		}
	}
	s.t.Logf("%d pings, %d lost, for %v at the longest; the slowest took %v", all.Sent, all.Lost, all.Outage, all.RTTs)
	if all.Lost > 0 {
		s.t.Errorf("lost %d of %d pings", all.Lost, all.Sent)
	}
}

// measure measures each running daemon.
func (s *siege) measure(note func(*besieged, lab.Usage)) {
	for _, b := range s.daemons {
		b.mu.Lock()
		if u, err := b.daemon.Usage(); err == nil {
			b.files = max(b.files, u.Files)
			note(b, u)
		}
		b.mu.Unlock()
	}
}

// judge checks the state after the attacks.
func (s *siege) judge() {
	s.t.Helper()
	for _, b := range s.daemons {
		if b.daemon.Exited() {
			s.t.Errorf("flanneld on %s is dead", b.Name)
			continue
		}
		u := s.usage(b.daemon)
		lines := b.lines
		if b.open == nil {
			text, err := os.ReadFile(b.log)
			s.must(err)
			lines = strings.Count(string(text), "\n")
		}
		most := max(b.most.RSS, u.RSS)
		s.t.Logf("%s: %.1f MB before, %.1f at the most, %.1f in the end; %.1f %% of a processor; %d descriptors at the most; %d lines of log; %d starts, the slowest took %v",
			b.Name, mb(b.begun.RSS), mb(most), mb(u.RSS), 100*(b.spent+u.CPU-b.begun.CPU).Seconds()/s.total.Seconds(), b.files, lines, b.runs, b.slowest.Round(time.Millisecond))
		if most > b.begun.RSS+siegeGrowth {
			s.t.Errorf("%s: flanneld grew from %.1f to %.1f MB", b.Name, mb(b.begun.RSS), mb(most))
		}
		if b.files > siegeOpen {
			s.t.Errorf("%s: flanneld had %d descriptors", b.Name, b.files)
		}
		if b.open == nil && float64(lines) > siegeLines*s.total.Seconds() {
			s.t.Errorf("%s: %d lines of log in %v", b.Name, lines, s.total)
		}
	}
	for i, trap := range s.traps {
		if got := trap.caught(); got != nil {
			s.t.Errorf("%s received %v", s.containers[i].Name, got)
		}
	}
	s.waitAllPairs()
	s.within(10*time.Second, "the daemons are well", s.well)
	s.joins()
}

func mb(bytes int64) float64 { return float64(bytes) / 1e6 }

// well expects each daemon to have the subnet that it had and to answer at its health port.
func (s *siege) well() error {
	for _, b := range s.daemons {
		env, err := b.ReadSubnet()
		if err != nil {
			return err
		}
		if env.Subnet.Masked() != b.subnet {
			return fmt.Errorf("%s had %s and has %s", b.Name, b.subnet, env.Subnet)
		}
		if status, body, err := s.get(b.Host, "/readyz"); err != nil || status != http.StatusOK {
			return fmt.Errorf("%s answers %d %q, %w", b.Name, status, body, err)
		}
	}
	if s.backend != "vxlan" {
		return nil
	}
	for _, from := range s.daemons {
		state := s.snapshot(from.Host, "10.42.0.0/16", "flannel.1")
		for _, to := range s.daemons {
			if from == to {
				continue
			}
			if err := leadsTo(state, "flannel.1", to.subnet, to.addr, dataplane.MAC(to.mac)); err != nil {
				return fmt.Errorf("%s to %s: %w", from.Name, to.Name, err)
			}
		}
	}
	return nil
}

// joins starts a new host, with everything that the attacks have left in etcd.
func (s *siege) joins() {
	s.t.Helper()
	p := s.launch(s.stranger, "-etcd-api="+s.api, "-ip-masq=true")
	ctx, cancel := context.WithTimeout(s.ctx, slow(20*time.Second))
	defer cancel()
	if err := p.WaitReady(ctx); err != nil {
		s.t.Fatalf("a new host: %v", err)
	}
	u := s.usage(p)
	s.t.Logf("a new host is ready after %v, with %.1f MB at the most", p.ReadyAfter().Round(time.Millisecond), mb(u.HWM))
	if u.HWM > 22<<20+siegeGrowth {
		s.t.Errorf("a new host needs %.1f MB", mb(u.HWM))
	}
	k := s.container(s.stranger)
	for _, to := range s.containers {
		ping, cancel := context.WithTimeout(s.ctx, slow(5*time.Second))
		begun := time.Now()
		if _, err := k.WaitPing(ping, to.Addr); err != nil {
			s.t.Errorf("the new host does not reach %s: %v", to.Name, err)
		}
		s.t.Logf("the new host reaches %s after %v", to.Name, time.Since(begun).Round(time.Millisecond))
		cancel()
	}
}
