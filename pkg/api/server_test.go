package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/lab/wait"
	"flanneld/pkg/plan"
	"flanneld/pkg/status"
)

// quiet returns the sources of a daemon without conditions.
func quiet() Sources {
	s := NewState(condition.NewList(slog.New(slog.DiscardHandler)))
	return Sources{State: s, Status: func() status.Document {
		d := status.NotRunning(time.Now(), status.VerdictOK, "")
		d.Conditions = s.Conditions()
		return d
	}}
}

// listenStatus serves sources over TCP and returns the address.
func listenStatus(t testing.TB, s Sources) string {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	addr := free.Addr().(*net.TCPAddr).AddrPort()
	s.serveTCP(t, addr, func(err error) error { return err })
	wait.For(t, 5*time.Second, "the port", func() error {
		c, err := net.Dial("tcp", addr.String())
		if err == nil {
			c.Close()
		}
		return err
	})
	return addr.String()
}

// serveTCP serves sources over TCP until the end of the test.
func (s Sources) serveTCP(t testing.TB, addr netip.AddrPort, explain func(error) error) {
	ctx, cancel := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	serving.Go(func() { s.ServeTCP(ctx, addr, explain, s.State.conditions, slog.New(slog.DiscardHandler)) })
	t.Cleanup(func() {
		cancel()
		serving.Wait()
	})
}

// TestStatusPortIsRetried: a port that another program has is a condition, whose reason is looked for
// once, and it is served when it is free.
func TestStatusPortIsRetried(t *testing.T) {
	t.Parallel()
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	s, addr := quiet(), other.Addr().(*net.TCPAddr).AddrPort()
	var explained atomic.Int32
	s.serveTCP(t, addr, func(err error) error {
		explained.Add(1)
		return fmt.Errorf("%w: python3 has it", err)
	})
	wait.For(t, 5*time.Second, "the condition", func() error {
		for _, c := range s.State.Conditions() {
			if c.ID == portCondition && c.Severity == status.Notice && strings.Contains(c.Text, "address already in use: python3 has it") {
				return nil
			}
		}
		return fmt.Errorf("conditions: %+v", s.State.Conditions())
	})
	other.Close()
	wait.For(t, 3*socketCheck, "an answer", func() error {
		answer, err := http.Get("http://" + addr.String() + "/healthz")
		if err == nil {
			answer.Body.Close()
		}
		return err
	})
	if all := s.State.Conditions(); len(all) > 0 {
		t.Errorf("conditions: %+v", all)
	}
	if n := explained.Load(); n != 1 {
		t.Errorf("the reason was looked for %d times", n)
	}
}

// exchange sends a request as it is, and returns the status of the answer; 0 if there is none.
func exchange(t *testing.T, addr, request string) (code int) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(4 * requestTimeout))
	go io.WriteString(c, request) // may be refused halfway
	r := bufio.NewReader(c)
	answer, err := http.ReadResponse(r, nil)
	if err == nil {
		io.Copy(io.Discard, answer.Body)
		code = answer.StatusCode
	}
	if _, err := r.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection stays: %v", err)
	}
	return code
}

