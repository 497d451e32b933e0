// Package condition keeps the list of present problems. Other rooms set and end conditions; the
// list logs each once when it begins, once when it changes, and once with its duration when it
// ends. A condition that begins and ends repeatedly is logged only a few times, and when it has
// settled.
//
// It does not detect conditions itself. Invariant: at most one condition has an ID, and setting an
// unchanged condition logs nothing.
package condition

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Condition is a problem that exists for as long as it is in a List.
type Condition struct {
	// ID identifies the problem, e.g. "docker-subnet"; if there can be one for each object, a slash
	// and the object follow, e.g. "route/10.42.7.0/24".
	ID       string
	Text     string // log message: constant, lower case
	Fields   []any  // variable parts: keys and values as for slog
	Ended    string // log message of its end; default: "no longer: " and Text
	Command  string // command that resolves it and can be pasted, if there is one
	Severity Severity
	Since    time.Time
}

// Severity is how much a condition matters.
type Severity int8

// Severities. The zero value is Warning.
const (
	Notice  Severity = iota - 1 // the overlay works as it should; logged as a warning
	Warning                     // the overlay is degraded, or soon will be; logged as a warning
	Severe                      // needs a person now; logged as an error
)

// String returns the name of the severity.
func (s Severity) String() string {
	switch s {
	case Notice:
		return "notice"
	case Severe:
		return "severe"
	}
	return "warning"
}

// logKey returns everything that the log shows of a condition.
func (c Condition) logKey() string { return fmt.Sprint(c.Text, c.Fields, c.Command, c.Severity) }

// Remedy returns a command that resolves the condition and can be pasted, or "". Of several, each
// of which would do, it is the first.
func (c Condition) Remedy() string {
	for i := 0; c.Command == "" && i+1 < len(c.Fields); i += 2 {
		if c.Fields[i] == any("command") {
			return fmt.Sprint(c.Fields[i+1])
		}
	}
	return c.Command
}

// String returns the condition as one line for people: its text, its fields except commands, and
// then what says most.
func (c Condition) String() string {
	var details, reasons []string
	for i := 0; i+1 < len(c.Fields); i += 2 {
		key, value := fmt.Sprint(c.Fields[i]), fmt.Sprint(c.Fields[i+1])
		if strings.ContainsFunc(value, func(r rune) bool { return !strconv.IsPrint(r) }) {
			value = strconv.Quote(value)
		}
		switch key {
		case "command":
		case "err", "reason", "examples":
			reasons = append(reasons, ": "+value)
		default:
			details = append(details, strings.ReplaceAll(key, "_", " ")+" "+value)
		}
	}
	text := c.Text
	if len(details) > 0 {
		text += " (" + strings.Join(details, ", ") + ")"
	}
	return text + strings.Join(reasons, "")
}

const (
	// If a condition changes repeatedly, flapLines are logged at once, and then one for each
	// flapWindow. Otherwise it is logged only when it has not changed for flapHold, and at the end
	// of a flapWindow. Other fields count separately, up to flapVariants.
	flapLines    = 4
	flapVariants = 16
	flapWindow   = time.Minute
	flapHold     = 10 * time.Second
)

// List is the list of present conditions. Its methods may be called by several goroutines.
type List struct {
	log *slog.Logger

	mu   sync.Mutex
	byID map[string]*entry
}

// entry is a condition with the state of its logging.
type entry struct {
	Condition
	active       bool                     // it exists now; otherwise it has ended recently
	ended        time.Time                // end of the last period
	logged       string                   // logKey of the last line; empty after a line about the end
	limiters     map[string]*rate.Limiter // by logKey; "" is the limiter of all further keys
	timer        *time.Timer              // logs a delayed line; nil if there is none
	delayedSince time.Time                // when the delay began
	suppressed   int                      // changes since the last line
}

// NewList returns an empty list.
func NewList(log *slog.Logger) *List { return &List{log: log, byID: map[string]*entry{}} }

// Set begins a condition or changes it. It sets Since.
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

// SetError sets a condition because of an error, which becomes its last field, or ends it if there
// is none.
func (l *List) SetError(c Condition, err error) {
	if err == nil {
		l.End(c.ID)
		return
	}
	c.Fields = append(c.Fields, "err", err)
	l.Set(c)
}

// Begin begins a condition unless it exists already: it then keeps the first reason.
func (l *List) Begin(c Condition) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.byID[c.ID]; e == nil || !e.active {
		l.set(c)
	}
}

// End ends a condition, if it exists.
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

// onChange logs a change, or delays the line if there were many changes.
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

// logChange logs the present state, unless the last line shows it already.
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
	if e.active && e.Command != "" {
		fields = append(fields, "command", e.Command)
	}
	switch {
	case !e.active:
		l.log.Info(cmp.Or(e.Ended, "no longer: "+e.Text), append(fields, "duration", e.ended.Sub(e.Since).Round(time.Millisecond))...)
	case e.Severity == Severe:
		l.log.Error(e.Text, fields...)
	default:
		l.log.Warn(e.Text, fields...)
	}
	e.logged, e.suppressed = now, 0
	maps.DeleteFunc(l.byID, func(_ string, e *entry) bool {
		return !e.active && e.timer == nil && e.idle()
	})
}

// allow reports whether a line may be logged now, and counts it.
func (e *entry) allow() bool {
	said := e.logKey()
	if e.limiters[said] == nil && len(e.limiters) >= flapVariants {
		said = ""
	}
	if e.limiters[said] == nil {
		e.limiters[said] = rate.NewLimiter(rate.Every(flapWindow), flapLines)
	}
	return e.limiters[said].Allow()
}

// idle reports whether the condition was not logged recently.
func (e *entry) idle() bool {
	for _, l := range e.limiters {
		if l.Tokens() < flapLines {
			return false
		}
	}
	return true
}

// Has reports whether a condition exists.
func (l *List) Has(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.byID[id]
	return e != nil && e.active
}

// Replace sets the conditions that a check has found, and ends those that it no longer finds. The
// IDs of a check share a prefix that other IDs do not have.
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
	sort.Slice(all, func(i, j int) bool {
		return cmp.Or(all[i].Since.Compare(all[j].Since), cmp.Compare(all[i].ID, all[j].ID)) < 0
	})
	return all
}
