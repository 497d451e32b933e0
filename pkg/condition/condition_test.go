package condition

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestConditionIsLoggedWhenItBeginsChangesAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := NewList(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}})))
		c := Condition{ID: "docker-subnet", Text: "docker0 is not on the leased subnet", Fields: []any{"device", "docker0"}, Command: "systemctl restart docker"}
		l.Set(c)
		l.Set(c)
		began := time.Now()
		time.Sleep(time.Minute)
		c.Severe = true
		l.Set(c)
		if now := l.Current(); len(now) != 1 || !now[0].Since.Equal(began) {
			t.Errorf("current: %v, want one since %v", now, began)
		}
		l.End("docker-subnet")
		l.End("docker-subnet")
		want := `level=WARN msg="docker0 is not on the leased subnet" device=docker0 command="systemctl restart docker"
level=ERROR msg="docker0 is not on the leased subnet" device=docker0 command="systemctl restart docker"
level=INFO msg="no longer: docker0 is not on the leased subnet" device=docker0 duration=1m0s
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