func TestStatusServerOnlyReads(t *testing.T) {
	t.Parallel()
	addr := listenStatus(t, quiet())
	const rest = " HTTP/1.1\r\nHost: x\r\n"
	for _, f := range []struct {
		name, request string
		code          int
	}{
		{"status", "GET /status" + rest + "\r\n", 200},
		{"head", "HEAD /status" + rest + "\r\n", 200},
		{"not ready", "GET /readyz" + rest + "\r\n", 503},
		{"health", "GET /healthz" + rest + "\r\n", 200},
		{"no metrics", "GET /metrics" + rest + "\r\n", 404},
		{"post", "POST /status" + rest + "Content-Length: 0\r\n\r\n", 405},
		{"put", "PUT /readyz" + rest + "Content-Length: 1\r\n\r\nx", 405},
		{"delete", "DELETE /healthz" + rest + "\r\n", 405},
		{"another path", "GET /cleanup" + rest + "\r\n", 404},
		{"below", "GET /status/peers" + rest + "\r\n", 404},
		{"profile", "GET /debug/pprof/heap" + rest + "\r\n", 404},
		{"two requests", "GET /healthz" + rest + "\r\nGET /healthz" + rest + "\r\n", 200},
		{"10 MB of header", "GET /status" + rest + "X: " + strings.Repeat("x", 10<<20) + "\r\n\r\n", 431},
		{"10 MB of headers", "GET /status" + rest + strings.Repeat("X: y\r\n", 10<<20/6) + "\r\n", 431},
		{"10 MB of path", "GET /" + strings.Repeat("x", 10<<20) + rest + "\r\n", 431},
		{"10 MB of body", "POST /status" + rest + "Content-Length: 10485760\r\n\r\n" + strings.Repeat("x", 10<<20), 405},
		{"10 MB of body for a read", "GET /healthz" + rest + "Content-Length: 10485760\r\n\r\n" + strings.Repeat("x", 10<<20), 200},
		{"chunks without an end", "GET /healthz" + rest + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1\r\nx\r\n", 1<<20), 200},
		{"nothing", "", 0},
		{"no end", "GET /status" + rest, 0},
		{"not HTTP", "\x16\x03\x01\x00\r\n\r\n", 400},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			if code := exchange(t, addr, f.request); code != f.code {
				t.Errorf("status %d, want %d", code, f.code)
			}
		})
	}
}

// TestSlowClientsUseLittleMemory: 1,000 connections that send as slowly or as much as they can cost
// little memory, and another client is answered at once.
func TestSlowClientsUseLittleMemory(t *testing.T) {
	s := quiet()
	header := "X: " + strings.Repeat("x", 4096) + "\r\n"
	// Too large for the kernel's buffers.
	peers := slices.Repeat([]status.Peer{{Reason: strings.Repeat("x", 5<<10)}}, 1000)
	s.Status = func() status.Document {
		d := status.NotRunning(time.Now(), status.VerdictOK, "")
		d.Peers = peers
		return d
	}
	addr := listenStatus(t, s)
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var clients sync.WaitGroup
	defer clients.Wait()
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for i := range 1000 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
		clients.Go(func() {
			switch i % 3 {
			case 0:
				io.WriteString(c, "GET /status HTTP/1.1\r\nX: ")
			case 1: // never reads the answer
				io.WriteString(c, "GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
			default:
				for range 1000 {
					if _, err := io.WriteString(c, header); err != nil {
						return
					}
				}
			}
		})
	}
	most := uint64(0)
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	other := &http.Client{Timeout: requestTimeout, Transport: &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true}}
	for range 20 {
		answer, err := other.Get("http://" + addr + "/healthz")
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		runtime.GC()
		runtime.ReadMemStats(&now)
		most = max(most, now.HeapAlloc)
	}
	if grown := int64(most) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("%d MB more memory", grown>>20)
	}
}

