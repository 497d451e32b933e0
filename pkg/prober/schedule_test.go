package prober

import (
	"iter"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// nth returns the key of peer n.
func nth(n int) key {
	return keyOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 0}), 24))
}

// number returns which peer a key is of.
func (k key) number() int { return int(k >> 16 & 0xffff) }

// only returns targets for peers, on the uplink's link or not.
func only(onLink bool, peers ...int) iter.Seq[target] {
	return func(yield func(target) bool) {
		for _, n := range peers {
			if !yield(target{nth(n), "flannel.1", onLink}) {
				return
			}
		}
	}
}

func upTo(n int) (all []int) {
	for i := range n {
		all = append(all, i)
	}
	return all
}

// model is a schedule with a network that answers at once.
type model struct {
	*schedule
	t      *testing.T
	now    time.Duration
	down   map[int]bool    // peers that do not answer
	narrow map[int]bool    // peers that do not answer to full-size probes
	loss   map[int]float64 // share of the packets to a peer that is lost
	asked  map[int][]time.Duration
	full   map[int]int
}

func newModel(t *testing.T, interval time.Duration) *model {
	m := &model{
		schedule: newSchedule(interval, rand.New(rand.NewPCG(1, 2))), t: t,
		down: map[int]bool{}, loss: map[int]float64{}, narrow: map[int]bool{}, asked: map[int][]time.Duration{}, full: map[int]int{},
	}
	m.mtu = 1450
	return m
}

// step is one interval.
// step is one interval. The prober leaves out those in which there is nothing to do.
func (m *model) step() {
	idle, was := m.pause() > m.interval && m.now > 0, m.stats
	m.now += m.interval
	m.begin(m.now)
	for m.probe() {
	}
	if idle && m.stats != was {
		m.t.Errorf("at %v, an interval that would be left out: %+v, before %+v", m.now, m.stats, was)
	}
}

// probe is one probe, if there is one to send.
func (m *model) probe() bool {
	p, _, ok := m.pick(m.now, [tokenSize]byte{1})
	if !ok {
		return false
	}
	n := p.key.number()
	m.asked[n] = append(m.asked[n], m.now)
	if p.full {
		m.full[n]++
	}
	if !m.down[n] && !(p.full && m.narrow[n]) && m.random.Float64() >= m.loss[n] {
		m.answered(p.echo, m.now+time.Millisecond)
	}
	return true
}

// run lets some time pass.
func (m *model) run(d time.Duration) {
	for end := m.now + d; m.now < end; {
		m.step()
	}
}

// until lets time pass until a peer is in a state, and returns how long it took.
func (m *model) until(n int, s State, limit time.Duration) time.Duration {
	m.t.Helper()
	start := m.now
	for m.find(nth(n)).state() != s {
		if m.step(); m.now-start > limit {
			m.t.Fatalf("peer %d is %v after %v, want %v", n, m.find(nth(n)).state(), limit, s)
		}
	}
	return m.now - start
}

// times returns how often all peers were asked.
func (m *model) times() (all int) {
	for _, at := range m.asked {
		all += len(at)
	}
	return all
}

// TestBudgetHoldsForAnyNumberOfPeers: whatever happens, there are no more than five probes in each
// interval, each peer gets its share, and few peers are asked once in perRound intervals.
func TestBudgetHoldsForAnyNumberOfPeers(t *testing.T) {
	for _, n := range []int{0, 1, 2, 4, 5, 6, 10, 300, 3000} {
		for _, down := range []int{0, 1, n / 2, n} {
			for _, interval := range []time.Duration{100 * time.Millisecond, time.Second, 10 * time.Second} {
				m := newModel(t, interval)
				m.set(only(false, upTo(n)...), 0)
				for i := range min(down, n) {
					m.down[i] = true
				}
				rounds := max(20, 5*n/perInterval)
				m.run(time.Duration(rounds) * interval)
				if all := m.times(); all > rounds*perInterval || down == 0 && n > 0 && all < rounds*min(n, perRound*perInterval)/perRound*9/10 {
					t.Errorf("%d peers, %d down, interval %v: %d probes in %d intervals", n, down, interval, all, rounds)
				}
				for i := range n {
					if len(m.asked[i]) < 2 {
						t.Errorf("%d peers, %d down, interval %v: peer %d was asked %d times in %d intervals", n, down, interval, i, len(m.asked[i]), rounds)
					}
				}
			}
		}
	}
}

