package pace

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestTurnsInARow(t *testing.T) {
	p := Pace{Initial: 100 * time.Millisecond, Max: time.Second}
	begin := time.Now()
	now := begin
	for i, want := range []time.Duration{0, 100, 200, 400, 800, 1000, 1000} {
		if d := p.Next(now); d != want*time.Millisecond {
			t.Errorf("turn %d waits for %v, want %v ms", i, d, int(want))
		}
		now = now.Add(want * time.Millisecond)
	}
	// An event later than its earliest time does not wait, but does not count as a quiet period
	// yet.
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
	if d := p.Delay(now); d != p.Initial {
		t.Errorf("the second turn after a quiet time waits for %v", d)
	}
}

// At any rate of requests, there are a few turns at once, and then no more than the limit allows.
func TestFloor(t *testing.T) {
	const most = time.Second
	for _, every := range []time.Duration{0, time.Millisecond, 99 * time.Millisecond, 250 * time.Millisecond, 999 * time.Millisecond, 1999 * time.Millisecond} {
		p := Pace{Initial: 100 * time.Millisecond, Max: most}
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

func TestBackoffDoublesUpToMost(t *testing.T) {
	b := Backoff{Initial: time.Second, Max: 5 * time.Second}
	for _, want := range []time.Duration{1, 2, 4, 5, 5} {
		if d := b.Failed(); d != want*time.Second {
			t.Errorf("%v, want %v s", d, int(want))
		}
	}
	b.Reset()
	if d := b.Failed(); d != time.Second {
		t.Errorf("after a success: %v", d)
	}
}

func TestRestsLeaveAShareOfTheTime(t *testing.T) {
	s := Share{OneIn: 20, Min: time.Second, Max: 30 * time.Second}
	for took, want := range map[time.Duration]time.Duration{
		0: time.Second, 100 * time.Millisecond: 2 * time.Second, time.Minute: 30 * time.Second,
	} {
		if d := s.Rest(took); d != want {
			t.Errorf("after %v: %v, want %v", took, d, want)
		}
	}
	if d := (Share{OneIn: 3}).Rest(time.Hour); d != 3*time.Hour {
		t.Errorf("without bounds: %v", d)
	}
}

// TestFightBeginsAndEnds: accidents are repaired at once; who undoes repairs again and again has
// them slowed down until there was peace.
func TestFightBeginsAndEnds(t *testing.T) {
	f := Fight{Limits: &Limits{Burst: 3, Leak: time.Second, Pause: 5 * time.Second}}
	now := time.Now()
	for range 100 { // one per second is not a conflict
		if d := f.Repaired(now); d != 0 {
			t.Fatalf("a repair each second is a fight: %v", d)
		}
		now = now.Add(time.Second)
	}
	for range f.Burst {
		f.Repaired(now)
	}
	for i := range 10 {
		if d := f.Repaired(now); d != f.Pause || !f.On(now) {
			t.Fatalf("repair %d: %v, on: %v", i, d, f.On(now))
		}
		now = now.Add(f.Pause)
	}
	if now = now.Add(2 * f.Pause); !f.On(now) || f.Quiet(now) {
		t.Error("it ends while repairs are remembered")
	}
	if now = now.Add(2 * f.Pause); f.On(now) || !f.Quiet(now) {
		t.Error("it does not end")
	}
	if d := f.Repaired(now); d != 0 {
		t.Errorf("after it: %v", d)
	}
}

func TestSleepEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		if err := Sleep(t.Context(), time.Minute); err != nil || time.Since(begun) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := Sleep(ctx, time.Minute); err == nil || time.Since(begun) != time.Minute+time.Second {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		if Sleep(ctx, 0) == nil || Sleep(t.Context(), 0) != nil {
			t.Error("not to wait does not say whether the context has ended")
		}
	})
}

func TestAlarmRingsAtTheEarliestTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, begun := NewAlarm(), time.Now()
		for _, d := range []time.Duration{time.Minute, time.Second, time.Hour} {
			a.SetWithin(d)
		}
		<-a.C
		if a.Received(); time.Since(begun) != time.Second {
			t.Errorf("it rang after %v", time.Since(begun))
		}
		a.SetWithin(time.Hour)
		<-a.C
		if time.Since(begun) != time.Hour+time.Second {
			t.Errorf("it rang again after %v", time.Since(begun))
		}
	})
}

// TestBudgetLeavesTimeToOthers: a burst is free, then costs are one part in Share of the time.
func TestBudgetLeavesTimeToOthers(t *testing.T) {
	var clock time.Duration
	b := Budget{Clock: func() time.Duration { return clock }, OneIn: 10, Burst: time.Second, Max: time.Minute}
	now := time.Now()
	begin, spent, rests := now, time.Duration(0), 0
	for now.Sub(begin) < 10*time.Minute {
		if d := b.Rest(now); d > 0 {
			if rests++; d > b.Max {
				t.Fatalf("a rest of %v", d)
			}
			now = now.Add(d)
			continue
		}
		b.Begin()
		clock, now = clock+300*time.Millisecond, now.Add(300*time.Millisecond)
		if took := b.Spend(now); took != 300*time.Millisecond {
			t.Fatalf("took %v", took)
		}
		spent += 300 * time.Millisecond
		if spent <= b.Burst && rests > 0 {
			t.Error("a burst is not free")
		}
	}
	if share := 10 * time.Minute / 10; spent > share+2*b.Burst || spent < share/2 || !b.Over() {
		t.Errorf("spent %v, over: %v", spent, b.Over())
	}
	if b.Rest(now.Add(time.Minute)) != 0 || b.Over() {
		t.Error("it is not forgotten")
	}
	if a := ProcessTime(); a <= 0 || ProcessTime() < a {
		t.Errorf("process time %v", a)
	}
}