// TestLargeAnswersAreFew: at most maxCostly large answers are made at a time, and others wait, but
// not for ever; small answers do not wait.
func TestLargeAnswersAreFew(t *testing.T) {
	t.Parallel()
	s := quiet()
	var running, most atomic.Int32
	release := make(chan struct{})
	s.Status = func() status.Document {
		n := running.Add(1)
		defer running.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-release
		return status.Document{}
	}
	s.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { s.Status() })
	addr := listenStatus(t, s)
	codes := make(chan int)
	const requests = maxCostly + 3
	for i := range requests {
		path := []string{"/status", "/metrics"}[i%2]
		go func() { codes <- exchange(t, addr, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n") }()
	}
	if code := exchange(t, addr, "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"); code != 503 {
		t.Errorf("/readyz meanwhile: %d", code)
	}
	for range requests - maxCostly {
		if code := <-codes; code != 503 {
			t.Errorf("beyond the limit: %d", code)
		}
	}
	close(release)
	for range maxCostly {
		if code := <-codes; code != 200 {
			t.Errorf("within the limit: %d", code)
		}
	}
	if most.Load() != maxCostly {
		t.Errorf("%d at a time, want %d", most.Load(), maxCostly)
	}
}

func TestReadyzListsConditions(t *testing.T) {
	s := quiet()
	list := s.State.conditions
	h := s.handler()
	for _, step := range []struct {
		do       func()
		code     int
		degraded string
		all      string
	}{
		{func() {}, 503, "", ""},
		{func() { s.State.SetEtcdDown(time.Unix(1, 0)) }, 503, "", "etcd"},
		{func() { s.State.SetEtcdDown(time.Time{}); s.State.SetReady() }, 200, "", ""},
		{func() { list.Set(condition.Condition{ID: "n", Severity: condition.Notice, Text: "x"}) }, 200, "", "n"},
		{func() { list.Set(condition.Condition{ID: "w", Text: "x", Fields: []any{"command", "do it"}}) }, 200, "w", "n w"},
		{func() { list.Set(condition.Condition{ID: "s", Severity: condition.Severe, Text: "x"}) }, 200, "w s", "n w s"},
		{func() { s.State.SetEtcdDown(time.Unix(1, 0)) }, 200, "etcd w s", "etcd n w s"},
		{func() { s.State.SetSubnetLost(true) }, 503, "", "etcd n w s"},
	} {
		step.do()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
		var r readiness
		if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, c := range r.Conditions {
			all = append(all, c.ID)
			if c.ID == "w" && (c.Remedy != "do it" || c.Severity != status.Warning || c.Text != "x") {
				t.Errorf("%+v", c)
			}
		}
		if w.Code != step.code || r.Ready != (step.code == 200) || strings.Join(r.Degraded, " ") != step.degraded || strings.Join(all, " ") != step.all {
			t.Errorf("%d %s, want %d %q %q", w.Code, w.Body, step.code, step.degraded, step.all)
		}
	}
}

func TestConditionsShowNoPasswords(t *testing.T) {
	for _, user := range []string{"root:secret@", "root:se@cret@", "root:se/cret@", "root@", ""} {
		s := quiet()
		url := "https://" + user + "198.51.100.1:2379"
		s.State.conditions.Set(condition.Condition{
			ID: "x", Text: "a text", Fields: []any{"err", "get " + url + "/v2: refused", "command", "etcdctl --endpoints=" + url + " put"},
		})
		c := s.State.Conditions()[0]
		if want := `a text: get https://198.51.100.1:2379/v2: refused`; c.Text != want || c.Remedy != "etcdctl --endpoints=https://198.51.100.1:2379 put" {
			t.Errorf("%q: %q, %q", user, c.Text, c.Remedy)
		}
		w := httptest.NewRecorder()
		s.State.HealthHandler().ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
		if got := w.Body.String(); !strings.Contains(got, `a text: get https://...`) || strings.Contains(got, "root") {
			t.Errorf("%q: the health port: %s", user, got)
		}
	}
}

// TestConditionsAreSortedByTheirBeginning: that etcd does not answer is one of them.
func TestConditionsAreSortedByTheirBeginning(t *testing.T) {
	s := quiet()
	s.State.SetEtcdDown(time.Now().Add(-time.Minute))
	s.State.conditions.Set(condition.Condition{ID: "later", Text: "x"})
	if c := s.State.Conditions(); len(c) != 2 || c[0].ID != status.StoreDown || c[1].ID != "later" {
		t.Errorf("%+v", c)
	}
}

// TestHealthPortShowsNoAddresses: conditions keep what helps without them.
func TestHealthPortShowsNoAddresses(t *testing.T) {
	list := condition.NewList(slog.New(slog.DiscardHandler))
	s := NewState(list)
	for i, value := range []any{
		netip.MustParseAddr("192.0.2.7"), netip.MustParsePrefix("10.42.0.0/16"), errors.New("dial tcp 192.0.2.7: refused"),
		"/coreos.com/network/subnets/10.42.7.0-24", "10-42-7-0", netip.MustParseAddr("fd42::7"), "02:00:00:00:00:07", "::1",
	} {
		list.Set(condition.Condition{ID: fmt.Sprint(i), Text: "a text", Fields: []any{"err", value, "reason", "kept: " + fmt.Sprint(i), "command", "ip addr add 192.0.2.7"}})
	}
	w := httptest.NewRecorder()
	s.HealthHandler().ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
	want := "flanneld is not ready yet"
	for i, shown := range []string{"...", "...", "dial tcp ...: refused", "/coreos.com/network/subnets/...", "...", "...", "...", "..."} {
		want += fmt.Sprintf("\na text: %s: kept: %d", shown, i)
	}
	if got := w.Body.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// FuzzRequest sends any request to the handler of the socket, which neither panics nor changes
// anything.
func FuzzRequest(f *testing.F) {
	for _, method := range []string{"GET", "POST", "OPTIONS", "CONNECT"} {
		for _, path := range []string{"/status", "/readyz", "/metrics", "/healthz", "//status", "/status?x=%zz", "*", "http://x/status", "/status/..%2f"} {
			f.Add([]byte(method + " " + path + " HTTP/1.1\r\nHost: x\r\n\r\n"))
		}
	}
	f.Add([]byte("GET /status HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc"))
	f.Add([]byte("GET /status HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"))
	s := quiet()
	s.State.SetReady()
	s.State.conditions.Set(condition.Condition{ID: "w", Text: "x"})
	h := s.handler()
	f.Fuzz(func(t *testing.T, request []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(request)))
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code == 200 && r.Method != "GET" && r.Method != "HEAD" {
			t.Errorf("%q is answered", request)
		}
		if w.Code == 200 && w.Header().Get("Content-Type") == "application/json" && !json.Valid(w.Body.Bytes()) {
			t.Errorf("%q: %s", request, w.Body)
		}
		if got := s.State.readiness(); !got.Ready || len(got.Conditions) != 1 {
			t.Errorf("%q has changed something: %+v", request, got)
		}
	})
}

