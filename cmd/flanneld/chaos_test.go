package main

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

const (
	// recovery bounds the time from the end of all trouble to a sound network.
	recovery = 30 * time.Second
	// chaosRun is how long one backend with one store gets at least.
	chaosRun = 10 * time.Second
)

// TestChaos causes random failures of hosts, daemons and etcd, several at a time, and expects a
// working network after each round in which every host still has its subnet. The hosts have shapes
// of the zoo, and some are in two networks.
//
// CHAOS_TIME is the duration (20s), CHAOS_API are the stores (v2 and v3), CHAOS_BACKEND the
// backends (all), which are used in turns, as many as a short run has time for. CHAOS_SEED repeats
// the choices of another run, though not its timing.
func TestChaos(t *testing.T) {
	t.Parallel()
	need(t, "ip", "nft", "iptables", "iptables-nft", "iptables-legacy")
	total := given(t, "CHAOS_TIME", "20s", time.ParseDuration)
	seed := uint64(given(t, "CHAOS_SEED", strconv.Itoa(rand.IntN(1e6)), strconv.Atoi))
	apis := strings.Fields(cmp.Or(os.Getenv("CHAOS_API"), "v2 v3"))
	backends := slices.Clone(zooBackends)
	if names := strings.Fields(os.Getenv("CHAOS_BACKEND")); len(names) > 0 {
		backends = slices.DeleteFunc(backends, func(b zooBackend) bool { return !slices.Contains(names, b.name) })
	}
	if len(backends) == 0 {
		t.Fatalf("CHAOS_BACKEND=%s is none of the zoo's", os.Getenv("CHAOS_BACKEND"))
	}
	rand.New(rand.NewPCG(seed, 1)).Shuffle(len(backends), func(i, j int) { backends[i], backends[j] = backends[j], backends[i] })
	var runs []chaosOf
	for i := range backends {
		for j := range apis { // short runs have as many backends and stores as they can
			runs = append(runs, chaosOf{backends[(i+j)%len(backends)], apis[j]})
		}
	}
	runs = runs[:max(1, min(len(runs), int(total/chaosRun)))]
	each := total / time.Duration(len(runs))
	for _, r := range runs {
		t.Run(r.backend.name+" "+r.api, func(t *testing.T) {
			t.Logf("CHAOS_SEED=%d CHAOS_BACKEND=%s CHAOS_API=%s", seed, r.backend.name, r.api)
			m := startMayhem(t, r, seed, each)
			for end := time.Now().Add(each); time.Now().Before(end); {
				m.play()
			}
			t.Logf("%d rounds with %d actions; the slowest recovery took %v", m.rounds, m.actions, m.slowest.Round(time.Millisecond))
		})
	}
}

// chaosOf is what one run is of.
type chaosOf struct {
	backend zooBackend
	api     string
}

// mayhem is a cluster with random failures.
type mayhem struct {
	*cluster
	backend  zooBackend
	random   *rand.Rand
	machines []*machine
	victims  []*victim
	gateway  string

	etcdDown  bool // killed or stopped
	addresses int  // that uplinks have been given
	rounds    int
	actions   int
	done      []string // all of it, for the one who has to understand a failure
	slowest   time.Duration
}

// A machine is a host that has become one of the zoo.
type machine struct {
	*lab.Host
	shape  shape
	uplink string     // its name now
	addr   netip.Addr // of the uplink
}

// A victim is a daemon on a machine, with its invariants and its history.
type victim struct {
	*machine
	network   chaosNetwork
	file      string // subnet file
	subnet    netip.Prefix
	daemon    *lab.Process
	container *lab.Container
	killed    bool // there is no daemon
}

// A chaosNetwork is one that daemons serve.
type chaosNetwork struct {
	prefix string // of keys
	cidr   netip.Prefix
	vxlan  string // its VXLAN device, if it has one
	bridge string // of docker
	hosts  int    // that are in it
}

var chaosNetworks = []chaosNetwork{
	{"/chaos/first", netip.MustParsePrefix("10.42.0.0/16"), "flannel.1", "docker0", 5},
	{"/chaos/second", netip.MustParsePrefix("10.43.0.0/16"), "flannel.2", "docker1", 2},
}

func (v *victim) String() string { return v.Name + " in " + v.network.cidr.Addr().String() }

func startMayhem(t *testing.T, of chaosOf, seed uint64, total time.Duration) *mayhem {
	t.Helper()
	c := newCluster(t, lab.Options{Hosts: 5, Underlay: netip.MustParsePrefix("10.99.0.0/16")}) // the zoo's
	ctx, cancel := context.WithTimeout(t.Context(), total+3*time.Minute)
	t.Cleanup(cancel)
	c.ctx = ctx
	c.use(of.api)
	m := &mayhem{cluster: c, backend: of.backend, random: rand.New(rand.NewPCG(seed, 0)), gateway: zooRouter}
	t.Cleanup(m.tell)
	m.putConfig()
	m.shapeHosts()
	for _, n := range chaosNetworks {
		for _, one := range m.machines[:n.hosts] {
			v := &victim{machine: one, network: n, file: filepath.Join(m.Dir, one.Name, n.bridge+".env")}
			m.start(v)
			m.victims = append(m.victims, v)
		}
	}
	for _, v := range m.victims {
		m.must(v.daemon.WaitReady(ctx))
		k := m.containerTo(v.Host, v.network.bridge, v.file)
		v.container, v.subnet = k, netip.PrefixFrom(k.Addr, 24).Masked()
	}
	m.recover()
	return m
}

