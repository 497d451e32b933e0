package prober

import (
	"iter"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sort"
	"time"
)

const (
	// perInterval is the number of probes in each interval, whatever the number of peers.
	perInterval = 5
	// perRound is the least number of intervals of a round, so that few peers are asked less often.
	perRound = 2
	// timeout is the time after which a probe counts as lost. It is less than the default interval,
	// so that the probes of one interval are decided at the next one.
	timeout = 900 * time.Millisecond
	// stall is the delay of an interval from which on it is unknown whether answers have arrived in
	// time.
	stall = 500 * time.Millisecond

	// Peers on the uplink's own link may need an ARP broadcast for each probe, which all hosts of
	// the link receive. So with more than linkPeers of them, each host sends less, and the link
	// carries as many probes as with linkPeers hosts. But a round lasts at most linkRound.
	linkPeers = 100
	linkRound = time.Hour

	// maxRetries is the number of peers that are asked sooner than in turn.
	maxRetries = 64
	// A failing peer is asked less and less often, with pauses up to retryPause. In a large network,
	// the pauses of failing and of lossy peers are longer, so that not all hosts together ask one
	// more than about 100 times a second.
	retryPause        = 30 * time.Second
	retryPausePerPeer = 10 * time.Millisecond
	// newPerPeer spreads the first probes of all hosts to a new peer over some time.
	newPerPeer = time.Millisecond
)

// target is a peer that should be probed.
type target struct {
	key    key
	device string // by which packets leave; "" for the one of the kernel's route
	onLink bool   // the device is the uplink
}

// probe is an echo request that was not answered yet.
type probe struct {
	echo
	key  key
	full bool
	sent time.Duration
}

// retry is a peer to ask sooner than in turn.
type retry struct {
	key   key
	due   time.Duration
	pause time.Duration // before the next one, if this one is lost too
}

// schedule decides which peer is asked next, and keeps what is known about each. Times are those
// since the start. It does no I/O. Its methods are for one goroutine at a time.
//
// Peers are asked in turn, sorted by subnet, from a random one on. Some are asked sooner: new ones,
// those that have just lost a probe, and those that are failing or may be lossy. They get at most
// three of five probes, so that a round takes at most 2.5 times as long as without them.
type schedule struct {
	interval time.Duration
	random   *rand.Rand

	peers   []peer // sorted by key
	devices []string
	onLink  int  // number of peers on the uplink's link
	first   bool // a peer is asked at the first address of its subnet, else at the network address
	mtu     int  // size of a full-size probe in bytes

	next    int           // index of the peer whose turn it is
	begunAt time.Duration // when this interval began
	roundAt time.Duration // when the interval of the last round's beginning began
	credit  float64       // probes that may be sent in this interval
	picks   int           // probes so far
	retries []retry
	waiting []probe // for an answer

	stats   Stats
	changes int // number of changes of states so far
}

func newSchedule(interval time.Duration, random *rand.Rand) *schedule {
	return &schedule{interval: interval, random: random, roundAt: -perRound * interval}
}

// set replaces the peers by those of targets, which are sorted by key. What is known about a peer
// is kept.
func (s *schedule) set(targets iter.Seq[target], now time.Duration) {
	before, turn, known := s.peers, ^key(0), len(s.peers) > 0
	if s.next < len(before) {
		turn = before[s.next].key
	}
	s.peers, s.devices, s.onLink = make([]peer, 0, len(before)), nil, 0
	var added []key
	for t := range targets {
		if n := len(s.peers); n > 0 && s.peers[n-1].key == t.key {
			continue
		}
		device := slices.Index(s.devices, t.device)
		if device < 0 {
			if device = len(s.devices); device > 255 {
				continue
			}
			s.devices = append(s.devices, t.device)
		}
		if t.onLink {
			s.onLink++
		}
		for len(before) > 0 && before[0].key < t.key {
			before = before[1:]
		}
		p := peer{key: t.key}
		if len(before) > 0 && before[0].key == t.key {
			p = before[0]
		} else if len(added) <= maxRetries {
			added = append(added, t.key)
		}
		p.device = uint8(device)
		s.peers = append(s.peers, p)
	}
	s.waiting = slices.DeleteFunc(s.waiting, func(w probe) bool { return s.find(w.key) == nil })
	s.retries = slices.DeleteFunc(s.retries, func(r retry) bool { return s.find(r.key) == nil })
	switch {
	case known && len(added) <= maxRetries:
		for _, k := range added {
			s.retry(retry{k, now + time.Duration(s.random.Int64N(int64(len(s.peers))))*newPerPeer, s.interval})
		}
		fallthrough
	case known:
		s.next = s.search(turn)
	case len(s.peers) > 0:
		s.next = s.random.IntN(len(s.peers))
	}
	s.recount()
}

