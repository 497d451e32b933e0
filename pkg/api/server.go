// Package api answers questions about the daemon over HTTP: on a unix socket for the other
// commands of the program, on -status-listen for monitoring, and on the health port.
//
// It only reads: no request changes anything. Other rooms provide the answers (Sources), and set
// the state that readiness depends on (State). Invariant: requests, however many, slow or large,
// use a limited amount of the process's memory, descriptors and processor time.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/logsink"
	"flanneld/pkg/plan"
	"flanneld/pkg/status"
)

const (
	// requestTimeout limits the time to receive a request, and to send the answer.
	requestTimeout = 5 * time.Second
	// planTimeout limits the time to compute a plan, for which other programs are started. There is
	// one at a time.
	planTimeout = 10 * time.Second
	// maxHeader limits the size of a request. What a request has beyond it is not read.
	maxHeader = 8 << 10
	// maxCostly is the number of requests for large answers that a server serves at a time. Others
	// wait, up to costlyWait.
	maxCostly  = 2
	costlyWait = 2 * time.Second
	// maxWatchers is the number of clients that a server sends events to at a time.
	maxWatchers = 8

	portCondition = "status-listen"
)

// Sources are where answers come from. The functions are called by several goroutines. They must
// not wait for other work of the daemon.
type Sources struct {
	State *State
	// Status returns the document of /status.
	Status func() status.Document
	// Metrics answers /metrics; nil if there are none.
	Metrics http.Handler
	// Plan returns the document of /plan until its context ends; nil if there is none. It is served on
	// the unix socket only, because it starts other programs.
	Plan func(context.Context) plan.Document
	// Page answers / with a page that shows the status, and Events answers /events, for as long as
	// the client wants; both are nil if there are none.
	Page, Events http.Handler
	// Tick is called every few seconds while the socket is served, when the daemon is awake anyway;
	// nil if nothing is to be done then. It must be short.
	Tick func()
}

// handler returns the handler of the unix socket or of -status-listen. Each has its own limits of
// large answers and of watchers.
func (s Sources) handler() http.Handler {
	costly := limit{make(chan struct{}, maxCostly), costlyWait}
	watched := limit{make(chan struct{}, maxWatchers), 0}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", healthz)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		r := s.State.readiness()
		code := http.StatusOK
		if !r.Ready {
			code = http.StatusServiceUnavailable
		}
		writeJSON(w, code, r)
	})
	mux.Handle("GET /status", costly.limited(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, s.Status())
	})))
	if s.Metrics != nil {
		mux.Handle("GET /metrics", costly.limited(s.Metrics))
	}
	if s.Plan != nil {
		mux.Handle("GET /plan", sameOrigin(limit{make(chan struct{}, 1), costlyWait}.limited(http.HandlerFunc(s.servePlan))))
	}
	if s.Page != nil {
		mux.Handle("GET /{$}", costly.limited(s.Page))
		mux.Handle("GET /events", sameOrigin(watched.limited(s.Events)))
	}
	return mux
}

// servePlan answers /plan.
func (s Sources) servePlan(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), planTimeout)
	defer cancel()
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(planTimeout + requestTimeout)) // else it is that of other answers
	writeJSON(w, http.StatusOK, s.Plan(ctx))
}

// localOnly returns a handler that refuses requests for a name that others may have given to this
// host. Otherwise a page of another site, whose name first has the address of the site and then
// 127.0.0.1 (DNS rebinding), could read everything through the browser of whoever has forwarded a
// port to the socket. Addresses, localhost and names without a dot are no names of sites. A server
// for other hosts cannot know its names, and what it serves is for everyone who reaches it.
func localOnly(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isLocalName(r.Host) {
			w.WriteHeader(http.StatusMisdirectedRequest)
			io.WriteString(w, "the name of this server must be localhost, or an address\n")
			return
		}
		h.ServeHTTP(w, r)
	})
}

