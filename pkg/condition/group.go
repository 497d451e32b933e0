package condition

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"
)

const (
	// groupPause is the minimum time between two lines about one reason. Objects of that time are
	// collected; those that begin and end meanwhile are not logged.
	groupPause = 5 * time.Second
	// groupExamples is the number of objects that a line names.
	groupExamples = 3
)

// Reason is why an object has a problem.
type Reason struct {
	Kind   string // constant, lower case, equal for all objects with the same problem
	Detail string // specific to the object, such as a value; may be empty
}

// Group tracks problems of many objects of one sort. Objects whose problem begins for the same
// reason are logged in one line with their number and some examples, and so are those whose problem
// ends. Its methods are for one goroutine. Make one with NewGroup.
type Group struct {
	log          *slog.Logger
	level        slog.Level
	begun, ended string // messages

	current    map[string]Reason    // present problems by object
	logged     map[string]Reason    // problems by object as logged
	dirty      map[string]bool      // objects for which these may differ
	quietUntil map[string]time.Time // by kind: no line before this time
	due        time.Time            // when the first dirty object can be logged
}

// NewGroup returns a group without problems. begun, at the given level, and ended are the messages
// of its lines.
func NewGroup(log *slog.Logger, level slog.Level, begun, ended string) *Group {
	return &Group{
		log: log, level: level, begun: begun, ended: ended,
		current: map[string]Reason{}, logged: map[string]Reason{}, dirty: map[string]bool{}, quietUntil: map[string]time.Time{},
	}
}

// Set sets the problem of an object.
func (g *Group) Set(object string, r Reason) {
	if before, there := g.current[object]; !there || before != r {
		g.current[object] = r
		g.mark(object, r.Kind)
	}
}

// End ends the problem of an object.
func (g *Group) End(object string) {
	if _, there := g.current[object]; there {
		delete(g.current, object)
		g.mark(object, g.logged[object].Kind)
	}
}

// mark marks an object as dirty; kind is that of its next line.
func (g *Group) mark(object, kind string) {
	if until := g.quietUntil[kind]; len(g.dirty) == 0 || until.Before(g.due) {
		g.due = until
	}
	g.dirty[object] = true
}

// Replace sets the problems of all objects.
func (g *Group) Replace(now map[string]Reason) {
	for object := range g.current {
		if _, there := now[object]; !there {
			g.End(object)
		}
	}
	for object, r := range now {
		g.Set(object, r)
	}
}

// Flush logs changes, except for reasons that were logged less than groupPause ago. It returns when
// to call it again for the rest, or 0 if there is none.
func (g *Group) Flush(now time.Time) (again time.Duration) {
	switch {
	case len(g.dirty) == 0:
		return 0
	case now.Before(g.due): // avoids a scan of thousands of objects on every call
		return g.due.Sub(now)
	}
	maps.DeleteFunc(g.quietUntil, func(_ string, until time.Time) bool { return !until.After(now) })
	g.due = now.Add(groupPause)                                  // at the latest
	begun, ended := map[string][]string{}, map[string][]string{} // objects by kind
	for object := range g.dirty {
		before, was := g.logged[object]
		r, is := g.current[object]
		if was == is && before == r {
			delete(g.dirty, object)
			continue
		}
		kind := r.Kind
		if !is {
			kind = before.Kind
		}
		if until, quiet := g.quietUntil[kind]; quiet {
			if until.Before(g.due) {
				g.due = until
			}
			continue
		}
		delete(g.dirty, object)
		if is {
			g.logged[object] = r
			begun[kind] = append(begun[kind], object+detail(r))
		} else {
			ended[kind] = append(ended[kind], object+detail(before))
			delete(g.logged, object)
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(begun)) {
		g.line(now, g.level, g.begun, kind, begun[kind])
	}
	for _, kind := range slices.Sorted(maps.Keys(ended)) {
		g.line(now, slog.LevelInfo, g.ended, kind, ended[kind])
	}
	if len(g.dirty) == 0 {
		return 0
	}
	return g.due.Sub(now)
}

func detail(r Reason) string {
	if r.Detail == "" {
		return ""
	}
	return " (" + r.Detail + ")"
}

// line logs objects whose problem begins or ends.
func (g *Group) line(now time.Time, level slog.Level, msg, kind string, objects []string) {
	g.quietUntil[kind] = now.Add(groupPause)
	total := 0
	for _, r := range g.logged {
		if r.Kind == kind {
			total++
		}
	}
	slices.SortFunc(objects, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
	fields := []any{"count", len(objects), "reason", kind, "examples", strings.Join(objects[:min(len(objects), groupExamples)], ", ")}
	if total != len(objects) {
		fields = append(fields, "total", total)
	}
	g.log.Log(context.Background(), level, msg, fields...)
	if len(objects) > groupExamples {
		for _, o := range objects {
			g.log.Debug(msg, "reason", kind, "example", o)
		}
	}
}