// search returns the index of the first peer that is not before k.
func (s *schedule) search(k key) int {
	return sort.Search(len(s.peers), func(i int) bool { return s.peers[i].key >= k })
}

// find returns a peer, or nil. The pointer is valid until the next set.
func (s *schedule) find(k key) *peer {
	if i := s.search(k); i < len(s.peers) && s.peers[i].key == k {
		return &s.peers[i]
	}
	return nil
}

// recount counts the states of all peers.
func (s *schedule) recount() {
	was := s.stats.Peers
	s.stats.Peers = [states]int{}
	for i := range s.peers {
		s.stats.Peers[s.peers[i].state()]++
	}
	if s.stats.Peers != was {
		s.changes++
	}
}

// rate returns how many probes may be sent in an interval.
func (s *schedule) rate() float64 {
	if s.onLink <= linkPeers {
		return perInterval
	}
	atLeast := float64(len(s.peers)) * float64(s.interval) / float64(linkRound)
	return min(perInterval, max(perInterval*linkPeers/float64(s.onLink), atLeast))
}

// begin begins an interval: it records the probes that were not answered in time, and allows new
// ones.
func (s *schedule) begin(now time.Duration) {
	s.expire(now)
	s.begunAt = now
	rate := s.rate()
	s.credit = min(s.credit+rate, rate+1, perInterval) // a fraction is kept
}

// pause returns the time from the beginning of this interval to that of the next one in which there
// is something to do.
func (s *schedule) pause() time.Duration {
	if len(s.waiting) > 0 || len(s.retries) > 0 || s.next < len(s.peers) {
		return s.interval
	}
	return max(s.interval, s.roundAt+perRound*s.interval-s.begunAt)
}

// pick returns the next probe to send in this interval, if there is one. token is unpredictable.
func (s *schedule) pick(now time.Duration, token [tokenSize]byte) (p probe, device string, ok bool) {
	if s.credit < 1 || len(s.peers) == 0 {
		return probe{}, "", false
	}
	// Every other of five probes goes to the peers in turn.
	first, second := s.pickRetry, s.pickNext
	if s.picks%perInterval%2 == 1 {
		first, second = second, first
	}
	to := first(now)
	if to == nil {
		to = second(now)
	}
	if to == nil {
		return probe{}, "", false
	}
	s.picks++
	s.credit--
	p = probe{key: to.key, full: s.mtu > smallSize && to.wantsFull(), sent: now}
	p.echo = echo{addr: s.addr(to.key), seq: uint16(s.picks), token: token, size: smallSize}
	if p.full {
		to.smallDone, p.size = 0, s.mtu
	}
	s.waiting = append(s.waiting, p)
	s.stats.Sent++
	return p, s.devices[to.device], true
}

// pickRetry returns the peer to ask sooner that is due first, or nil.
func (s *schedule) pickRetry(now time.Duration) *peer {
	best := -1
	for i, r := range s.retries {
		if r.due <= now && (best < 0 || r.due < s.retries[best].due) && !s.isWaiting(r.key) {
			best = i
		}
	}
	if best < 0 {
		return nil
	}
	s.retries[best].due = now + s.interval
	return s.find(s.retries[best].key)
}

// pickNext returns the peer whose turn it is, or nil.
func (s *schedule) pickNext(now time.Duration) *peer {
	if s.next >= len(s.peers) {
		// Half an interval less, because intervals do not begin exactly in time.
		if s.begunAt-s.roundAt < perRound*s.interval-s.interval/2 {
			return nil
		}
		s.next, s.roundAt = 0, s.begunAt
	}
	for s.next < len(s.peers) {
		p := &s.peers[s.next]
		s.next++
		if !s.isWaiting(p.key) {
			return p
		}
	}
	return nil
}