// sameOrigin returns a handler that refuses requests from pages of other sites in a browser. They could
// not read the answer, but keep others from watching, or have the daemon start programs.
func sameOrigin(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		site, origin := r.Header.Get("Sec-Fetch-Site"), r.Header.Get("Origin")
		if site == "cross-site" || site == "same-site" || origin != "" && origin != "http://"+r.Host && origin != "https://"+r.Host {
			w.WriteHeader(http.StatusForbidden)
			io.WriteString(w, "this is not for pages of other sites\n")
			return
		}
		h.ServeHTTP(w, r)
	})
}

// isLocalName reports whether the host of a request, which may have a port, is an address or a name
// that only this host can have.
func isLocalName(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	_, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return err == nil || !strings.Contains(name, ".") || strings.HasSuffix(name, ".localhost")
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // fails only if the client has gone
}

// limit is a limit of concurrent requests, and how long others wait.
type limit struct {
	slots chan struct{}
	wait  time.Duration
}

// limited returns a handler that serves a limited number of requests at a time, including the time
// to send the answers.
func (l limit) limited(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case l.acquire(r.Context()):
			defer func() { <-l.slots }()
			h.ServeHTTP(w, r)
		case r.Context().Err() == nil:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			io.WriteString(w, "too many requests at the same time\n")
		}
	})
}

// acquire waits for a slot, and reports whether there was one in time.
func (l limit) acquire(ctx context.Context) bool {
	select {
	case l.slots <- struct{}{}:
		return true
	default:
	}
	timer := time.NewTimer(l.wait)
	defer timer.Stop()
	select {
	case l.slots <- struct{}{}:
		return true
	case <-ctx.Done():
	case <-timer.C:
	}
	return false
}

// ServeTCP serves on the address of -status-listen until ctx ends. While it cannot listen, for
// example because another program has the port, there is a condition. explain adds to an error what
// else is known about it.
func (s Sources) ServeTCP(ctx context.Context, addr netip.AddrPort, explain func(error) error, conditions *condition.List, log *slog.Logger) {
	s.Plan = nil
	h := s.handler()
	if addr.Addr().IsLoopback() {
		h = localOnly(h)
	}
	var last, explained error // the same error is explained once
	keepServing(ctx, conditions, condition.Condition{
		ID: portCondition, Severity: condition.Notice, Text: "cannot serve the status at -status-listen, will retry",
	}, func() error {
		l, err := listenTCP(addr)
		if err != nil {
			if last == nil || err.Error() != last.Error() {
				last, explained = err, explain(err)
			}
			return explained
		}
		last = nil
		conditions.End(portCondition)
		server := newServer("status", h, log)
		stop := context.AfterFunc(ctx, func() { server.Close() })
		defer stop()
		_ = server.Serve(newListener(l)) // ends when it is closed; else it is served again
		return nil
	})
}

// ListenHealth starts and returns a server for the health port.
func (s *State) ListenHealth(addr netip.AddrPort, log *slog.Logger) (*http.Server, error) {
	l, err := listenTCP(addr)
	if err != nil {
		return nil, err
	}
	server := newServer("health", s.HealthHandler(), log)
	go func() {
		if err := server.Serve(newListener(l)); !errors.Is(err, http.ErrServerClosed) {
			log.Error("server failed, requests are no longer answered", "operation", "serve health", "err", err)
		}
	}()
	return server, nil
}

func listenTCP(addr netip.AddrPort) (net.Listener, error) {
	network := "tcp"
	if addr.Addr().Is4() {
		network = "tcp4" // else 0.0.0.0 would be all IPv6 addresses, too
	}
	return net.Listen(network, addr.String())
}

// newServer returns a server that limits the cost of a request, because clients may be hostile.
func newServer(name string, h http.Handler, log *slog.Logger) *http.Server {
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: requestTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      requestTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog: stdlog.New(logsink.Lines(func(line string) {
			log.Warn("error in a request", "operation", "serve "+name, "err", line)
		}), "", 0),
	}
	server.SetKeepAlivesEnabled(false) // one connection is one request
	return server
}
