package logsink

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// reader is a writer that can block or fail on demand.
type reader struct {
	mu   sync.Mutex
	got  bytes.Buffer
	gate chan struct{} // writes wait until it is closed
	fail error
	part int // bytes taken of a write that fails
}

func (r *reader) Write(p []byte) (int, error) {
	r.mu.Lock()
	gate := r.gate
	r.mu.Unlock()
	if gate != nil {
		<-gate
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		n := min(r.part, len(p))
		r.part = 0
		r.got.Write(p[:n])
		return n, r.fail
	}
	return r.got.Write(p)
}

func (r *reader) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got.String()
}

func (r *reader) set(fail error, part int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail, r.part = fail, part
}

// dropped adds up the numbers of dropped lines in the log.
func dropped(text string) (sum int) {
	for line := range strings.Lines(text) {
		if _, n, ok := strings.Cut(line, `msg="dropped log lines, standard error is too slow" count=`); ok {
			var one int
			fmt.Sscan(n, &one)
			sum += one
		}
	}
	return sum
}

func TestStoppedReaderBlocksNobody(t *testing.T) {
	r := &reader{gate: make(chan struct{})}
	s := New(r)
	line := []byte(strings.Repeat("x", 99) + "\n")
	const lines = 100_000
	begin := time.Now()
	for range lines {
		if n, err := s.Write(line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	t.Logf("%v a line", time.Since(begin)/lines)
	s.mu.Lock()
	held := s.writing + len(s.buf)
	s.mu.Unlock()
	if held > bufferSize {
		t.Errorf("%d bytes are held", held)
	}
	before := time.Now()
	s.Flush(50 * time.Millisecond)
	if took := time.Since(before); took > 5*time.Second {
		t.Errorf("flushed for %v", took)
	}
	close(r.gate) // it goes on
	s.Flush(time.Minute)
	s.Write([]byte("last\n"))
	s.Flush(time.Minute)
	text := r.text()
	got := strings.Count(text, string(line))
	if n := dropped(text); got+n != lines || got < bufferSize/len(line)-1 || strings.Count(text, "dropped") != 1 || !strings.HasSuffix(text, "\nlast\n") {
		t.Errorf("of %d lines %d were written and %d said to be dropped, in %d lines", lines, got, n, strings.Count(text, "dropped"))
	}
}

func TestDroppedLinesAreSaidWithoutAnotherLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &reader{gate: make(chan struct{})}
		s := &Sink{out: r, wake: make(chan struct{}, 1), flush: make(chan chan struct{})}
		go func() {
			for range s.wake {
				s.drain()
			}
		}()
		defer close(s.wake)
		record := []byte(strings.Repeat("x", lineSize-1) + "\n")
		for range bufferSize/lineSize + 7 {
			s.Write(record)
		}
		close(r.gate)
		synctest.Wait()
		if text := r.text(); dropped(text) != 7 || strings.Count(text, string(record)) != bufferSize/lineSize {
			t.Errorf("%d written, %d dropped", strings.Count(text, string(record)), dropped(text))
		}
	})
}

func TestLinesThatCannotBeWrittenAreCounted(t *testing.T) {
	r := &reader{fail: errors.New("no space left on device"), part: 3}
	s := New(r)
	for i := range 5 {
		fmt.Fprintf(s, "line %d\n\tcommand\n", i)
		s.Flush(time.Minute)
	}
	r.set(nil, 0)
	fmt.Fprintln(s, "room")
	s.Flush(time.Minute)
	first, rest, _ := strings.Cut(r.text(), "\n")
	if first != "lin" || dropped(rest) != 5 || !strings.HasSuffix(rest, "\nroom\n") || strings.Count(rest, "\n") != 2 {
		t.Errorf("wrote\n%s", r.text())
	}
}

func TestLongLineIsCut(t *testing.T) {
	var r reader
	s := New(&r)
	io.WriteString(s, strings.Repeat("x", lineSize+5)+"\n")
	s.Flush(time.Minute)
	if got := r.text(); !strings.HasSuffix(got, "x… (6 bytes more)\n") || len(got) > lineSize+50 {
		t.Errorf("%d bytes: …%q", len(got), got[len(got)-30:])
	}
}

func TestSinkKeepsNoRoom(t *testing.T) {
	r := &reader{gate: make(chan struct{})}
	s := New(r)
	for range 2000 {
		s.Write(bytes.Repeat([]byte("x\n"), 250))
	}
	close(r.gate)
	s.Flush(time.Minute)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := cap(s.buf) + cap(s.spare); n > 2*idleSize {
		t.Errorf("%d bytes are kept", n)
	}
}

// A descriptor may be non-blocking, since other processes share it: then a line waits for its
// reader all the same.
func TestDescriptorThatDoesNotBlock(t *testing.T) {
	r, w, err := os.Pipe() // non-blocking, both
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	conn, err := w.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	const size = 1 << 20
	done := make(chan error, 1)
	go func() {
		done <- conn.Control(func(fd uintptr) {
			if n, err := Descriptor(fd).Write(make([]byte, size)); n != size || err != nil {
				t.Errorf("wrote %d, %v", n, err)
			}
		})
	}()
	if _, err := io.CopyN(io.Discard, r, size); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	runtime.KeepAlive(w)
}
