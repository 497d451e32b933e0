package page

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/pkg/lab/wait"
	"flanneld/pkg/status"
)

// feedOf returns a feed of a document that may be changed, and the number of times that it was read.
// Reading it takes some time.
func feedOf(takes time.Duration) (f *feed, set func(status.Document), reads *atomic.Int64) {
	var mu sync.Mutex
	document := documentOf(1, 2)
	reads = new(atomic.Int64)
	f = &feed{
		wake: make(chan struct{}, 1), page: func() string { return "id" }, traffic: func() (Traffic, uint64) { return Traffic{}, 0 },
		status: func() status.Document {
			reads.Add(1)
			if takes > 0 {
				<-time.After(takes)
			}
			mu.Lock()
			defer mu.Unlock()
			d := document
			d.Now = time.Now()
			return d
		},
	}
	return f, func(d status.Document) {
		mu.Lock()
		defer mu.Unlock()
		document = d
	}, reads
}

// after returns the event that a watcher has received after some time, or nil if there is none.
func (c *watcher) after(t *testing.T, d time.Duration) *Event {
	t.Helper()
	<-time.After(d)
	synctest.Wait()
	select {
	case m, there := <-c.queue:
		if !there {
			t.Fatal("it was dropped")
		}
		var e Event
		data := strings.TrimSuffix(strings.TrimPrefix(string(m), "data: "), "\n\n")
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			t.Fatalf("%v: %q", err, m)
		}
		return &e
	default:
		return nil
	}
}

// String returns the peers of an event.
func (e *Event) String() string {
	if e == nil {
		return "none"
	}
	text := fmt.Sprintf("whole=%v traffic=%v", e.Whole, e.Traffic != nil)
	for _, p := range e.Peers {
		text += " +" + p.Subnet.String()
	}
	for _, s := range e.Gone {
		text += " -" + s.String()
	}
	return text
}

// TestWatchersAreSentWhatChanges: the whole state at first, then changes once a second at most, and
// without a change a heartbeat. While nobody watches, nothing is read, and nothing is kept.
func TestWatchersAreSentWhatChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, set, reads := feedOf(0)
		<-time.After(time.Hour)
		if n := reads.Load(); n > 0 {
			t.Errorf("read %d times for nobody", n)
		}
		one := f.join()
		if e := one.after(t, 0); e == nil || !e.Whole || len(e.Peers) != 2 || e.Page != "id" || e.Traffic == nil || len(e.Facts) == 0 {
			t.Fatalf("first: %v", e)
		}
		if e := one.after(t, heartbeat-time.Second); e != nil {
			t.Errorf("without a change: %v", e)
		}
		if e := one.after(t, time.Second); e == nil || e.Whole || len(e.Peers) > 0 || e.Traffic != nil {
			t.Errorf("heartbeat: %v", e)
		}
		set(documentOf(2, 3))
		if e := one.after(t, updatePause); e == nil || e.Whole || len(e.Peers) != 1 || e.Peers[0].Subnet != subnet(3) || len(e.Gone) != 1 {
			t.Errorf("change: %v", e)
		}
		two := f.join()
		set(documentOf(2, 3, 4))
		if e := two.after(t, joinPause); e == nil || !e.Whole || len(e.Peers) != 3 {
			t.Errorf("first of the second: %v", e)
		}
		if e := one.after(t, 0); e == nil || e.Whole || len(e.Peers) != 1 || e.Peers[0].Subnet != subnet(4) {
			t.Errorf("change meanwhile: %v", e)
		}
		f.leave(one)
		f.leave(two)
		synctest.Wait()
		before := reads.Load()
		<-time.After(time.Hour)
		if n := reads.Load(); n != before || f.running || f.before != nil {
			t.Errorf("read %d times for nobody, running %v, state %p", n-before, f.running, f.before)
		}
		three := f.join()
		if e := three.after(t, 0); e == nil || !e.Whole {
			t.Errorf("after a pause: %v", e)
		}
		f.leave(three)
	})
}

