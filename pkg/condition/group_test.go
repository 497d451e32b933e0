package condition

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// What waits for its time costs nothing when more comes.
func TestGroupOfThousands(t *testing.T) {
	var b strings.Builder
	g := NewGroup(slog.New(slog.NewTextHandler(&b, nil)), slog.LevelWarn, "skipped", "no longer skipped")
	now := time.Now()
	begin := now
	objects := 50_000
	if testing.Short() { // in emulation
		objects = 5000
	}
	for i := range objects {
		g.Set(fmt.Sprint(i), Reason{Kind: "it is bad"})
		now = now.Add(10 * time.Microsecond)
		g.Flush(now)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("%v", took)
	}
	if n := strings.Count(b.String(), "\n"); n != 1 {
		t.Errorf("%d lines", n)
	}
	again := g.Flush(now)
	if again <= 0 || g.Flush(now.Add(again)) != 0 || !strings.Contains(b.String(), fmt.Sprint("count=", objects-1)) {
		t.Errorf("again after %v:\n%s", again, b.String())
	}
	for i := range objects {
		g.End(fmt.Sprint(i))
	}
	for at, n := now.Add(again), 0; ; n++ {
		wait := g.Flush(at)
		if wait == 0 {
			break
		}
		if at = at.Add(wait); n > 3 {
			t.Fatal("it never ends")
		}
	}
	if !strings.Contains(b.String(), fmt.Sprintf("no longer skipped\" count=%d", objects)) {
		t.Errorf("logged\n%s", b.String())
	}
}

// TestGroupOfManyIsOneLine: what begins or ends for many objects at about one time and for
// one reason is one line, whatever their details.
func TestGroupOfManyIsOneLine(t *testing.T) {
	var log strings.Builder
	g := NewGroup(timeless(&log), slog.LevelWarn, "skipped peers", "no longer skipping peers")
	start := time.Unix(1000, 0)
	object := func(n int) string { return fmt.Sprintf("10.42.%d.0/24", n) }
	own := func(n int) Reason { return Reason{"public IP is our own", fmt.Sprintf("198.51.100.%d", n)} }
	flush := func(after, again time.Duration, want ...string) {
		t.Helper()
		log.Reset()
		if got := g.Flush(start.Add(after)); got != again {
			t.Errorf("after %v: again after %v, want %v", after, got, again)
		}
		if got := strings.TrimSpace(log.String()); got != strings.Join(want, "\n") {
			t.Errorf("after %v:\n%s\nwant\n%s", after, got, strings.Join(want, "\n"))
		}
	}
	flush(0, 0)
	for n := range 17 {
		g.Set(object(n), own(n))
	}
	g.Set("10.42.30.0/24", Reason{Kind: "no MAC"})
	flush(0, 0,
		`level=WARN msg="skipped peers" count=1 reason="no MAC" examples=10.42.30.0/24`,
		`level=WARN msg="skipped peers" count=17 reason="public IP is our own" examples="10.42.0.0/24 (198.51.100.0), 10.42.1.0/24 (198.51.100.1), 10.42.2.0/24 (198.51.100.2)"`)
	flush(0, 0)
	// More of them, one by one: gathered. What begins and ends meanwhile is not logged.
	g.Set(object(17), own(17))
	flush(time.Second, 4*time.Second)
	g.Set(object(18), own(18))
	g.Set(object(19), own(19))
	g.End(object(19))
	g.End("10.42.30.0/24")
	g.Set("10.42.30.0/24", Reason{Kind: "no MAC"})
	flush(2*time.Second, 3*time.Second)
	flush(5*time.Second, 0, `level=WARN msg="skipped peers" count=2 reason="public IP is our own" examples="10.42.17.0/24 (198.51.100.17), 10.42.18.0/24 (198.51.100.18)" total=19`)
	// Another detail is news, another reason is one of the new reason.
	g.Set(object(0), own(99))
	g.Set(object(1), Reason{Kind: "no MAC"})
	flush(time.Minute, 0,
		`level=WARN msg="skipped peers" count=1 reason="no MAC" examples=10.42.1.0/24 total=2`,
		`level=WARN msg="skipped peers" count=1 reason="public IP is our own" examples="10.42.0.0/24 (198.51.100.99)" total=18`)
	g.Replace(map[string]Reason{object(1): {Kind: "no MAC"}})
	flush(2*time.Minute, 0,
		`level=INFO msg="no longer skipping peers" count=1 reason="no MAC" examples=10.42.30.0/24`,
		`level=INFO msg="no longer skipping peers" count=18 reason="public IP is our own" examples="10.42.2.0/24 (198.51.100.2), 10.42.3.0/24 (198.51.100.3), 10.42.4.0/24 (198.51.100.4)" total=0`)
	if len(g.current) != 1 || len(g.logged) != 1 || len(g.dirty) != 0 || len(g.quietUntil) > 2 {
		t.Errorf("kept: %v, %v, %v, %v", g.current, g.logged, g.dirty, g.quietUntil)
	}
}
