package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"flanneld/pkg/lab"
)

// recovery bounds the time from the end of all trouble to a sound network.
const recovery = 30 * time.Second

// TestChaos does bad things at random to hosts, daemons and etcd, several at a
// time, and wants a sound network after each round in which every host has the
// subnet that it had.
//
// CHAOS_TIME is how long (20s), CHAOS_API which store (v2 and v3, half the time
// each), and CHAOS_SEED repeats the choices of another run, though not its
// timing.
func TestChaos(t *testing.T) {
	need(t, "ip", "nft")
	total, err := time.ParseDuration(cmp.Or(os.Getenv("CHAOS_TIME"), "20s"))
	if err != nil {
		t.Fatal(err)
	}
	seed, err := strconv.ParseUint(cmp.Or(os.Getenv("CHAOS_SEED"), strconv.FormatUint(rand.Uint64N(1e6), 10)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Fields(cmp.Or(os.Getenv("CHAOS_API"), "v2 v3"))
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			t.Logf("CHAOS_SEED=%d CHAOS_API=%s", seed, name)
			m := startMayhem(t, name, seed, total/time.Duration(len(names)))
			for end := time.Now().Add(total / time.Duration(len(names))); time.Now().Before(end); {
				m.play()
			}
			t.Logf("%d rounds with %d actions; the slowest recovery took %v", m.rounds, m.actions, m.slowest.Round(time.Millisecond))
		})
	}
}

// mayhem is a cluster to which bad things happen.
type mayhem struct {
	*cluster
	api     string
	store   listedStore
	random  *rand.Rand
	victims []*victim
	gateway string

	etcdDown  bool // killed or stopped
	addresses int  // that uplinks have been given
	rounds    int
	actions   int
	done      []string // all of it, for the one who has to understand a failure
	slowest   time.Duration
}

type listedStore interface {
	store
	List(ctx context.Context, dir string) ([]lab.Entry, error)
}

// victim is a host, what is to be true of it whatever happens, and what has
// happened.
type victim struct {
	*member
	container *lab.Container
	uplink    string // its name now
	killed    bool   // there is no daemon
}

func startMayhem(t *testing.T, api string, seed uint64, total time.Duration) *mayhem {
	t.Helper()
	c := newCluster(t, lab.Options{Hosts: 5})
	ctx, cancel := context.WithTimeout(t.Context(), total+3*time.Minute)
	t.Cleanup(cancel)
	c.ctx = ctx
	m := &mayhem{cluster: c, api: api, store: c.Etcd, random: rand.New(rand.NewPCG(seed, 0))}
	if api == "v3" {
		m.store = c.Etcd.V3()
	}
	t.Cleanup(m.tell)
	m.putConfig()
	m.must(m.StartAll(m.ctx, "-etcd-api="+api))
	m.addContainers()
	m.gateway = strings.Fields(m.sh(m.Hosts[0], "ip route show default"))[2]
	for i, one := range m.members() {
		m.victims = append(m.victims, &victim{member: one, container: m.containers[i], uplink: one.Uplink})
	}
	m.recover()
	return m
}

func (m *mayhem) putConfig() {
	m.t.Helper()
	m.must(m.store.Put(m.ctx, m.prefix+"/config", vxlanConfig, 0))
}

// tell says what was done before a failure, and what the daemons said of it
// that are not there any more.
func (m *mayhem) tell() {
	if !m.t.Failed() {
		return
	}
	m.t.Logf("what was done:\n%s", strings.Join(m.done, "\n"))
	for _, v := range m.victims {
		files, _ := filepath.Glob(filepath.Join(m.Dir, v.Name, "*.log"))
		for _, file := range files {
			if text, err := os.ReadFile(file); err == nil {
				m.t.Logf("%s of %s:\n%s", filepath.Base(file), v.Name, text)
			}
		}
	}
}

