package condition

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/pkg/lab/logs"
	"flanneld/pkg/logsink"
)

// TestFlappingConditionsMeetNoOtherLimit: the log's own limit of lines of one kind omits none of
// the lines of a few flapping conditions, so that the last line shows the present state; of
// a hundred it omits most, with their number.
func TestFlappingConditionsMeetNoOtherLimit(t *testing.T) {
	for _, f := range []struct{ conditions, lines, leftOut int }{{4, 40, 0}, {100, 60, 1}} {
		synctest.Test(t, func(t *testing.T) {
			var b logs.Buffer
			l := NewList(slog.New(logsink.NewHandler(&b, slog.LevelInfo)))
			for range 50 { // for 100 s
				for i := range f.conditions {
					l.Set(Condition{ID: fmt.Sprint("route/", i), Text: "a route of others wins", Fields: []any{"route", i}})
				}
				time.Sleep(time.Second)
				for i := range f.conditions {
					l.End(fmt.Sprint("route/", i))
				}
				time.Sleep(time.Second)
			}
			time.Sleep(2 * flapWindow)
			synctest.Wait()
			text := b.String()
			if n := strings.Count(text, "\n"); n > f.lines || (strings.Count(text, "left_out=") > 0) != (f.leftOut > 0) {
				t.Errorf("%d conditions: %d lines:\n%s", f.conditions, n, text)
			}
			for i := range f.conditions {
				at := strings.LastIndex(text, fmt.Sprintf("route=%d", i))
				if f.leftOut == 0 && (at < 0 || !strings.Contains(text[strings.LastIndex(text[:at], "\n")+1:at], "no longer")) {
					t.Errorf("the log ends with a route that is there:\n%s", text)
				}
			}
		})
	}
}
