package daemon

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

	"flanneld/pkg/logsink"
)

// health is what the daemon says of itself.
type health struct {
	ready atomic.Bool // the host has its subnet
	away  atomic.Pointer[time.Time]
}

const (
	// healthConns is how many connections to the health port there may be, of the 1024
	// descriptors that a process often has. A further one takes the place of another, the
	// oldest of the address that has most, so that whoever holds many keeps nobody out.
	healthConns = 128
	// healthTime bounds how long a request may take to come, and an answer to be read.
	healthTime = 5 * time.Second
	// Connections beyond acceptBurst at once, which is more than the kernel has waiting, are
	// accepted at acceptRate a second: then they take a few per cent of a processor.
	acceptBurst = 16384
	acceptRate  = 2000
)

// start answers /healthz, which says that the process lives, and /readyz, which
// says that the host has its subnet, and whether etcd is away: then it is
// degraded, not broken. Everything else is 404.
func (h *health) start(ip string, port int, log *slog.Logger) (*http.Server, error) {
	network := "tcp"
	if a, err := netip.ParseAddr(ip); err == nil && a.Is4() {
		network = "tcp4" // else 0.0.0.0 would be all IPv6 addresses, too
	}
	l, err := net.Listen(network, net.JoinHostPort(ip, strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("answer health checks: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "flanneld is running")
	})
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		since := h.away.Load()
		switch {
		case !h.ready.Load():
			w.WriteHeader(http.StatusServiceUnavailable)
			io.WriteString(w, "flanneld is not ready yet")
		case since != nil && !since.IsZero():
			fmt.Fprintf(w, "flanneld is ready, degraded: etcd does not answer since %s", since.Format(time.RFC3339))
		default:
			io.WriteString(w, "flanneld is ready")
		}
	})
	// Whoever reaches the port may be hostile: bound what a request costs.
	s := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: healthTime,
		ReadTimeout:       healthTime,
		WriteTimeout:      healthTime,
		MaxHeaderBytes:    8 << 10,
		ErrorLog: stdlog.New(logsink.Lines(func(line string) {
			log.Warn("health port reports an error", "err", line)
		}), "", 0),
	}
	s.SetKeepAlivesEnabled(false) // one connection is one request
	go func() {
		if err := s.Serve(newHealthListener(l)); !errors.Is(err, http.ErrServerClosed) {
			log.Error("health port has failed, health checks are not answered any more", "err", err)
		}
	}()
	return s, nil
}

// healthListener bounds how many of its connections there are.
type healthListener struct {
	net.Listener
	accepts *rate.Limiter
	ctx     context.Context // ends with the listener
	cancel  context.CancelFunc

	mu   sync.Mutex
	open []*healthConn // the oldest first
	from map[netip.Addr]int
}

func newHealthListener(l net.Listener) *healthListener {
	h := &healthListener{Listener: l, accepts: rate.NewLimiter(acceptRate, acceptBurst), from: map[netip.Addr]int{}}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h
}

// Accept implements net.Listener.
func (l *healthListener) Accept() (net.Conn, error) {
	if l.accepts.Wait(l.ctx) != nil {
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	added := &healthConn{Conn: c, of: l}
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		added.from = a.AddrPort().Addr().Unmap()
	}
	if victim := l.add(added); victim != nil {
		victim.Conn.Close()
	}
	return added, nil
}

// add notes a connection, and forgets the one whose place it takes, if there are too many.
func (l *healthListener) add(c *healthConn) (victim *healthConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = append(l.open, c)
	l.from[c.from]++
	if len(l.open) <= healthConns {
		return nil
	}
	for _, o := range l.open {
		if victim == nil || l.from[o.from] > l.from[victim.from] {
			victim = o
		}
	}
	l.forget(victim)
	return victim
}

// forget is called with the listener locked.
func (l *healthListener) forget(c *healthConn) {
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
func (l *healthListener) Close() error {
	l.cancel()
	return l.Listener.Close()
}

// healthConn is a connection that its listener knows of.
type healthConn struct {
	net.Conn
	of   *healthListener
	from netip.Addr
}

// Close implements net.Conn.
func (c *healthConn) Close() error {
	c.of.mu.Lock()
	c.of.forget(c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}