func TestFewPeersAreAskedOncePerRound(t *testing.T) {
	m := newModel(t, time.Second)
	m.set(only(false, 1, 2), 0)
	m.run(100 * time.Second)
	for n, at := range m.asked {
		if len(at) < 47 || len(at) > 51 {
			t.Errorf("peer %d was asked %d times in 100 s", n, len(at))
		}
	}
}

// TestTimeUntilFailureIsNoticed checks what the README promises.
func TestTimeUntilFailureIsNoticed(t *testing.T) {
	for _, c := range []struct {
		peers  int
		onLink bool
		within time.Duration
	}{
		{1, false, 8 * time.Second}, {10, false, 9 * time.Second}, {10, true, 9 * time.Second},
		{1000, false, 3*time.Minute + 30*time.Second}, {20_000, false, 67*time.Minute + 10*time.Second},
		{1000, true, 34 * time.Minute},
	} {
		m := newModel(t, time.Second)
		m.set(only(c.onLink, upTo(c.peers)...), 0)
		limit := 2*c.within + time.Minute
		const n = 0
		m.until(n, OK, limit)
		m.down[n] = true
		fails := m.until(n, Failing, limit)
		m.down[n] = false
		returns := m.until(n, OK, limit)
		t.Logf("%d peers, on the link %v: failing after %v, ok after %v", c.peers, c.onLink, fails, returns)
		if fails > c.within || returns > 15*time.Second {
			t.Errorf("%d peers, on the link %v: failing after %v, want %v; ok again after %v", c.peers, c.onLink, fails, c.within, returns)
		}
	}
}

// TestTimeUntilLossIsNoticed: of a path that loses 40 % of the packets.
func TestTimeUntilLossIsNoticed(t *testing.T) {
	for _, c := range []struct {
		peers         int
		lossy, normal time.Duration
	}{
		{3, 90 * time.Second, 3 * time.Minute}, {1000, time.Hour, 15 * time.Minute}, {20_000, 8 * time.Hour, 5 * time.Hour},
	} {
		m := newModel(t, time.Second)
		m.set(only(false, upTo(c.peers)...), 0)
		const n = 0
		m.until(n, OK, 2*time.Hour)
		m.loss[n] = .4
		lossy := m.until(n, Lossy, 2*c.lossy)
		m.loss[n] = 0
		normal := m.until(n, OK, 2*c.normal)
		t.Logf("%d peers: lossy after %v, ok after %v", c.peers, lossy, normal)
		if lossy > c.lossy || normal > c.normal {
			t.Errorf("%d peers: lossy after %v, want %v; ok again after %v, want %v", c.peers, lossy, c.lossy, normal, c.normal)
		}
	}
}

// TestFailingPeersDoNotHideOthers: among a thousand peers of which a hundred are down for long,
// another one that fails is noticed almost as soon as without them.
func TestFailingPeersDoNotHideOthers(t *testing.T) {
	m := newModel(t, time.Second)
	m.set(only(false, upTo(1000)...), 0)
	m.run(10 * time.Minute)
	for n := range 100 {
		m.down[2*n] = true
	}
	m.run(30 * time.Minute)
	if got := m.stats.Peers; got != [states]int{Failing: 100, OK: 900} {
		t.Errorf("states %v", got)
	}
	m.down[999] = true
	if d := m.until(999, Failing, time.Hour); d > 8*time.Minute {
		t.Errorf("failing after %v", d)
	}
	if len(m.retries) > maxRetries {
		t.Errorf("%d peers are asked sooner", len(m.retries))
	}
	clear(m.down)
	m.run(30 * time.Minute)
	if got := m.stats.Peers; got != [states]int{OK: 1000} || len(m.retries) > 0 {
		t.Errorf("states %v at last, %d retries", got, len(m.retries))
	}
}

// TestRateOnOneLinkIsLimited: hosts on one link may need an ARP broadcast for each probe, so all of
// them together send as much as a hundred would, or as often as once an hour to each.
func TestRateOnOneLinkIsLimited(t *testing.T) {
	for _, c := range []struct {
		peers     int
		atMost    float64 // probes a second of a host
		roundMost time.Duration
	}{{100, 5, 20 * time.Second}, {200, 2.5, 80 * time.Second}, {1000, .5, 2000 * time.Second}, {3600, 1, time.Hour}} {
		for _, interval := range []time.Duration{time.Second, 10 * time.Second} {
			m := newModel(t, interval)
			m.set(only(true, upTo(c.peers)...), 0)
			m.run(2 * time.Hour)
			if rate := float64(m.times()) / m.now.Seconds(); rate > c.atMost*1.01 {
				t.Errorf("%d peers, interval %v: %v probes a second", c.peers, interval, rate)
			}
			most := max(c.roundMost, min(time.Hour, c.roundMost*time.Duration(interval/time.Second)))
			for n, at := range m.asked {
				for i := 1; i < len(at); i++ {
					if gap := at[i] - at[i-1]; gap > most+most/20 {
						t.Fatalf("%d peers, interval %v: peer %d was not asked for %v, want %v ", c.peers, interval, n, gap, most)
					}
				}
			}
		}
	}
}