// streaming returns sources with a page, whose events are sent as often as the channel has values.
func streaming(events <-chan struct{}) Sources {
	s := quiet()
	s.Page = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") })
	s.Events = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := http.NewResponseController(w)
		_ = out.SetReadDeadline(time.Time{})
		for {
			_ = out.SetWriteDeadline(time.Now().Add(requestTimeout))
			io.WriteString(w, "event\n")
			out.Flush()
			select {
			case <-events:
			case <-r.Context().Done():
				return
			}
		}
	})
	return s
}

// TestPageIsServedWhereTheStatusIs: and not on the health port, nor for other paths.
func TestPageIsServedWhereTheStatusIs(t *testing.T) {
	s := streaming(nil)
	for path, code := range map[string]int{"/": 200, "/index.html": 404, "/events/": 404, "/assets/main.js": 404} {
		w := httptest.NewRecorder()
		s.handler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != code {
			t.Errorf("%s: %d, want %d", path, w.Code, code)
		}
	}
	for _, path := range []string{"/", "/events"} {
		w := httptest.NewRecorder()
		s.State.HealthHandler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != 404 {
			t.Errorf("the health port, %s: %d", path, w.Code)
		}
		w = httptest.NewRecorder()
		s.handler().ServeHTTP(w, httptest.NewRequest("POST", path, nil))
		if w.Code != 405 {
			t.Errorf("POST %s: %d", path, w.Code)
		}
	}
}

