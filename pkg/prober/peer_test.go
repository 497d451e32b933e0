package prober

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"flanneld/pkg/lease"
)

// feed records results of small probes: + is an answer, - a loss; f and F are those of full-size
// ones, F the loss.
func feed(p *peer, results string) {
	for _, r := range results {
		switch r {
		case '+':
			p.answered(false, time.Millisecond)
		case '-':
			p.missed(false)
		case 'f':
			p.answered(true, time.Millisecond)
		case 'F':
			p.missed(true)
		}
	}
}

func TestStateFollowsFromResults(t *testing.T) {
	for _, c := range []struct {
		results   string
		state     State
		undecided bool
	}{
		{"", Unknown, false},
		{"--------------------", Unknown, false},
		{"----+", OK, false},
		{"+", OK, false},
		{"+-", OK, true},
		{"+----", OK, true},
		{"+-----", Failing, false},
		{"+-----+", Failing, true},
		{"+-----++++", Failing, true},
		{"+-----+++++", OK, false},
		{"+-----++++-+++++", OK, false},
		{"+-----+++++-----", Failing, false},
		{"+---+---++++++", OK, false},
		{"+---+---+--++", Lossy, false}, // 8 of 16
		{"+-+-+-+-+-+-+-+-+", Lossy, false},
		{"+" + strings.Repeat("+++-", 15) + "+", OK, false}, // 15 of 61
		{"+" + strings.Repeat("+++-", 16) + "+", Lossy, false},
		{"+" + strings.Repeat("+++-", 16) + strings.Repeat("+", 48), Lossy, false},
		{"+" + strings.Repeat("+++-", 16) + strings.Repeat("+", 52), OK, false},
		{"+---+---+--++---------------", Lossy, true},
		{"+---+---+--++----------------", Failing, false},           // all of 16
		{"+---+---+--++----------------+++++", OK, false},           // it was off
		{"+---+---+--++----------------+---+--+++++", Lossy, false}, // it was not
		{"+-----+---+---+++++", Lossy, false},
		{"+F", OK, true},
		{"+F+F+F", OK, true},
		{"+F+F+F+F", MTU, false},
		{"+F+F-+F+F", OK, true}, // small ones are lost too
		{"+F+Ff+F+F", OK, true},
		{"+F+F+F+F+-+", MTU, false},
		{"+F+F+F+F+f", OK, false},
		{"+F+F+F+F-----", Failing, false},
		{"+F+F+F+F-----+++++", OK, false}, // asked again
		{"FFFFF", Unknown, false},
	} {
		var p peer
		feed(&p, c.results)
		if p.state() != c.state || p.undecided() != c.undecided {
			t.Errorf("%s: %v, undecided %v; want %v, %v", c.results, p.state(), p.undecided(), c.state, c.undecided)
		}
	}
}

func TestFullSizeProbesAreRare(t *testing.T) {
	var p peer
	want := func(results string, full bool) {
		t.Helper()
		if feed(&p, results); p.wantsFull() != full {
			t.Errorf("after %s: full-size %v", results, !full)
		}
		if full {
			p.smallDone = 0
		}
	}
	want("-", false)
	want("+", true) // the first answer
	want("f+", false)
	want("++", false)
	want("+", true)
	want("F", false)
	want("+", true) // to confirm the loss
	want("F+", true)
	want("f+", false)
	want("-----", false)
	want("+", false) // no longer failing first
	want("++++", true)
}

func TestRTTIsSmoothed(t *testing.T) {
	var p peer
	p.answered(false, 10*time.Millisecond)
	if r := p.result(time.Time{}); r.RTT != 10*time.Millisecond || r.Last != r.RTT {
		t.Errorf("first: %+v", r)
	}
	p.answered(false, 2*time.Millisecond)
	if r := p.result(time.Time{}); r.RTT != 9*time.Millisecond || r.Last != 2*time.Millisecond {
		t.Errorf("second: %+v", r)
	}
	p.answered(true, time.Hour)
	p.answered(false, -time.Hour)
	if r := p.result(time.Time{}); r.RTT > 9*time.Millisecond || r.Last != time.Microsecond {
		t.Errorf("impossible times: %+v", r)
	}
	p.answered(false, 100*time.Hour)
	if r := p.result(time.Time{}); r.Last != time.Minute {
		t.Errorf("too long: %+v", r)
	}
}

