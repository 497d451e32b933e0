// Package condition keeps the list of what is wrong now. Whoever knows of a
// condition sets it and ends it; the list logs each once when it begins, once
// when it says something else, and once with its duration when it ends. One that comes
// and goes again and again is logged only a few times, and when it stays as it is.
//
// It does not look for conditions itself. Invariant: at most one condition has an ID,
// and setting one again that says the same logs nothing.
package condition

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Condition is something that is wrong for as long as it is in a List.
type Condition struct {
	// ID names what is wrong, e.g. "docker-subnet"; with a slash and an object after it
	// where there can be one for each, e.g. "route/10.42.7.0/24".
	ID      string
	Text    string // constant sentence in lower case: what is wrong
	Fields  []any  // what varies: keys and values as for slog
	Ended   string // the same of its end; empty: "no longer: " and Text
	Command string // that mends it and can be pasted; empty if there is none
	Severe  bool   // a person is needed now: logged as an error, else as a warning
	Since   time.Time
}

// logKey is all that a reader of the log sees of it.
func (c Condition) logKey() string { return fmt.Sprint(c.Text, c.Fields, c.Command, c.Severe) }

// String returns the condition in one line: its text, and its fields as in the log but for
// commands.
func (c Condition) String() string {
	var b strings.Builder
	b.WriteString(c.Text)
	for i := 0; i+1 < len(c.Fields); i += 2 {
		key, value := fmt.Sprint(c.Fields[i]), fmt.Sprint(c.Fields[i+1])
		if key == "command" {
			continue
		}
		if strings.ContainsFunc(value, func(r rune) bool { return r == ' ' || r == '"' || r == '=' || !strconv.IsPrint(r) }) {
			value = strconv.Quote(value)
		}
		b.WriteString(" " + key + "=" + value)
	}
	return b.String()
}

const (
	// Of a condition that comes and goes again and again, flapLines are logged at once, and
	// one more for each flapWindow; else only what lasts for flapHold, and whatever is so
	// when a flapWindow is over. One with other fields is another matter, but after
	// flapVariants of them.
	flapLines    = 4
	flapVariants = 16
	flapWindow   = time.Minute
	flapHold     = 10 * time.Second
)

// List is what is wrong now. Its methods may be called by several goroutines.
type List struct {
	log *slog.Logger

	mu   sync.Mutex
	byID map[string]*entry
}

// entry is a condition with what the log says of it.
type entry struct {
	Condition
	active       bool                     // it is wrong now; else it was lately
	ended        time.Time                // when it last was no longer there
	logged       string                   // what the log says of it; empty: that nothing is wrong
	limiters     map[string]*rate.Limiter // by what is said; under "" that of all further ones
	timer        *time.Timer              // logs what is so then; nil: nothing is held back
	delayedSince time.Time                // when that began
	suppressed   int                      // changes since the last line that were not logged
}

// NewList returns a list on which nothing is wrong.
func NewList(log *slog.Logger) *List { return &List{log: log, byID: map[string]*entry{}} }

// Set begins a condition, or changes what it says. Since is set here.
func (l *List) Set(c Condition) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.set(c)
}

func (l *List) set(c Condition) {
	e := l.byID[c.ID]
	if e == nil {
		e = &entry{limiters: map[string]*rate.Limiter{}}
		l.byID[c.ID] = e
	}
	if e.active && e.logKey() == c.logKey() {
		return
	}
	c.Since = e.Since
	if !e.active {
		c.Since = time.Now()
	}
	e.Condition, e.active = c, true
	l.onChange(e)
}

// Begin begins a condition unless it is there: it goes on saying why it began, not all that
// happens meanwhile.
func (l *List) Begin(c Condition) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.byID[c.ID]; e == nil || !e.active {
		l.set(c)
	}
}

// End ends a condition, if it is there.
func (l *List) End(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end(id)
}

func (l *List) end(id string) {
	if e := l.byID[id]; e != nil && e.active {
		e.active, e.ended = false, time.Now()
		l.onChange(e)
	}
}

// onChange logs a change, now or, if there were many, when it has lasted.
func (l *List) onChange(e *entry) {
	switch {
	case e.timer != nil:
		e.suppressed++
		e.timer.Reset(min(flapHold, time.Until(e.delayedSince.Add(flapWindow))))
	case !e.allow():
		e.suppressed++
		e.delayedSince = time.Now()
		e.timer = time.AfterFunc(flapHold, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			e.timer = nil
			e.allow()
			l.logChange(e)
		})
	default:
		l.logChange(e)
	}
}

// logChange logs what is so now, if the log says something else.
func (l *List) logChange(e *entry) {
	now := ""
	if e.active {
		now = e.logKey()
	}
	if now == e.logged {
		return
	}
	fields := slices.Clone(e.Fields)
	if e.suppressed > 0 {
		fields = append(fields, "times", e.suppressed)
	}
	switch {
	case !e.active:
		l.log.Info(cmp.Or(e.Ended, "no longer: "+e.Text), append(fields, "duration", e.ended.Sub(e.Since).Round(time.Millisecond))...)
	case e.Severe:
		l.log.Error(e.Text, e.withCommand(fields)...)
	default:
		l.log.Warn(e.Text, e.withCommand(fields)...)
	}
	e.logged, e.suppressed = now, 0
	maps.DeleteFunc(l.byID, func(_ string, e *entry) bool {
		return !e.active && e.timer == nil && e.idle()
	})
}

// allow reports whether a line may be logged at once, and counts it.
func (e *entry) allow() bool {
	said := e.logKey()
	if e.limiters[said] == nil {
		if len(e.limiters) >= flapVariants {
			said = ""
		}
		if e.limiters[said] == nil {
			e.limiters[said] = rate.NewLimiter(rate.Every(flapWindow), flapLines)
		}
	}
	return e.limiters[said].Allow()
}

// idle reports whether nothing of the condition was logged for a while.
func (e *entry) idle() bool {
	for _, l := range e.limiters {
		if l.Tokens() < flapLines {
			return false
		}
	}
	return true
}

func (c Condition) withCommand(fields []any) []any {
	if c.Command != "" {
		fields = append(fields, "command", c.Command)
	}
	return fields
}

// Has reports whether a condition is there.
func (l *List) Has(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.byID[id]
	return e != nil && e.active
}

// Replace sets the conditions that one check has found, and ends those that it found
// before and not now. The IDs of a check all begin with its prefix, which no other's do.
func (l *List) Replace(prefix string, found []Condition) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range found {
		l.set(c)
	}
	for id := range l.byID {
		if strings.HasPrefix(id, prefix) && !slices.ContainsFunc(found, func(c Condition) bool { return c.ID == id }) {
			l.end(id)
		}
	}
}

// Current returns the conditions, the oldest first.
func (l *List) Current() []Condition {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]Condition, 0, len(l.byID))
	for _, e := range l.byID {
		if e.active {
			all = append(all, e.Condition)
		}
	}
	slices.SortFunc(all, func(a, b Condition) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID)) })
	return all
}