func (m *mayhem) note(format string, args ...any) {
	m.done = append(m.done, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// An action is something bad that happens to a host or to etcd.
type action struct {
	name string
	asks bool // etcd, which must be there
	do   func(m *mayhem, v *victim)
}

var actions = []action{
	{"kill -9 flanneld", false, (*mayhem).kill},
	{"kill -9 flanneld and start it", false, func(m *mayhem, v *victim) { m.kill(v); m.start(v) }},
	{"SIGSTOP flanneld", false, func(m *mayhem, v *victim) { m.signal(v, syscall.SIGSTOP) }},
	{"SIGCONT flanneld", false, func(m *mayhem, v *victim) { m.signal(v, syscall.SIGCONT) }},
	{"wipe etcd", false, (*mayhem).wipe},
	{"kill -9 etcd", false, (*mayhem).killEtcd},
	{"kill -9 etcd and start it", false, func(m *mayhem, v *victim) { m.killEtcd(v); m.healEtcd(v) }},
	{"SIGSTOP etcd", true, (*mayhem).pauseEtcd},
	{"SIGCONT etcd", false, (*mayhem).healEtcd},
	{"forget history", true, (*mayhem).forget},
	{"cut off from etcd", false, func(m *mayhem, v *victim) { m.sh(v.Host, cutOff) }},
	{"unplug", false, func(m *mayhem, v *victim) { m.must(v.Unplug()) }},
	{"delete the lease", true, (*mayhem).deleteLease},
	{"change the uplink's address", false, (*mayhem).readdress},
	{"replace the uplink", false, (*mayhem).replaceUplink},
	{"damage the kernel's objects", false, (*mayhem).damage},
	{"damage the kernel's objects", false, (*mayhem).damage}, // there are many kinds
}

// cutOff drops what goes between a host and etcd, and tells nobody.
const cutOff = `nft 'add table ip chaos; delete table ip chaos; table ip chaos {
	chain out { type filter hook output priority 0; tcp dport 2379 drop; }
	chain in  { type filter hook input priority 0; tcp sport 2379 drop; }
}'`

// play is one round: trouble, the end of it, and a look at what is left.
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
		m.note("round %d: %s: %s", m.rounds, v.Name, a.name)
		a.do(m, v)
		m.linger(between)
	}
	m.heal()
	m.note("round %d: healed", m.rounds)
	took := m.recover()
	m.slowest = max(m.slowest, took)
	m.note("round %d: sound after %v", m.rounds, took.Round(time.Millisecond))
}

// linger lets trouble last: how long is a part of the chance.
func (m *mayhem) linger(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-m.ctx.Done():
	}
}