func TestMTUFaultIsNoticed(t *testing.T) {
	m := newModel(t, time.Second)
	m.set(only(false, upTo(10)...), 0)
	m.run(time.Minute)
	m.narrow[3] = true
	if d := m.until(3, MTU, time.Minute); d > 25*time.Second {
		t.Errorf("after %v", d)
	}
	m.run(10 * time.Minute)
	if got := m.stats.Peers; got != [states]int{MTU: 1, OK: 9} {
		t.Errorf("states %v", got)
	}
	m.narrow[3] = false
	if d := m.until(3, OK, time.Minute); d > 15*time.Second {
		t.Errorf("no longer after %v", d)
	}
	m.mtu = smallSize // no full-size probes
	clear(m.full)
	if m.run(time.Minute); len(m.full) > 0 {
		t.Errorf("full-size probes with a small MTU: %v", m.full)
	}
}

func TestNewPeersAreAskedSoon(t *testing.T) {
	m := newModel(t, time.Second)
	m.set(only(false, upTo(2000)...), 0)
	m.run(time.Minute)
	m.set(only(false, upTo(2050)...), m.now)
	for n := range 50 {
		m.down[2000+n] = n%2 == 0 // never answers
	}
	m.run(time.Minute)
	for n := range 50 {
		if len(m.asked[2000+n]) == 0 {
			t.Errorf("peer %d was not asked", 2000+n)
		}
	}
	m.run(3 * time.Minute)
	if len(m.retries) > 0 {
		t.Errorf("%d peers that never answered are still asked sooner", len(m.retries))
	}
	if got := m.find(nth(2001)).state(); got != OK {
		t.Errorf("a new peer is %v", got)
	}
}

// TestPeersComeAndGo: what is known about the others is kept, and everything about those that go is
// forgotten, whatever the order.
func TestPeersComeAndGo(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	m := newModel(t, time.Second)
	there := map[int]bool{}
	for range 2000 {
		before := map[int]peer{}
		for i := range m.peers {
			before[m.peers[i].key.number()] = m.peers[i]
		}
		for range random.IntN(20) {
			n := random.IntN(200)
			if there[n] = !there[n]; !there[n] {
				delete(there, n)
			}
			m.down[n] = random.IntN(3) == 0
		}
		var now []int
		for n := range there {
			now = append(now, n)
		}
		slices.Sort(now)
		m.set(only(random.IntN(2) == 0, slices.Concat(now, now[:0])...), m.now)
		if len(m.peers) != len(now) || m.next > len(m.peers) {
			t.Fatalf("%d peers, want %d; next %d", len(m.peers), len(now), m.next)
		}
		sum := 0
		for _, n := range m.stats.Peers {
			sum += n
		}
		for i, n := range now {
			p := m.peers[i]
			if old, was := before[n]; p.key != nth(n) || was && p != old || !was && p != (peer{key: p.key}) {
				t.Fatalf("peer %d is %+v, was %+v", n, p, old)
			}
		}
		for _, w := range m.waiting {
			if !there[w.key.number()] {
				t.Fatalf("a probe of peer %d is left", w.key.number())
			}
		}
		for _, r := range m.retries {
			if !there[r.key.number()] {
				t.Fatalf("a retry of peer %d is left", r.key.number())
			}
		}
		if sum != len(now) {
			t.Fatalf("states %v of %d peers", m.stats.Peers, len(now))
		}
		for range random.IntN(30) {
			m.step()
		}
	}
	var counted [states]int
	for i := range m.peers {
		counted[m.peers[i].state()]++
	}
	if counted != m.stats.Peers {
		t.Errorf("counted %v, kept %v", counted, m.stats.Peers)
	}
}

