package page

import (
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"flanneld/pkg/pace"
	"flanneld/pkg/status"
)

const (
	// updatePause is the time between two comparisons, and heartbeat the maximum time between two
	// events, by which a browser notices that the connection is lost.
	updatePause = time.Second
	heartbeat   = 5 * time.Second
	// joinPause is the time between a comparison and one for a new watcher.
	joinPause = 200 * time.Millisecond
	// maxShare limits the share of time that comparisons take to one in so many, unless that would
	// delay a heartbeat.
	maxShare = 20
	// maxQueue is the number of events that may wait for a watcher. If there are more, it is
	// dropped, because a later event is useless without those before.
	maxQueue = 8
	// sendTimeout is the time within which a watcher must take an event. The page connects again if it
	// has received none for 15 seconds.
	sendTimeout = 10 * time.Second
	// reconnectPause is the time after which a browser whose connection is lost connects again.
	reconnectPause = "retry: 2000\n\n"
)

// feed sends events to watchers. While there are some, one goroutine reads the status and compares
// it with that before, for all of them.
type feed struct {
	status  func() status.Document
	traffic func() (Traffic, uint64)
	page    func() string
	wake    chan struct{}

	mu       sync.Mutex
	watchers []*watcher
	running  bool

	// The following belong to the goroutine of run.
	before *state        // what the watchers have been sent
	sent   time.Time     // time of the last event
	ended  time.Time     // end of the last comparison
	cost   time.Duration // duration of the last comparison
}

// watcher is a client that is sent events.
type watcher struct {
	queue chan []byte // closed when the watcher is dropped
	began bool        // it was sent the whole state; belongs to the goroutine of run
}

// ServeHTTP implements http.Handler.
func (f *feed) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	setCommonHeaders(h)
	if r.Method == http.MethodHead {
		return
	}
	out := http.NewResponseController(w)
	_ = out.SetReadDeadline(time.Time{}) // that of the server is for a request with a short answer
	if send(w, out, []byte(reconnectPause)) != nil {
		return
	}
	c := f.join()
	defer f.leave(c)
	for {
		select {
		case <-r.Context().Done():
			return
		case m, there := <-c.queue:
			if !there || send(w, out, m) != nil {
				return
			}
		}
	}
}

// send sends a message, which must be taken in time.
func send(w io.Writer, out *http.ResponseController, m []byte) error {
	_ = out.SetWriteDeadline(time.Now().Add(sendTimeout)) // of a connection, always possible
	if _, err := w.Write(m); err != nil {
		return err
	}
	return out.Flush()
}

// join adds a watcher. It is sent the whole state soon.
func (f *feed) join() *watcher {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := &watcher{queue: make(chan []byte, maxQueue)}
	f.watchers = append(f.watchers, c)
	if !f.running {
		f.running = true
		go f.run()
	}
	pace.Wake(f.wake)
	return c
}

// leave removes a watcher.
func (f *feed) leave(c *watcher) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watchers = slices.DeleteFunc(f.watchers, func(o *watcher) bool { return o == c })
	pace.Wake(f.wake)
}

// present returns the watchers. If there are none, the goroutine of run ends.
func (f *feed) present() []*watcher {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.running = len(f.watchers) > 0; !f.running {
		f.before = nil
	}
	return slices.Clone(f.watchers)
}

// run sends events until there are no watchers.
func (f *feed) run() {
	for watchers := f.present(); len(watchers) > 0; watchers = f.present() {
		if f.wait(watchers) {
			start := time.Now()
			f.update(watchers)
			f.ended = time.Now()
			f.cost = f.ended.Sub(start)
		}
	}
}

// wait waits until the next comparison is due, or until a watcher has come or gone. It reports
// whether the comparison is due.
func (f *feed) wait(watchers []*watcher) bool {
	pause := updatePause
	if slices.ContainsFunc(watchers, func(c *watcher) bool { return !c.began }) {
		pause = joinPause
	}
	pause = min(max(pause, maxShare*f.cost), heartbeat)
	timer := time.NewTimer(pause - time.Since(f.ended))
	defer timer.Stop()
	select {
	case <-f.wake:
		return false
	case <-timer.C:
		return true
	}
}

// update compares the present state with what the watchers have been sent, and sends them what has
// changed.
func (f *feed) update(watchers []*watcher) {
	traffic, rates := f.traffic()
	now, before := newState(f.status(), rates), f.before
	f.before = now
	encode := func(e Event) []byte {
		if e.Page = f.page(); e.Whole || rates != before.rates {
			e.Traffic = &traffic
		}
		return message(e)
	}
	var change, whole []byte
	if before == nil {
		f.sent = time.Now()
	} else if e, differs := now.since(before); differs || time.Since(f.sent) >= heartbeat {
		change, f.sent = encode(e), time.Now()
	}
	for _, c := range watchers {
		switch {
		case c.began && change != nil:
			f.push(c, change)
		case !c.began:
			if whole == nil {
				whole = encode(now.whole())
			}
			c.began = true
			f.push(c, whole)
		}
	}
}

// push queues a message for a watcher, or drops the watcher if too many are waiting.
func (f *feed) push(c *watcher, m []byte) {
	select {
	case c.queue <- m:
		return
	default:
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := slices.Index(f.watchers, c); i >= 0 {
		f.watchers = slices.Delete(f.watchers, i, i+1)
		close(c.queue)
	}
}
