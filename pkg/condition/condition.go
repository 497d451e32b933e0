// Package condition keeps the list of what is wrong now. Whoever knows of a
// condition sets it and ends it; the list logs each once when it begins, once
// when it says something else, and once with its duration when it ends.
//
// It does not look for conditions itself. Invariant: at most one condition has an ID,
// and setting one again that says the same logs nothing.
package condition

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// Condition is something that is wrong for as long as it is in a List.
type Condition struct {
	// ID names what is wrong, e.g. "docker-subnet"; with a slash and an object after it
	// where there can be one for each, e.g. "route/10.42.7.0/24".
	ID      string
	Text    string // constant sentence in lower case: what is wrong
	Fields  []any  // what varies: keys and values as for slog
	Command string // that mends it and can be pasted; empty if there is none
	Severe  bool   // a person is needed now: logged as an error, else as a warning
	Since   time.Time
}

// says is all that a reader of the log sees of it.
func (c Condition) says() string { return fmt.Sprint(c.Text, c.Fields, c.Command, c.Severe) }

// List is what is wrong now. Its methods may be called by several goroutines.
type List struct {
	log *slog.Logger

	mu  sync.Mutex
	now map[string]Condition // by ID
}

// NewList returns a list on which nothing is wrong.
func NewList(log *slog.Logger) *List { return &List{log: log, now: map[string]Condition{}} }

// Set begins a condition, or changes what it says. Since is set here.
func (l *List) Set(c Condition) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.set(c)
}

func (l *List) set(c Condition) {
	before, there := l.now[c.ID]
	c.Since = before.Since
	if !there {
		c.Since = time.Now()
	}
	l.now[c.ID] = c
	if there && before.says() == c.says() {
		return
	}
	level := slog.LevelWarn
	if c.Severe {
		level = slog.LevelError
	}
	fields := slices.Clone(c.Fields)
	if c.Command != "" {
		fields = append(fields, "command", c.Command)
	}
	l.log.Log(context.Background(), level, c.Text, fields...)
}

// End ends a condition, if it is there.
func (l *List) End(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end(id)
}

func (l *List) end(id string) {
	c, there := l.now[id]
	if !there {
		return
	}
	delete(l.now, id)
	l.log.Info("no longer: "+c.Text, append(slices.Clone(c.Fields), "duration", time.Since(c.Since).Round(time.Millisecond))...)
}

// Has reports whether a condition is there.
func (l *List) Has(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, there := l.now[id]
	return there
}

// Replace sets the conditions that one check has found, and ends those that it found
// before and not now. The IDs of a check all begin with its prefix, which no other's do.
func (l *List) Replace(prefix string, found []Condition) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range found {
		l.set(c)
	}
	for id := range l.now {
		if strings.HasPrefix(id, prefix) && !slices.ContainsFunc(found, func(c Condition) bool { return c.ID == id }) {
			l.end(id)
		}
	}
}

// Current returns the conditions, the oldest first.
func (l *List) Current() []Condition {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]Condition, 0, len(l.now))
	for _, c := range l.now {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b Condition) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID)) })
	return all
}
