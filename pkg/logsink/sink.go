// Package logsink writes log lines to standard error without ever blocking the caller: [Sink] never
// blocks and never ends the process, whatever the reader of the lines does, and [Handler] limits
// the number of lines of one kind.
//
// It does not interpret the lines. Invariant: a line that is not written is counted, and the count
// is written as soon as possible.
package logsink

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"flanneld/pkg/pace"
)

const (
	// bufferSize limits the number of bytes that wait for the reader. It suffices for all
	// operations of a start with 5,000 peers at level DEBUG.
	bufferSize = 1 << 20
	// idleSize is the capacity that is kept while nothing waits.
	idleSize = 16 << 10
	// lineSize limits the length of a line.
	lineSize = 16 << 10
)

// Sink forwards records to another writer, in its own goroutine. While that writer blocks, records
// are buffered, up to bufferSize; further ones are dropped and counted, and so are those that
// cannot be written. Each Write is one record: a line, possibly followed by indented ones.
type Sink struct {
	out   io.Writer
	wake  chan struct{}
	flush chan chan struct{}

	mu           sync.Mutex
	buf          []byte // records to write
	writing      int    // bytes that are being written
	dropped      int    // records dropped since the last one that was written, and before buf
	droppedAfter int    // records dropped after buf; none is added until buf is written
	spare        []byte // reused for buf

	partial bool // the last record was written partially; belongs to the goroutine
}

// New returns a Sink that writes to out. Its goroutine never ends.
func New(out io.Writer) *Sink {
	s := &Sink{out: out, wake: make(chan struct{}, 1), flush: make(chan chan struct{})}
	go s.run()
	return s
}

// Write implements io.Writer. It never blocks and never fails.
func (s *Sink) Write(record []byte) (int, error) {
	n := len(record)
	if n > lineSize {
		record = fmt.Appendf(bytes.Clone(record[:lineSize]), "… (%d bytes more)\n", n-lineSize)
	}
	if !s.add(record, false) {
		runtime.Gosched() // if the writer is not blocked, this suffices to make room
		s.add(record, true)
	}
	pace.Wake(s.wake)
	return n, nil
}

// add adds a record if there is room. Otherwise it counts a dropped record if drop is set.
func (s *Sink) add(record []byte, drop bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.droppedAfter > 0 || s.writing+len(s.buf)+len(record) > bufferSize {
		if drop {
			s.droppedAfter++
		}
		return false
	}
	s.buf = append(s.buf, record...)
	return true
}

// Flush waits until everything before the call is written, up to a timeout.
func (s *Sink) Flush(within time.Duration) {
	limit := time.NewTimer(within)
	defer limit.Stop()
	done := make(chan struct{})
	select {
	case s.flush <- done:
	case <-limit.C:
		return
	}
	select {
	case <-done:
	case <-limit.C:
	}
}

func (s *Sink) run() {
	for {
		select {
		case <-s.wake:
			s.drain()
		case done := <-s.flush:
			s.drain()
			close(done)
		}
	}
}

// drain writes the buffer, and returns when it is empty or cannot be written. In the latter case,
// the next record leads to the next attempt.
func (s *Sink) drain() {
	for {
		s.mu.Lock()
		chunk, lost := s.buf, s.dropped
		s.buf, s.spare, s.writing = s.spare, nil, len(chunk)
		s.mu.Unlock()
		if len(chunk) == 0 && lost == 0 {
			s.finish(chunk, 0)
			return
		}
		var err error
		rest := chunk
		if lost > 0 {
			if _, err = s.write(droppedLine(lost)); err == nil {
				lost = 0
			}
		}
		if err == nil {
			rest, err = s.write(chunk)
		}
		s.finish(chunk, lost+records(rest))
		if err != nil {
			return
		}
	}
}

// finish records the result of writing a chunk, and reuses its memory.
func (s *Sink) finish(chunk []byte, lost int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writing, s.dropped = 0, lost
	if len(s.buf) == 0 {
		s.dropped += s.droppedAfter
		s.droppedAfter = 0
	}
	if cap(chunk) <= idleSize {
		s.spare = chunk[:0]
	}
}

// write returns the part of b that was not written.
func (s *Sink) write(b []byte) (rest []byte, err error) {
	if s.partial && len(b) > 0 {
		if _, err := io.WriteString(s.out, "\n"); err != nil {
			return b, err
		}
		s.partial = false
	}
	n, err := s.out.Write(b)
	if err != nil && n > 0 {
		s.partial = b[n-1] != '\n'
	}
	return b[n:], err
}

// records returns the number of records that end in b.
func records(b []byte) int {
	return bytes.Count(b, []byte("\n")) - bytes.Count(b, []byte("\n\t"))
}

func droppedLine(lost int) []byte {
	var b bytes.Buffer
	slog.New(slog.NewTextHandler(&b, nil)).Warn("dropped log lines, standard error is too slow", "count", lost)
	return b.Bytes()
}