func TestLossIsThatOfTheWindow(t *testing.T) {
	var p peer
	for _, c := range []struct {
		results string
		loss    float64
	}{{"---", 0}, {"+", 0}, {"-", .5}, {"++", .25}, {strings.Repeat("+", 60), 1. / 64}, {"+", 1. / 64}, {"+", 0}, {"-----", 5. / 16}} {
		if feed(&p, c.results); p.result(time.Time{}).Loss != c.loss {
			t.Errorf("after %s: loss %v, want %v", c.results, p.result(time.Time{}).Loss, c.loss)
		}
	}
}

// TestLossyPathDoesNotFlap: a path with any constant loss changes its state rarely, and is not
// called ok if it loses a quarter of the packets or more.
func TestLossyPathDoesNotFlap(t *testing.T) {
	const probes, seldom = 100_000, 600
	for _, percent := range []int{1, 2, 3, 5, 6, 8, 10, 11, 13, 15, 18, 20, 22, 24, 25, 26, 28, 30, 35, 40, 45, 50, 55, 59, 60, 61, 65, 70, 75, 80, 84, 85, 86, 90, 95, 99} {
		random := rand.New(rand.NewPCG(1, uint64(percent)))
		lost := func() bool { return random.Float64() < float64(percent)/100 }
		var p peer
		feed(&p, "+")
		changes, first, in := 0, 0, [states]int{}
		for i := range probes {
			was := p.state()
			full := p.wantsFull()
			if full {
				p.smallDone = 0
			}
			if lost() {
				p.missed(full)
			} else {
				p.answered(full, time.Millisecond)
			}
			if p.state() != was {
				if changes++; first == 0 {
					first = i
				}
			}
			in[p.state()]++
		}
		if changes > probes/seldom {
			t.Errorf("%d %%: %d changes", percent, changes)
		}
		share := func(states ...State) (s float64) {
			for _, of := range states {
				s += float64(in[of]) / probes
			}
			return s
		}
		switch {
		case percent <= 5 && share(OK) < 1,
			percent <= 10 && share(OK) < .95,
			percent >= 25 && percent <= 60 && share(Lossy) < .98,
			percent >= 25 && share(Lossy, Failing) < .99,
			percent >= 85 && share(Failing) < .98,
			percent >= 30 && first > 150:
			t.Errorf("%d %%: %v of %v, first change after %d", percent, in, probes, first)
		}
	}
}

func TestPeerIsSmall(t *testing.T) {
	if size := unsafe.Sizeof(peer{}); size > 48 {
		t.Errorf("%d bytes", size)
	}
}

func TestStatesHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for s := range State(states) {
		seen[s.String()] = true
	}
	if len(seen) != states || !seen["unknown"] {
		t.Errorf("names %v", seen)
	}
}

func TestKeysSortAsSubnets(t *testing.T) {
	var keys []key
	var subnets []lease.Subnets
	for _, s := range []string{"0.0.0.0/0", "10.42.0.0/16", "10.42.0.0/24", "10.42.1.0/24", "192.168.0.0/30", "255.255.255.255/32"} {
		p := netip.MustParsePrefix(s)
		if keyOf(p).subnet() != p {
			t.Errorf("%v becomes %v", p, keyOf(p).subnet())
		}
		keys, subnets = append(keys, keyOf(p)), append(subnets, lease.SubnetsOf(p))
	}
	if !slices.IsSorted(keys) || !slices.IsSortedFunc(subnets, lease.Subnets.Compare) {
		t.Errorf("not sorted: %x, %v", keys, subnets)
	}
}
