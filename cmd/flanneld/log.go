package main

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
)

// pasteable is a text handler that repeats a "command" field on a line of its own where the
// field cannot be pasted as it stands: the text form escapes quotes and backslashes.
type pasteable struct {
	slog.Handler
	out *lockedWriter // that Handler writes to, too
}

func newHandler(w io.Writer, level slog.Level) slog.Handler {
	out := &lockedWriter{w: w}
	return pasteable{slog.NewTextHandler(out, &slog.HandlerOptions{Level: level}), out}
}

// Handle implements slog.Handler.
func (p pasteable) Handle(ctx context.Context, r slog.Record) error {
	err := p.Handler.Handle(ctx, r)
	r.Attrs(func(a slog.Attr) bool {
		if text := a.Value.String(); a.Key == "command" && strings.ContainsAny(text, `"\`) {
			_, werr := io.WriteString(p.out, "\t"+text+"\n")
			if err == nil {
				err = werr
			}
		}
		return true
	})
	return err
}

// lockedWriter makes each write whole.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
