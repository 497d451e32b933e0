// Package health answers health checks over HTTP: /healthz says that the process lives, /readyz
// that the host has its subnet.
//
// It knows nothing by itself: whoever knows says so, by Ready, Lost and Away, and what keeps the
// host from being ready is read from the list of conditions. Invariant: whatever comes
// in at the port costs a bounded part of the process's memory, descriptors and processor.
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
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"flanneld/pkg/condition"
	"flanneld/pkg/logsink"
)

// Port is where the daemon says how it is. The zero value answers nobody; all methods may be
// called by several goroutines.
type Port struct {
	ready         atomic.Bool
	subnetLost    atomic.Bool
	etcdDownSince atomic.Pointer[time.Time]
	server        *http.Server // nil: it does not answer
}

const (
	// maxConns is how many connections to the health port there may be, of the 1024
	// descriptors that a process often has. A further one takes the place of another, the
	// oldest of the address that has most, so that whoever holds many keeps nobody out.
	maxConns = 128
	// requestTimeout bounds how long a request may take to come, and an answer to be read.
	requestTimeout = 5 * time.Second
	// Connections beyond acceptBurst at once, which is more than the kernel has waiting, are
	// accepted at acceptRate a second: then they take a few per cent of a processor.
	acceptBurst = 16384
	acceptRate  = 2000
)

// SetReady says that the host has had its subnet from now on.
func (p *Port) SetReady() { p.ready.Store(true) }

// SetSubnetLost says whether another host has it, and this one has no other yet.
func (p *Port) SetSubnetLost(lost bool) { p.subnetLost.Store(lost) }

// SetEtcdDown says since when etcd does not answer, the zero time if it does.
func (p *Port) SetEtcdDown(since time.Time) { p.etcdDownSince.Store(&since) }

// Close ends the answers.
func (p *Port) Close() error {
	if p.server == nil {
		return nil
	}
	return p.server.Close()
}

// Listen answers /healthz, which says that the process lives, and /readyz, which
// says that the host has its subnet, or what keeps it from that, and whether etcd is away: then
// it is degraded, not broken. Everything else is 404.
func (p *Port) Listen(ip string, port int, wrong *condition.List, log *slog.Logger) error {
	network := "tcp"
	if a, err := netip.ParseAddr(ip); err == nil && a.Is4() {
		network = "tcp4" // else 0.0.0.0 would be all IPv6 addresses, too
	}
	l, err := net.Listen(network, net.JoinHostPort(ip, strconv.Itoa(port)))
	if err != nil {
		return fmt.Errorf("answer health checks: %w", err)
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
	// Whoever reaches the port may be hostile: bound what a request costs.
	p.server = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: requestTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      requestTimeout,
		MaxHeaderBytes:    8 << 10,
		ErrorLog: stdlog.New(logsink.Lines(func(line string) {
			log.Warn("health server error", "err", line)
		}), "", 0),
	}
	p.server.SetKeepAlivesEnabled(false) // one connection is one request
	go func() {
		if err := p.server.Serve(newListener(l)); !errors.Is(err, http.ErrServerClosed) {
			log.Error("health server failed, health checks are no longer answered", "err", err)
		}
	}()
	return nil
}

// writeNotReady says that the host has no subnet, and in a line each what may keep it from one.
func writeNotReady(w http.ResponseWriter, what, away string, wrong *condition.List) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8") // whatever is in a condition
	w.WriteHeader(http.StatusServiceUnavailable)
	io.WriteString(w, what)
	if away != "" {
		io.WriteString(w, "\n"+away)
	}
	for _, c := range wrong.Current() {
		io.WriteString(w, "\n"+c.String())
	}
}

// listener bounds how many of its connections there are.
type listener struct {
	net.Listener
	accepts *rate.Limiter
	ctx     context.Context // ends with the listener
	cancel  context.CancelFunc

	mu   sync.Mutex
	open []*conn // the oldest first
	from map[netip.Addr]int
}

func newListener(l net.Listener) *listener {
	h := &listener{Listener: l, accepts: rate.NewLimiter(acceptRate, acceptBurst), from: map[netip.Addr]int{}}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	if l.accepts.Wait(l.ctx) != nil {
		return nil, net.ErrClosed
	}
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

// add notes a connection, and forgets the one whose place it takes, if there are too many.
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

// remove is called with the listener locked.
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

// Close implements net.Listener.
func (l *listener) Close() error {
	l.cancel()
	return l.Listener.Close()
}

// conn is a connection that its listener knows of.
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