// TestWatchersAreFew: a server refuses more at once, and has space when one has gone. The status is
// served meanwhile. A watcher may stay for longer than a request may take.
func TestWatchersAreFew(t *testing.T) {
	t.Parallel()
	events := make(chan struct{})
	addr := listenStatus(t, streaming(events))
	connect := func() (c net.Conn, lines *bufio.Reader, code int) {
		t.Helper()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		io.WriteString(c, "GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
		c.SetReadDeadline(time.Now().Add(4 * requestTimeout))
		answer, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		return c, bufio.NewReader(answer.Body), answer.StatusCode
	}
	first, lines, _ := connect()
	for i := range maxWatchers - 1 {
		if _, _, code := connect(); code != 200 {
			t.Errorf("watcher %d: %d", i+2, code)
		}
	}
	start := time.Now()
	if _, _, code := connect(); code != 503 || time.Since(start) > costlyWait {
		t.Errorf("one too many: %d after %v", code, time.Since(start))
	}
	if code := exchange(t, addr, "GET /status HTTP/1.1\r\nHost: x\r\n\r\n"); code != 200 {
		t.Errorf("the status: %d", code)
	}
	late := time.NewTimer(requestTimeout + time.Second - time.Since(start))
	<-late.C
	for range maxWatchers {
		events <- struct{}{}
	}
	for range 2 {
		if line, err := lines.ReadString('\n'); line != "event\n" {
			t.Errorf("%q, %v", line, err)
		}
	}
	first.Close()
	wait.For(t, 4*requestTimeout, "space for another watcher", func() error {
		if _, _, code := connect(); code != 200 {
			return fmt.Errorf("%d", code)
		}
		return nil
	})
}

// TestNamesOfOtherSitesAreRefused: by servers that only this host reaches, so that no site can read
// what they serve by giving its own name the address of this host. Others do not know their names.
func TestNamesOfOtherSitesAreRefused(t *testing.T) {
	s := streaming(nil)
	for host, local := range map[string]bool{
		"localhost": true, "localhost:9285": true, "LOCALHOST.:9285": true, "x.localhost:80": true, "flanneld": true, "127.0.0.1:9285": true, "192.0.2.1": true,
		"[::1]:9285": true, "[::1]": true, "[fe80::1%25eth0]:80": true, "": true,
		"site.example": false, "site.example:9285": false, "SITE.EXAMPLE.": false, "localhost.example": false, "127.0.0.1.example:80": false, "127.0.0.1.nip.example": false,
		"x.localhost.example": false, "notlocalhost.x": false, "[::1].example:80": false, "a.b:c:d": false,
	} {
		for _, path := range []string{"/", "/status", "/readyz", "/healthz"} {
			r := httptest.NewRequest("GET", path, nil)
			r.Host = host
			w := httptest.NewRecorder()
			localOnly(s.handler()).ServeHTTP(w, r)
			if want := map[bool]int{true: 200, false: 421}[local]; w.Code != want && (w.Code != 503 || path != "/readyz") {
				t.Errorf("%q, %s: %d, want %d", host, path, w.Code, want)
			}
			w = httptest.NewRecorder()
			if s.handler().ServeHTTP(w, r); w.Code == 421 {
				t.Errorf("%q, %s, for other hosts: %d", host, path, w.Code)
			}
		}
	}
	t.Parallel()
	if code := exchange(t, listenStatus(t, quiet()), "GET /status HTTP/1.1\r\nHost: site.example\r\n\r\n"); code != 421 {
		t.Errorf("over TCP, on a loopback address: %d", code)
	}
}

// TestOtherSitesAreRefused: a page of another site can connect, but gets no events and starts no plan;
// that of the daemon does, whatever its address.
func TestOtherSitesAreRefused(t *testing.T) {
	var plans atomic.Int32
	server := httptest.NewServer(Sources{
		State: NewState(condition.NewList(slog.New(slog.DiscardHandler))), Page: http.NotFoundHandler(),
		Events: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
		Plan: func(context.Context) plan.Document {
			plans.Add(1)
			return plan.New()
		},
	}.handler())
	defer server.Close()
	for _, c := range []struct {
		name, value string
		code        int
	}{
		{"Accept", "*/*", 200}, {"Sec-Fetch-Site", "same-origin", 200}, {"Sec-Fetch-Site", "none", 200}, {"Origin", server.URL, 200},
		{"Sec-Fetch-Site", "cross-site", 403}, {"Sec-Fetch-Site", "same-site", 403}, {"Origin", "http://attacker.example", 403}, {"Origin", "null", 403},
	} {
		for _, path := range []string{"/plan", "/events"} {
			r, err := http.NewRequest(http.MethodGet, server.URL+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set(c.name, c.value)
			answer, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()
			if answer.StatusCode != c.code {
				t.Errorf("%s, %s %s: %d, want %d", path, c.name, c.value, answer.StatusCode, c.code)
			}
		}
	}
	if n := plans.Load(); n != 4 {
		t.Errorf("%d plans were made", n)
	}
}