// addr returns the overlay address of a peer.
func (s *schedule) addr(k key) netip.Addr {
	addr := k.subnet().Addr()
	if s.first {
		return addr.Next()
	}
	return addr
}

func (s *schedule) isWaiting(k key) bool {
	return slices.ContainsFunc(s.waiting, func(w probe) bool { return w.key == k })
}

// take removes a probe that waits for its answer.
func (s *schedule) take(seq uint16) (w probe, ok bool) {
	i := slices.IndexFunc(s.waiting, func(w probe) bool { return w.seq == seq })
	if i < 0 {
		return probe{}, false
	}
	w = s.waiting[i]
	s.waiting = slices.Delete(s.waiting, i, i+1)
	return w, true
}

// answered records an answer, if it is that of a probe.
func (s *schedule) answered(e echo, now time.Duration) {
	i := slices.IndexFunc(s.waiting, func(w probe) bool { return w.echo == e })
	if i < 0 {
		return
	}
	w, _ := s.take(e.seq)
	s.stats.Answered++
	s.done(w, now, func(p *peer) {
		p.answered(w.full, now-w.sent)
		p.heardAt = uint32(now / time.Second)
	})
}

// notSent forgets a probe that this host could not send, which says nothing about the peer.
func (s *schedule) notSent(seq uint16) {
	if _, ok := s.take(seq); ok {
		s.stats.Sent--
	}
}

// expire records the probes that were not answered in time. If this process itself did not run for
// a while, nothing is known about their answers.
func (s *schedule) expire(now time.Duration) {
	late := now-s.begunAt > s.interval+stall
	for len(s.waiting) > 0 && now-s.waiting[0].sent >= timeout {
		w, _ := s.take(s.waiting[0].seq)
		if !late {
			s.stats.Lost++
			s.done(w, now, func(p *peer) {
				p.missed(w.full)
				p.failures++
			})
		}
	}
}

// done applies the result of a probe to its peer, and decides when to ask the peer again.
func (s *schedule) done(w probe, now time.Duration, apply func(*peer)) {
	p := s.find(w.key)
	if p == nil {
		return
	}
	was := p.state()
	apply(p)
	if is := p.state(); is != was {
		p.changedAt = uint32(now / time.Second)
		s.stats.Peers[was]--
		s.stats.Peers[is]++
		s.changes++
	}
	i := slices.IndexFunc(s.retries, func(r retry) bool { return r.key == w.key })
	share := time.Duration(len(s.peers)) * retryPausePerPeer
	longest, pause := max(retryPause, share), max(perRound*s.interval, share)
	switch {
	case p.undecided() && i < 0:
		s.retry(retry{w.key, now, s.interval})
	case p.undecided():
		s.retries[i].due, s.retries[i].pause = max(now, w.sent+s.interval), s.interval
	case p.failing && i < 0:
		s.retry(retry{w.key, now + s.interval, 2 * s.interval})
	case p.failing && w.full: // a full-size probe from before says nothing
	case p.failing:
		pause = min(s.retries[i].pause, longest)
		s.retries[i].due, s.retries[i].pause = now+pause, 2*pause
	case p.suspect():
		// Less urgent than peers that may be failing, and no burden for the peer either.
		r := retry{w.key, max(now, w.sent+pause), pause}
		if i < 0 {
			s.retry(r)
		} else {
			s.retries[i] = r
		}
	case i < 0:
	case p.answers || s.retries[i].pause > longest: // decided, or not to be decided soon
		s.retries = slices.Delete(s.retries, i, i+1)
	default: // new
		s.retries[i].due, s.retries[i].pause = now+s.retries[i].pause, 2*s.retries[i].pause
	}
}

// retry adds a peer to those that are asked sooner. If there are too many, the one with the longest
// pause, whose state is the least likely to change, is removed.
func (s *schedule) retry(r retry) {
	if len(s.retries) < maxRetries {
		s.retries = append(s.retries, r)
		return
	}
	longest := 0
	for i := range s.retries {
		if s.retries[i].pause > s.retries[longest].pause {
			longest = i
		}
	}
	if s.retries[longest].pause > r.pause {
		s.retries[longest] = r
	}
}