// shapeHosts assigns shapes of the zoo to the hosts. The first one is always the simplest.
func (m *mayhem) shapeHosts() {
	m.t.Helper()
	var fit []shape
	for _, s := range shapes {
		plain := s.nics == nil && s.router == "" && s.args == "" && s.needs == "" && s.overlay == "" && s.mtu == 0
		if plain && !s.second && !s.late && !(s.routed && m.backend.direct) {
			s.complete()
			fit = append(fit, s)
		}
	}
	for i, h := range m.Hosts {
		s := fit[0]
		if i > 0 {
			s = fit[m.random.IntN(len(fit))]
		}
		h.Number = 2 + i // as the zoo numbers them
		m.t.Logf("%s: %s", h.Name, s.name)
		m.must(os.MkdirAll(filepath.Join(m.Dir, h.Name), 0o755)) // for the lock of iptables
		m.sh(h, "ip link set eth0 down && ip -4 addr flush dev eth0")
		for line := range strings.Lines(s.once + "\n" + s.up) {
			_, err := h.Shell(m.ctx, line)
			m.must(err)
		}
		m.machines = append(m.machines, &machine{Host: h, shape: s, uplink: s.uplink, addr: h.Addr})
	}
}

func (m *mayhem) putConfig() {
	m.t.Helper()
	for i, n := range chaosNetworks {
		options := m.backend.options
		if i > 0 && m.backend.second != "" {
			options += "," + m.backend.second
		}
		m.must(m.keys.Put(m.ctx, n.prefix+"/config", fmt.Sprintf(`{"Network":%q,"Backend":{%s}}`, n.cidr, options), 0))
	}
}

// tell logs the actions before a failure, and the logs of daemons that have ended.
func (m *mayhem) tell() {
	if !m.t.Failed() {
		return
	}
	m.t.Logf("what was done:\n%s", strings.Join(m.done, "\n"))
	for _, h := range m.Hosts {
		files, _ := filepath.Glob(filepath.Join(m.Dir, h.Name, "*.log"))
		for _, file := range files[max(0, len(files)-4):] {
			if text, err := os.ReadFile(file); err == nil {
				m.t.Logf("%s of %s:\n%s", filepath.Base(file), h.Name, text)
			}
		}
	}
}

func (m *mayhem) note(format string, args ...any) {
	m.done = append(m.done, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// play is one round: failures, their end, and a check of the result.
func (m *mayhem) play() {
	m.t.Helper()
	m.rounds++
	for range 1 + m.random.IntN(5) {
		a, v := actions[m.random.IntN(len(actions))], m.victims[m.random.IntN(len(m.victims))]
		between := time.Duration(m.random.Int64N(int64(time.Second)))
		if m.random.IntN(4) == 0 {
			between *= 4 // long enough for timeouts
		}
		if a.asks && m.etcdDown {
			continue
		}
		m.actions++
		m.note("round %d: %s: %s", m.rounds, v, a.name)
		a.do(m, v)
		pauseFor(m.ctx, between)
	}
	m.heal()
	m.note("round %d: healed", m.rounds)
	took := m.recover()
	m.slowest = max(m.slowest, took)
	m.note("round %d: sound after %v", m.rounds, took.Round(time.Millisecond))
}

// heal ends all trouble.
func (m *mayhem) heal() {
	m.t.Helper()
	m.healEtcd(nil)
	for _, one := range m.machines {
		m.must(one.Plug())
		m.sh(one.Host, "nft 'add table ip chaos; delete table ip chaos'")
	}
	for _, v := range m.victims {
		m.signal(v, syscall.SIGCONT)
		if v.killed {
			m.start(v)
		}
	}
}

// recover waits until the network is sound, with packets to prove it.
func (m *mayhem) recover() time.Duration {
	m.t.Helper()
	start := time.Now()
	ctx, cancel := context.WithTimeout(m.ctx, recovery)
	defer cancel()
	for _, v := range m.victims {
		if err := v.daemon.WaitReady(ctx); err != nil {
			m.t.Fatalf("%s: %v", v, err)
		}
	}
	m.within(recovery-time.Since(start), "a sound network", m.look)
	took := time.Since(start)
	for _, a := range m.victims {
		for _, b := range m.victims {
			if a == b || a.network != b.network || m.backend.local {
				continue
			}
			if _, err := a.container.WaitPing(ctx, b.container.Addr); err != nil {
				m.t.Fatalf("%s does not reach %s: %v", a.container.Name, b.container.Name, err)
			}
		}
	}
	if err := m.look(); err != nil {
		m.t.Fatalf("the network was sound, and is no longer: %v", err)
	}
	return took
}