// heal ends all trouble.
func (m *mayhem) heal() {
	m.t.Helper()
	m.healEtcd(nil)
	for _, v := range m.victims {
		m.must(v.Plug())
		m.sh(v.Host, "nft 'add table ip chaos; delete table ip chaos'")
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
		if err := v.Flanneld().WaitReady(ctx); err != nil {
			m.t.Fatalf("%s: %v", v.Name, err)
		}
	}
	m.within(recovery-time.Since(start), "a sound network", m.look)
	took := time.Since(start)
	for _, a := range m.victims {
		for _, b := range m.victims {
			if a == b {
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

// look tells what is wrong with the network.
func (m *mayhem) look() error {
	if err := m.soundLeases(); err != nil {
		return err
	}
	all := make([]*member, len(m.victims))
	for i, v := range m.victims {
		switch env, err := v.ReadSubnet(); {
		case v.Flanneld().Exited():
			m.t.Fatalf("%s: flanneld has ended", v.Name)
		case err != nil:
			return err
		case env.Subnet.Masked() != v.subnet:
			m.t.Fatalf("%s had %s, its subnet file tells of %s", v.Name, v.subnet, env.Subnet)
		}
		all[i] = v.member
	}
	return m.sound(all)
}

// soundLeases: each host has one lease, its own, with its address of now.
func (m *mayhem) soundLeases() error {
	entries, err := m.store.List(m.ctx, m.prefix+"/subnets")
	if err != nil {
		return err
	}
	held := map[string]lab.Entry{}
	for _, e := range entries {
		held[e.Key] = e
	}
	for _, v := range m.victims {
		e := held[m.leaseKey(v)]
		if !strings.Contains(e.Value, `"PublicIP":"`+v.addr.String()+`"`) || e.TTL < 23*time.Hour {
			return fmt.Errorf("%s is at %s and its lease of %s says %q, for %v", v.Name, v.addr, v.subnet, e.Value, e.TTL)
		}
	}
	if len(held) != len(m.victims) {
		return fmt.Errorf("%d hosts have the leases %v", len(m.victims), held)
	}
	return nil
}

func (m *mayhem) leaseKey(v *victim) string {
	return fmt.Sprintf("%s/subnets/%s-%d", m.prefix, v.subnet.Addr(), v.subnet.Bits())
}

func (m *mayhem) start(v *victim) {
	m.t.Helper()
	_, err := v.Start("-etcd-api=" + m.api)
	m.must(err)
	v.killed = false
}

func (m *mayhem) kill(v *victim) {
	m.t.Helper()
	m.must(v.Flanneld().Kill(m.ctx))
	v.killed = true
}

func (m *mayhem) signal(v *victim, s syscall.Signal) {
	m.t.Helper()
	if !v.killed {
		m.must(v.Flanneld().Signal(s))
	}
}

func (m *mayhem) wipe(*victim) {
	m.t.Helper()
	m.must(m.Etcd.Wipe(m.ctx))
	m.etcdDown = false
	m.putConfig()
}

func (m *mayhem) killEtcd(*victim) {
	m.t.Helper()
	m.must(m.Etcd.Kill(m.ctx))
	m.etcdDown = true
}

func (m *mayhem) pauseEtcd(*victim) {
	m.t.Helper()
	m.must(m.Etcd.Pause())
	m.etcdDown = true
}

// healEtcd ends a pause or a death.
func (m *mayhem) healEtcd(*victim) {
	m.t.Helper()
	err := m.Etcd.Resume()
	if errors.Is(err, os.ErrProcessDone) {
		err = m.Etcd.Start(m.ctx)
	}
	m.must(err)
	m.etcdDown = false
}

// forget makes etcd forget what happened before.
func (m *mayhem) forget(*victim) {
	m.t.Helper()
	if m.api == "v3" {
		m.must(m.store.Put(m.ctx, "/elsewhere", "", 0)) // there is always something to forget
		m.must(m.Etcd.V3().Compact(m.ctx))
		return
	}
	for i := range 1100 { // v2 keeps a thousand events
		m.must(m.store.Put(m.ctx, "/elsewhere", strconv.Itoa(i), 0))
	}
}

func (m *mayhem) deleteLease(v *victim) {
	m.t.Helper()
	if err := m.store.Delete(m.ctx, m.leaseKey(v)); !errors.Is(err, lab.ErrNoKey) {
		m.must(err)
	}
}

// newAddress gives one that no host has had.
func (m *mayhem) newAddress(v *victim) netip.Addr {
	m.addresses++
	v.addr = netip.AddrFrom4([4]byte{172, 31, 201 + byte(m.addresses/250), byte(m.addresses % 250)})
	m.note("\t%s", v.addr)
	return v.addr
}

// readdress does as DHCP does.
func (m *mayhem) readdress(v *victim) {
	m.t.Helper()
	addr := m.newAddress(v)
	m.sh(v.Host, fmt.Sprintf("ip -4 addr flush dev %[1]s && ip addr add %[2]s/22 dev %[1]s && ip route replace default via %[3]s dev %[1]s", v.uplink, addr, m.gateway))
}

// replaceUplink has the address and the way to everywhere on another device.
func (m *mayhem) replaceUplink(v *victim) {
	m.t.Helper()
	before, addr := v.uplink, m.newAddress(v)
	v.uplink = map[string]string{"eth0": "eth7", "eth7": "eth0"}[before]
	m.sh(v.Host, fmt.Sprintf("ip link set %[1]s down && ip link set %[1]s name %[2]s && ip addr flush dev %[2]s && ip addr add %[3]s/22 dev %[2]s && ip link set %[2]s up && ip route replace default via %[4]s dev %[2]s",
		before, v.uplink, addr, m.gateway))
}

func (m *mayhem) damage(v *victim) {
	m.t.Helper()
	d := damages[m.random.IntN(len(damages))]
	m.note("\t%s", d.name)
	err := v.Do(func() error {
		l, err := netlink.LinkByName("flannel.1")
		if err == nil {
			err = d.do(l)
		}
		return err
	})
	if err != nil { // it was gone already, or the daemon was repairing it just then
		m.note("\t%v", err)
	}
}
