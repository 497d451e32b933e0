package logsink

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// burst lines of one kind are logged at once, and one more for each window. That is more than a
	// single condition that begins and ends repeatedly may log (package condition), so that only
	// many of them reach this limit.
	burst  = 16
	window = 10 * time.Second
	// summaryDelay is how long to wait for the next line of a kind before the number of omitted
	// lines is logged in a line of its own.
	summaryDelay = time.Second
)

// Handler is a slog handler that limits the number of lines: of each kind, which is a level and a
// message, it logs a few at once and then one per window. The next line of the kind, or a line of
// its own if there is no next one in time, contains the number of omitted lines. Lines of level
// DEBUG are not limited.
//
// A field "command" that cannot be pasted as it is, because the text form escapes quotes and
// backslashes, is repeated on a line of its own.
type Handler struct {
	*text
	limits *limits
	attrs  []slog.Attr // added to all lines
}

// NewHandler returns a Handler for lines of a level and above. Each line is one Write to out.
func NewHandler(out io.Writer, level slog.Level) *Handler {
	t := &text{out: out}
	t.Handler = slog.NewTextHandler(&t.buf, &slog.HandlerOptions{Level: level})
	return &Handler{text: t, limits: &limits{kinds: map[kind]*limit{}}}
}

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{h.text, h.limits, append(slices.Clip(h.attrs), attrs...)}
}

// WithGroup implements slog.Handler. Groups are not supported, because a field has one name
// everywhere.
func (h *Handler) WithGroup(string) slog.Handler { return h }

// Handle implements slog.Handler.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	if len(h.attrs) > 0 {
		r = r.Clone()
		r.AddAttrs(h.attrs...)
	}
	if r.Level < slog.LevelInfo {
		return h.text.write(r)
	}
	left, ok := h.limits.allow(r, h.summarize)
	if !ok {
		return nil
	}
	if left > 0 {
		r = r.Clone()
		r.Add("left_out", left)
	}
	return h.text.write(r)
}

// Flush logs the number of omitted lines of all kinds.
func (h *Handler) Flush() {
	h.limits.mu.Lock()
	all := slices.Collect(maps.Values(h.limits.kinds))
	h.limits.mu.Unlock()
	for _, e := range all {
		h.summarize(e)
	}
}

// summarize logs the number of omitted lines of a kind, if there are any. It counts as a line of
// the kind.
func (h *Handler) summarize(e *limit) {
	h.limits.mu.Lock()
	latest := e.latest
	left := e.reset()
	if left > 0 {
		e.Allow()
	}
	h.limits.mu.Unlock()
	if left == 0 {
		return
	}
	r := slog.NewRecord(time.Now(), latest.Level, "omitted similar log lines", 0)
	r.Add("kind", latest.Message, "left_out", left)
	last := []slog.Attr{slog.Time(slog.TimeKey, latest.Time)}
	latest.Attrs(func(a slog.Attr) bool { last = append(last, a); return true })
	r.AddAttrs(slog.GroupAttrs("latest", last...))
	_ = h.text.write(r) // a Sink does not fail
}

// kind identifies lines that are limited together. Messages are constants, so that there are few.
type kind struct {
	level   slog.Level
	message string
}

// limits tracks the lines of each kind.
type limits struct {
	mu    sync.Mutex
	kinds map[kind]*limit
}

type limit struct {
	*rate.Limiter
	omitted int // lines omitted since the last one
	latest  slog.Record
	due     *time.Timer // logs the summary; nil while nothing is omitted
}

// allow reports whether a line may be logged, and how many of its kind were omitted before. If not,
// later is called after the time when the next one may be logged.
func (l *limits) allow(r slog.Record, later func(*limit)) (left int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := kind{r.Level, r.Message}
	e := l.kinds[k]
	if e == nil {
		e = &limit{Limiter: rate.NewLimiter(rate.Every(window), burst)}
		l.kinds[k] = e
	}
	if e.Allow() {
		return e.reset(), true
	}
	e.omitted++
	e.latest = r.Clone()
	if e.due == nil {
		next := time.Duration((1 - e.Tokens()) * float64(window))
		e.due = time.AfterFunc(next+summaryDelay, func() { later(e) })
	}
	return 0, false
}

// reset returns the number of omitted lines, which the caller logs.
func (e *limit) reset() (left int) {
	if e.due != nil {
		e.due.Stop()
		e.due = nil
	}
	left, e.omitted, e.latest = e.omitted, 0, slog.Record{}
	return left
}

// text writes each record with one Write.
type text struct {
	slog.Handler
	out io.Writer
	mu  sync.Mutex
	buf bytes.Buffer // output of Handler
}

func (t *text) write(r slog.Record) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Reset()
	if err := t.Handler.Handle(context.Background(), r); err != nil {
		return err
	}
	r.Attrs(func(a slog.Attr) bool {
		if command := a.Value.String(); a.Key == "command" && strings.ContainsAny(command, `"\`) {
			t.buf.WriteString("\t" + command + "\n")
		}
		return true
	})
	_, err := t.out.Write(t.buf.Bytes())
	if t.buf.Cap() > idleSize {
		t.buf = bytes.Buffer{}
	}
	return err
}

// Lines is an io.Writer, for package log, that calls a function with each write, without the
// newline at its end.
type Lines func(line string)

// Write implements io.Writer.
func (l Lines) Write(p []byte) (int, error) {
	l(strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}
