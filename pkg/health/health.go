// Package health answers health checks over HTTP: /healthz reports that the process lives, /readyz
// that the host has its subnet.
//
// Other rooms set its state by SetReady, SetSubnetLost and SetEtcdDown, and the reasons why the
// host is not ready are read from the list of conditions. Invariant: requests, however many, use a
// limited amount of the process's memory, descriptors and processor time.
package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"flanneld/pkg/condition"
	"flanneld/pkg/logsink"
)

// Port is the state that is reported. All methods may be called by several goroutines.
type Port struct {
	ready         atomic.Bool
	subnetLost    atomic.Bool
	etcdDownSince atomic.Pointer[time.Time]
}

const (
	// maxConns limits the number of connections, of the 1024 descriptors that a process often has.
	// A further one replaces the oldest of the address that has most, so that an address with many
	// connections does not lock out others.
	maxConns = 128
	// requestTimeout limits the time to receive a request, and to send the answer.
	requestTimeout = 5 * time.Second
	// Connections beyond acceptBurst, which is more than the kernel's queue, are accepted at
	// acceptRate per second, so that they take a few percent of a processor.
	acceptBurst = 16384
	acceptRate  = 2000
)

// SetReady sets that the host has its subnet.
func (p *Port) SetReady() { p.ready.Store(true) }

// SetSubnetLost sets whether another host has taken the subnet, and this one has no other yet.
func (p *Port) SetSubnetLost(lost bool) { p.subnetLost.Store(lost) }

// SetEtcdDown sets since when etcd does not answer; the zero time means that it answers.
func (p *Port) SetEtcdDown(since time.Time) { p.etcdDownSince.Store(&since) }

// Listen starts and returns a server. /healthz reports that the process lives. /readyz reports that the host
// has its subnet, or why not, and whether etcd is unreachable, which is degraded but not an error.
// All other paths return 404.
func (p *Port) Listen(addr netip.AddrPort, wrong *condition.List, log *slog.Logger) (*http.Server, error) {
	network := "tcp"
	if addr.Addr().Is4() {
		network = "tcp4" // else 0.0.0.0 would be all IPv6 addresses, too
	}
	l, err := net.Listen(network, addr.String())
	if err != nil {
		return nil, fmt.Errorf("answer health checks: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "flanneld is running")
	})
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		away := ""
		if since := p.etcdDownSince.Load(); since != nil && !since.IsZero() {
			away = "etcd does not answer since " + since.Format(time.RFC3339)
		}
		switch {
		case !p.ready.Load():
			writeNotReady(w, "flanneld is not ready yet", away, wrong)
		case p.subnetLost.Load():
			writeNotReady(w, "flanneld is not ready: another host has the subnet of this one", away, wrong)
		case away != "":
			io.WriteString(w, "flanneld is ready, degraded: "+away)
		default:
			io.WriteString(w, "flanneld is ready")
		}
	})
	// Clients may be hostile: limit the cost of a request.
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: requestTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      requestTimeout,
		MaxHeaderBytes:    8 << 10,
		ErrorLog: stdlog.New(logsink.Lines(func(line string) {
			log.Warn("health server error", "err", line)
		}), "", 0),
	}
	server.SetKeepAlivesEnabled(false) // one connection is one request
	go func() {
		if err := server.Serve(newListener(l)); !errors.Is(err, http.ErrServerClosed) {
			log.Error("health server failed, health checks are no longer answered", "err", err)
		}
	}()
	return server, nil
}

// writeNotReady writes that the host has no subnet, followed by the present conditions.
func writeNotReady(w http.ResponseWriter, what, away string, wrong *condition.List) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8") // conditions may contain any text
	w.WriteHeader(http.StatusServiceUnavailable)
	io.WriteString(w, what)
	if away != "" {
		io.WriteString(w, "\n"+away)
	}
	for _, c := range wrong.Current() {
		io.WriteString(w, "\n"+c.String())
	}
}

// listener limits the number of its connections.
type listener struct {
	net.Listener
	accepts *rate.Limiter

	mu   sync.Mutex
	open []*conn // the oldest first
	from map[netip.Addr]int
}

func newListener(l net.Listener) *listener {
	return &listener{Listener: l, accepts: rate.NewLimiter(acceptRate, acceptBurst), from: map[netip.Addr]int{}}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	_ = l.accepts.Wait(context.Background()) // for one connection: at most 1/acceptRate
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	added := &conn{Conn: c, listener: l}
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		added.from = a.AddrPort().Addr().Unmap()
	}
	if victim := l.add(added); victim != nil {
		victim.Conn.Close()
	}
	return added, nil
}

// add adds a connection. If there are too many, it removes and returns another one.
func (l *listener) add(c *conn) (victim *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = append(l.open, c)
	l.from[c.from]++
	if len(l.open) <= maxConns {
		return nil
	}
	for _, o := range l.open {
		if victim == nil || l.from[o.from] > l.from[victim.from] {
			victim = o
		}
	}
	l.remove(victim)
	return victim
}

// remove removes a connection. The caller holds the lock.
func (l *listener) remove(c *conn) {
	i := slices.Index(l.open, c)
	if i < 0 {
		return
	}
	l.open = slices.Delete(l.open, i, i+1)
	if l.from[c.from]--; l.from[c.from] == 0 {
		delete(l.from, c.from)
	}
}

// conn is a connection that its listener counts.
type conn struct {
	net.Conn
	listener *listener
	from     netip.Addr
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.listener.mu.Lock()
	c.listener.remove(c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}
