package prober

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"time"
)

// State is what the probes of a peer have shown.
type State uint8

// States of a peer. If several apply, the last one counts.
const (
	Unknown State = iota // it has never answered, or no probes could be sent recently
	OK                   // it answers
	Lossy                // it does not answer some of the probes
	MTU                  // it answers, but not to full-size probes
	Failing              // it has answered before, and now answers hardly any probe

	states = iota
)

// String returns the name of the state.
func (s State) String() string {
	return [...]string{"unknown", "ok", "lossy", "mtu", "failing"}[s]
}

const (
	// window is the number of probes from which loss is computed, and recent that of the latest of
	// them.
	window, recent = 64, 16
	// A peer is failing after failingRun lost probes in a row, a lossy one if all recent ones were
	// lost. It is failing until failingRun answers in a row, and then lossy if it answered
	// failingAnswers times before. So a path that loses most packets stays failing, and one that
	// loses half of them stays lossy.
	failingRun, failingAnswers = 5, 2
	// A peer is lossy from lossyFrom lost probes in the window on, or lossyRecent of the recent
	// ones, until there are lossyUntil in the window. The bounds are far apart, so that no constant
	// loss changes the state often.
	lossyFrom, lossyRecent, lossyUntil = 16, 8, 3
	// suspectFrom is the number of recent losses from which on a peer may be lossy.
	suspectFrom = 2
	// mtuRun is the number of full-size probes in a row that must be lost, without the loss of a
	// small one between them, and lossyMTURun that for a lossy peer.
	mtuRun, lossyMTURun = 4, 8
	// fullEvery is the number of answers to small probes before the next full-size one.
	fullEvery = 4
)

// key identifies a peer: the address of its IPv4 subnet, and in the lowest byte the prefix length.
// Keys sort as lease.Subnets do.
type key uint64

func keyOf(subnet netip.Prefix) key {
	ip := subnet.Addr().As4()
	return key(binary.BigEndian.Uint32(ip[:]))<<8 | key(subnet.Bits())
}

func (k key) subnet() netip.Prefix {
	var ip [4]byte
	binary.BigEndian.PutUint32(ip[:], uint32(k>>8))
	return netip.PrefixFrom(netip.AddrFrom4(ip), int(k&0xff))
}

// peer is what is known about a peer. There are thousands, so it is small and has no pointers.
type peer struct {
	key    key
	lost   uint64 // the last probes, the latest in the lowest bit; 1 means lost
	device uint8  // index of the device by which packets leave

	answers, failing, lossy, mtu bool // answers: it has answered before

	asked     uint8  // number of valid bits in lost
	fullLost  uint8  // full-size probes lost in a row
	smallDone uint8  // answers to small probes since the last full-size one
	rtt, last uint32 // round-trip time in microseconds: smoothed, and the last
	changedAt uint32 // time of the last change of the state, in seconds since the start
	heardAt   uint32 // time of the last answer, likewise
	failures  uint32 // probes that were not answered in time
}

func (p *peer) state() State {
	switch {
	case p.failing:
		return Failing
	case p.mtu:
		return MTU
	case p.lossy:
		return Lossy
	case p.answers:
		return OK
	}
	return Unknown
}

// answered records the answer to a probe.
func (p *peer) answered(full bool, rtt time.Duration) {
	if full {
		p.fullLost, p.mtu = 0, false
		return
	}
	p.last = uint32(min(max(rtt, time.Microsecond), time.Minute) / time.Microsecond)
	if !p.answers {
		p.rtt, p.smallDone = p.last, fullEvery-1 // the next one is full-size
		p.answers = true
	}
	p.rtt += uint32((int64(p.last) - int64(p.rtt)) / 8) // as TCP does, RFC 6298
	p.smallDone = min(p.smallDone+1, fullEvery)
	p.record(0)
}

// missed records that a probe was not answered in time.
func (p *peer) missed(full bool) {
	switch {
	case !p.answers: // nothing is lost if nobody has answered yet
	case full:
		run := uint8(mtuRun)
		if p.lossy {
			run = lossyMTURun
		}
		p.fullLost = min(p.fullLost+1, lossyMTURun)
		p.mtu = p.mtu || p.fullLost >= run
	default:
		if !p.mtu {
			p.fullLost = 0 // full-size probes are lost for the same reason
		}
		p.record(1)
	}
}

// record adds the result of a small probe, and derives the state.
func (p *peer) record(lost uint64) {
	const run = 1<<failingRun - 1
	p.lost, p.asked = p.lost<<1|lost, min(p.asked+1, window)
	all, latest := bits.OnesCount64(p.lost), p.latest()
	switch {
	case !p.failing && (!p.lossy && p.lost&run == run || latest == recent):
		p.failing, p.lossy, p.mtu, p.fullLost = true, false, false, 0
	case p.failing && p.lost&run == 0:
		p.failing, p.smallDone = false, fullEvery
		// The older of two probes has the higher bit.
		before := uint16(p.lost >> failingRun)
		if p.lossy = bits.OnesCount16(before>>1&^before) >= failingAnswers; !p.lossy {
			p.lost, p.asked = 0, failingRun
		}
	case p.failing:
	case all <= lossyUntil:
		p.lossy = false
	case all >= lossyFrom, latest >= lossyRecent && p.lost&(run>>1) != run>>1: // it is not just about to fail
		p.lossy = true
	}
}

// latest returns how many of the recent probes were lost.
func (p *peer) latest() int { return bits.OnesCount16(uint16(p.lost)) }

// wantsFull reports whether the next probe should be full-size: now and then, and soon after one
// that was lost.
func (p *peer) wantsFull() bool {
	every := uint8(fullEvery)
	if p.fullLost > 0 && !p.mtu {
		every = 1
	}
	return p.answers && !p.failing && p.smallDone >= every
}

// undecided reports whether a few more probes may change the state.
func (p *peer) undecided() bool {
	lastLost := p.lost&1 != 0
	return p.answers && (p.failing != lastLost || p.fullLost > 0 && !p.mtu)
}

// suspect reports whether more probes are needed to find out how many packets are lost.
func (p *peer) suspect() bool {
	return p.answers && !p.failing && (p.lossy || p.latest() >= suspectFrom)
}

// loss returns the share of the last probes that were lost: of a failing peer the recent ones, else
// those in the window.
func (p *peer) loss() float64 {
	if p.failing {
		return float64(p.latest()) / float64(max(min(p.asked, recent), 1))
	}
	return float64(bits.OnesCount64(p.lost)) / float64(max(p.asked, 1))
}

// Result is what the probes of a peer have shown.
type Result struct {
	State State
	Loss  float64       // share of the last probes that were lost, 0 to 1; 0 if it is unknown
	RTT   time.Duration // smoothed; 0 if it is unknown
	Last  time.Duration // last round-trip time
	Since time.Time     // last change of State; zero if it was always Unknown
	Heard time.Time     // last answer; zero if there was none
	Lost  uint64        // probes of either size that were not answered in time, since the peer is known
}

func (p *peer) result(start time.Time) (r Result) {
	if !p.answers {
		return Result{Lost: uint64(p.failures)}
	}
	return Result{
		Lost:  uint64(p.failures),
		State: p.state(),
		Loss:  p.loss(),
		RTT:   time.Duration(p.rtt) * time.Microsecond,
		Last:  time.Duration(p.last) * time.Microsecond,
		Since: start.Add(time.Duration(p.changedAt) * time.Second),
		Heard: start.Add(time.Duration(p.heardAt) * time.Second),
	}
}
