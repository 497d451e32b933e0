package condition

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// timeless returns a log without times.
func timeless(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

func TestConditionIsLoggedWhenItBeginsChangesAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := NewList(timeless(&out))
		c := Condition{ID: "docker-subnet", Text: "docker0 is not on the leased subnet", Fields: []any{"device", "docker0"}, Command: "systemctl restart docker"}
		l.Set(c)
		l.Set(c)
		began := time.Now()
		time.Sleep(time.Minute)
		c.Severity = Severe
		l.Set(c)
		if now := l.Current(); len(now) != 1 || !now[0].Since.Equal(began) {
			t.Errorf("current: %v, want one since %v", now, began)
		}
		l.End("docker-subnet")
		l.End("docker-subnet")
		l.SetError(Condition{ID: "unread", Text: "cannot be read", Ended: "can be read"}, errors.New("no"))
		l.Begin(Condition{ID: "unread", Text: "cannot be read", Ended: "can be read", Fields: []any{"err", "neither"}})
		l.SetError(Condition{ID: "unread"}, nil)
		want := `level=WARN msg="docker0 is not on the leased subnet" device=docker0 command="systemctl restart docker"
level=ERROR msg="docker0 is not on the leased subnet" device=docker0 command="systemctl restart docker"
level=INFO msg="no longer: docker0 is not on the leased subnet" device=docker0 duration=1m0s
level=WARN msg="cannot be read" err=no
level=INFO msg="can be read" err=no duration=0s
`
		if out.String() != want {
			t.Errorf("logged:\n%swant:\n%s", out.String(), want)
		}
	})
}

func TestReplaceEndsWhatTheCheckFindsNoMore(t *testing.T) {
	l := NewList(slog.New(slog.DiscardHandler))
	l.Set(Condition{ID: "other"})
	l.Replace("route/", []Condition{{ID: "route/a"}, {ID: "route/b"}})
	l.Replace("route/", []Condition{{ID: "route/b"}, {ID: "route/c"}})
	var ids []string
	for _, c := range l.Current() {
		ids = append(ids, c.ID)
	}
	slices.Sort(ids)
	if got := strings.Join(ids, " "); got != "other route/b route/c" {
		t.Errorf("left: %s", got)
	}
}

// TestConditionThatFlapsOnIsLoggedOnceAMinute: it never lasts, and is not forgotten.
func TestConditionThatFlapsOnIsLoggedOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := NewList(slog.New(slog.NewTextHandler(&out, nil)))
		for i := range 1000 {
			l.Set(Condition{ID: "rules", Text: "rules are missing", Fields: []any{"count", i}})
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if n := strings.Count(out.String(), "\n"); n < 15 || n > flapVariants+flapLines+1000/60 {
			t.Errorf("%d lines:\n%s", n, out.String())
		}
		l.End("rules")
		time.Sleep(2 * flapWindow)
		synctest.Wait()
		if !strings.HasSuffix(strings.TrimSpace(out.String()), "duration=16m40s") || !strings.Contains(out.String(), "no longer: rules are missing") {
			t.Errorf("at the end:\n%s", out.String())
		}
	})
}

// TestFlappingConditionIsLoggedAFewTimes: forty changes are four lines, and the state in
// which it stays is one more.
func TestFlappingConditionIsLoggedAFewTimes(t *testing.T) {
	for _, stays := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			var out bytes.Buffer
			l := NewList(slog.New(slog.NewTextHandler(&out, nil)))
			for range 20 {
				l.Set(Condition{ID: "uplink", Text: "the uplink is down"})
				time.Sleep(300 * time.Millisecond)
				l.End("uplink")
				time.Sleep(300 * time.Millisecond)
			}
			if n := strings.Count(out.String(), "\n"); n != flapLines {
				t.Errorf("%d lines:\n%s", n, out.String())
			}
			before := out.Len()
			if stays {
				l.Set(Condition{ID: "uplink", Text: "the uplink is down"})
			}
			time.Sleep(flapHold + time.Second)
			synctest.Wait()
			last := out.String()[before:]
			if stays && (strings.Count(last, "\n") != 1 || !strings.Contains(last, "level=WARN") || !strings.Contains(last, "times=37")) || !stays && last != "" {
				t.Errorf("then: %q", last)
			}
			time.Sleep(5 * flapWindow)
			synctest.Wait()
			before = out.Len()
			l.Set(Condition{ID: "other", Text: "something else"})
			l.End("uplink")
			if last := out.String()[before:]; strings.Count(last, "no longer") != map[bool]int{true: 1}[stays] {
				t.Errorf("after a quiet time: %q", last)
			}
			l.End("other")
		})
	}
}

func TestStringIsASentence(t *testing.T) {
	for want, c := range map[string]Condition{
		"a text": {Text: "a text"},
		"a text (device docker0, public ip 192.0.2.7)":  {Text: "a text", Fields: []any{"device", "docker0", "command", "ip link", "public_ip", "192.0.2.7"}},
		"a text (count 2): a (1 %), b: no \"free\" one": {Text: "a text", Fields: []any{"count", 2, "examples", "a (1 %), b", "err", errors.New(`no "free" one`)}},
		`a text (key "a\x1b[2J\n"): "b\u202e"`:          {Text: "a text", Fields: []any{"key", "a\x1b[2J\n", "reason", "b\u202e"}},
	} {
		if got := c.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
