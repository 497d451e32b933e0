package pace

import (
	"testing"
	"time"
)

func TestTurnsInARow(t *testing.T) {
	p := Pace{First: 100 * time.Millisecond, Most: time.Second}
	begin := time.Now()
	now := begin
	for i, want := range []time.Duration{0, 100, 200, 400, 800, 1000, 1000} {
		if d := p.Next(now); d != want*time.Millisecond {
			t.Errorf("turn %d waits for %v, want %v ms", i, d, int(want))
		}
		now = now.Add(want * time.Millisecond)
	}
	// What comes later than it need wait for does not wait, and is no quiet time yet.
	now = now.Add(1500 * time.Millisecond)
	if d := p.Delay(now); d != 0 {
		t.Errorf("a late turn waits for %v", d)
	}
	p.Turn(now)
	if d := p.Delay(now.Add(300 * time.Millisecond)); d != 700*time.Millisecond {
		t.Errorf("the one after it waits for %v", d)
	}
	now = now.Add(2 * time.Second)
	p.Turn(now)
	if d := p.Delay(now); d != p.First {
		t.Errorf("the second turn after a quiet time waits for %v", d)
	}
}

// Whatever the interval at which something is wanted, there are a few turns at once, and then no
// more than the floor allows.
func TestFloor(t *testing.T) {
	const most = time.Second
	for _, every := range []time.Duration{0, time.Millisecond, 99 * time.Millisecond, 250 * time.Millisecond, 999 * time.Millisecond, 1999 * time.Millisecond} {
		p := Pace{First: 100 * time.Millisecond, Most: most}
		begin := time.Now()
		turns, now := 0, begin
		for now.Sub(begin) < time.Minute {
			now = now.Add(p.Next(now) + every)
			turns++
		}
		if limit := 6 + int(time.Minute/max(most, every)); turns > limit {
			t.Errorf("%d turns a minute, wanted each %v; the limit is %d", turns, every, limit)
		}
	}
}