// TestSlowWatcherIsDropped: one that takes nothing does not delay another one, which is sent
// everything.
func TestSlowWatcherIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, set, _ := feedOf(0)
		slow, other := f.join(), f.join()
		other.after(t, 0)
		for i := range 2 * maxQueue {
			set(documentOf(i + 1))
			if e := other.after(t, updatePause); e == nil || len(e.Peers) > 1 || len(e.Peers)+len(e.Gone) == 0 {
				t.Errorf("event %d: %v", i, e)
			}
		}
		n := 0
		for range slow.queue {
			n++
		}
		if n != maxQueue {
			t.Errorf("it was sent %d events", n)
		}
		if len(f.present()) != 1 {
			t.Errorf("%d watchers", len(f.present()))
		}
		f.leave(slow) // as its handler does
		f.leave(other)
	})
}

// TestCostIsLimited: however often watchers come and go, and however long it takes to read the
// status, it is read seldom.
func TestCostIsLimited(t *testing.T) {
	for _, takes := range []time.Duration{0, 50 * time.Millisecond, 10 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			f, _, reads := feedOf(takes)
			start := time.Now()
			for time.Since(start) < time.Minute {
				c := f.join()
				<-time.After(time.Millisecond)
				f.leave(c)
			}
			synctest.Wait()
			<-time.After(takes)
			most := time.Minute/max(joinPause, min(maxShare*takes, heartbeat)) + 2
			if n := reads.Load(); n > int64(most) || n < int64(most)/4 {
				t.Errorf("takes %v: read %d times in a minute, want %d at most", takes, n, most)
			}
		})
	}
}

// watch returns the lines of the answer to a request for events.
func watch(t *testing.T, url string, headers ...string) (answer *http.Response, lines *bufio.Scanner) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	answer, err = http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { answer.Body.Close() })
	return answer, bufio.NewScanner(answer.Body)
}

// TestEventsOverHTTP: the format, and that watchers are counted as long as they are connected.
func TestEventsOverHTTP(t *testing.T) {
	f, _, _ := feedOf(0)
	server := httptest.NewServer(f)
	defer server.Close()
	answer, lines := watch(t, server.URL)
	for _, want := range []string{"retry: ", "", `data: {"version":1,`, ""} {
		if !lines.Scan() || !strings.HasPrefix(lines.Text(), want) || want == "" && lines.Text() != "" {
			t.Errorf("%q, want %q", lines.Text(), want)
		}
	}
	if h := answer.Header; h.Get("Content-Type") != "text/event-stream" || h.Get("Cache-Control") != "no-store" || h.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%v", h)
	}
	head, err := http.Head(server.URL)
	if err != nil || head.StatusCode != 200 || head.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("HEAD: %v, %v", head, err)
	}
	if n := len(f.present()); n != 1 {
		t.Errorf("%d watchers", n)
	}
	answer.Body.Close()
	wait.For(t, 10*time.Second, "no watchers", func() error {
		if n := len(f.present()); n > 0 {
			return fmt.Errorf("%d watchers", n)
		}
		return nil
	})
}

// TestClientThatDoesNotReadIsDropped: large events do not wait for it in memory for long.
func TestClientThatDoesNotReadIsDropped(t *testing.T) {
	t.Parallel()
	f, set, _ := feedOf(0)
	huge := documentOf(1)
	huge.Reason = strings.Repeat("x", 32<<20)
	set(huge)
	server := httptest.NewServer(f)
	defer server.Close()
	c, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "GET /events HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	present := func(want int) {
		t.Helper()
		wait.For(t, 3*sendTimeout, fmt.Sprint(want, " watchers"), func() error {
			if n := len(f.present()); n != want {
				return fmt.Errorf("%d", n)
			}
			return nil
		})
	}
	present(1)
	present(0)
	wait.For(t, sendTimeout, "the end of the goroutine", func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.running {
			return errors.New("it runs")
		}
		return nil
	})
}