func TestDevicesAndDuplicates(t *testing.T) {
	s := newSchedule(time.Second, rand.New(rand.NewPCG(1, 2)))
	s.set(func(yield func(target) bool) {
		for n := range 300 { // each by its own device
			for range 2 {
				if !yield(target{nth(n), string(rune('a' + n)), false}) {
					return
				}
			}
		}
	}, 0)
	if len(s.peers) != 256 || len(s.devices) != 256 {
		t.Fatalf("%d peers, %d devices", len(s.peers), len(s.devices))
	}
	s.begin(0)
	_, device, _ := s.pick(0, [tokenSize]byte{})
	if n := s.waiting[0].key.number(); device != string(rune('a'+n)) {
		t.Errorf("peer %d by device %q", n, device)
	}
}

// TestForgedAnswersCountNothing: only the peer itself can answer, and only with what was sent.
func TestForgedAnswersCountNothing(t *testing.T) {
	m := newModel(t, time.Second)
	m.set(only(false, 7), 0)
	m.begin(0)
	p, _, ok := m.pick(0, [tokenSize]byte{1, 2, 3})
	if !ok || p.addr != netip.MustParseAddr("10.0.7.0") || p.size != smallSize {
		t.Fatalf("probe %+v", p)
	}
	for _, forge := range []func(*echo){
		func(e *echo) { e.addr = e.addr.Next() },
		func(e *echo) { e.seq++ },
		func(e *echo) { e.token[15]++ },
		func(e *echo) { e.size++ },
		func(e *echo) { *e = echo{} },
	} {
		e := p.echo
		if forge(&e); e == p.echo {
			t.Fatal("not forged")
		}
		if m.answered(e, 1); m.stats.Answered > 0 || len(m.waiting) != 1 {
			t.Errorf("%+v counts", e)
		}
	}
	m.answered(p.echo, 1)
	m.answered(p.echo, 1) // a duplicate
	if m.stats.Answered != 1 || m.find(nth(7)).state() != OK {
		t.Errorf("%+v", m.stats)
	}
}

func TestAddressOfPeersWithoutDevice(t *testing.T) {
	s := newSchedule(time.Second, rand.New(rand.NewPCG(1, 2)))
	s.first = true
	s.set(only(true, 7), 0)
	s.begin(0)
	if p, _, _ := s.pick(0, [tokenSize]byte{}); p.addr != netip.MustParseAddr("10.0.7.1") {
		t.Errorf("asks %v", p.addr)
	}
}

// TestOwnStallIsNoLoss: if this process did not run, answers may have arrived in time.
func TestOwnStallIsNoLoss(t *testing.T) {
	m := newModel(t, time.Second)
	m.set(only(false, upTo(10)...), 0)
	m.run(time.Minute)
	for n := range 10 {
		m.down[n] = true
	}
	for range 20 {
		m.step()
		m.now += 2 * time.Second // stopped
	}
	if m.stats.Lost > 0 || m.stats.Peers[OK] != 10 {
		t.Errorf("%+v", m.stats)
	}
}

func TestProbesThatWereNotSentCountNothing(t *testing.T) {
	m := newModel(t, time.Second)
	m.set(only(false, 1), 0)
	for range 100 {
		m.now += m.interval
		m.begin(m.now)
		if p, _, ok := m.pick(m.now, [tokenSize]byte{}); ok {
			m.notSent(p.seq)
		}
	}
	if m.stats.Sent+m.stats.Lost > 0 || len(m.waiting) > 0 {
		t.Errorf("%+v", m.stats)
	}
}

// BenchmarkProbe is the cost of what is computed for one probe of 20,000 peers, of which 1 % fail.
func BenchmarkProbe(b *testing.B) {
	s := newSchedule(time.Second, rand.New(rand.NewPCG(1, 2)))
	s.mtu = 1450
	s.set(only(false, upTo(20_000)...), 0)
	now := time.Duration(0)
	for b.Loop() {
		now += s.interval / perInterval
		if now%s.interval == 0 {
			s.begin(now)
		}
		if p, _, ok := s.pick(now, [tokenSize]byte{}); ok && p.key.number()%100 != 0 {
			s.answered(p.echo, now+time.Millisecond)
		}
	}
}

// BenchmarkNewView is the cost of a change among 20,000 peers.
func BenchmarkNewView(b *testing.B) {
	s := newSchedule(time.Second, rand.New(rand.NewPCG(1, 2)))
	targets := slices.Collect(only(false, upTo(20_000)...))
	b.ReportAllocs()
	for b.Loop() {
		s.set(slices.Values(targets), 0)
	}
}
