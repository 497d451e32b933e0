package logsink

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// Of one kind, burst lines are logged at once, and one more for each window. That is more
	// than of a condition that comes and goes (package condition), so that only many of them
	// meet this limit.
	burst  = 16
	window = 10 * time.Second
	// summaryDelay is how long the next line of a kind is waited for before one is made of the number
	// of those that were left out.
	summaryDelay = time.Second
	// maxKinds bounds how many kinds are told apart. Messages are constants, of which there
	// are fewer.
	maxKinds = 512
)

// Handler is a slog handler for lines that others can cause: of each kind, which is a level and
// a message, there are a few at once and then one now and then. The next line of the kind, or
// one of its own when there is no next one in time, has the number of those left out. Lines of
// level DEBUG are for somebody who wants all of them.
//
// A field "command" that cannot be pasted as it stands, since the text form escapes quotes and
// backslashes, is repeated on a line of its own.
type Handler struct {
	text   *text
	limits *limits
	attrs  []slog.Attr // of all lines
}

// NewHandler returns a Handler for lines of a level and above. Each is one Write to out.
func NewHandler(out io.Writer, level slog.Level) *Handler {
	t := &text{out: out, level: level}
	t.Handler = slog.NewTextHandler(&t.buf, &slog.HandlerOptions{Level: level})
	return &Handler{text: t, limits: &limits{kinds: map[kind]*limit{}}}
}

// Enabled implements slog.Handler.
func (h *Handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.text.level }

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{h.text, h.limits, append(slices.Clip(h.attrs), attrs...)}
}

// WithGroup implements slog.Handler. There are no groups: a field has one name everywhere.
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

// Flush says of all kinds what was left out and not said yet.
func (h *Handler) Flush() {
	for _, k := range h.limits.pending() {
		h.summarize(k)
	}
}

// summarize says what was left out of a kind.
func (h *Handler) summarize(k kind) {
	left, latest := h.limits.takeOmitted(k)
	if left == 0 {
		return
	}
	r := slog.NewRecord(time.Now(), k.level, "omitted similar log lines", 0)
	r.Add("kind", k.message, "left_out", left)
	last := []slog.Attr{slog.Time(slog.TimeKey, latest.Time)}
	latest.Attrs(func(a slog.Attr) bool { last = append(last, a); return true })
	r.AddAttrs(slog.GroupAttrs("latest", last...))
	_ = h.text.write(r) // a Sink does not fail, and nobody could be told
}

// kind is what limits tell lines apart by.
type kind struct {
	level   slog.Level
	message string
}

// limits keep account of the lines of each kind.
type limits struct {
	mu    sync.Mutex
	kinds map[kind]*limit
}

type limit struct {
	*rate.Limiter
	omitted int // lines left out since the last one
	latest  slog.Record
	due     *time.Timer // says so; nil while none is left out
}

// allow reports whether a line may be logged, and how many of its kind were left out before;
// else later is called when the next one might have been.
func (l *limits) allow(r slog.Record, later func(kind)) (left int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := kind{r.Level, r.Message}
	e := l.kinds[k]
	if e == nil {
		if len(l.kinds) >= maxKinds {
			l.forget()
		}
		if len(l.kinds) >= maxKinds {
			k.message = "others"
			e = l.kinds[k]
		}
	}
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
		e.due = time.AfterFunc(next+summaryDelay, func() { later(k) })
	}
	return 0, false
}

// reset returns how many lines were left out, which is being said.
func (e *limit) reset() (left int) {
	if e.due != nil {
		e.due.Stop()
		e.due = nil
	}
	left, e.omitted, e.latest = e.omitted, 0, slog.Record{}
	return left
}

// forget drops the kinds of which there was nothing for long.
func (l *limits) forget() {
	for k, e := range l.kinds {
		if e.omitted == 0 && e.Tokens() >= burst {
			delete(l.kinds, k)
		}
	}
}

// takeOmitted returns what was left out of a kind, for a line that counts as one of it.
func (l *limits) takeOmitted(k kind) (left int, latest slog.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.kinds[k]
	if e == nil || e.omitted == 0 {
		return 0, latest
	}
	e.Allow()
	latest = e.latest
	return e.reset(), latest
}

// pending returns the kinds of which something was left out.
func (l *limits) pending() (all []kind) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, e := range l.kinds {
		if e.omitted > 0 {
			all = append(all, k)
		}
	}
	return all
}

// text makes each record one Write.
type text struct {
	slog.Handler
	out   io.Writer
	level slog.Level

	mu  sync.Mutex
	buf bytes.Buffer // that Handler writes to
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

// Lines is a writer, such as package log wants, that is called with each write without the
// newline at its end.
type Lines func(line string)

// Write implements io.Writer.
func (l Lines) Write(p []byte) (int, error) {
	l(strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}
