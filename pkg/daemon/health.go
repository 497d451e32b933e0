package daemon

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// health is what the daemon says of itself.
type health struct {
	ready atomic.Bool // the host has its subnet
	away  atomic.Pointer[time.Time]
}

// start answers /healthz, which says that the process lives, and /readyz, which
// says that the host has its subnet, and whether etcd is away: then it is
// degraded, not broken. Everything else is 404.
func (h *health) start(addr string) (*http.Server, error) {
	l, err := net.Listen("tcp", addr)
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
		Handler:        mux,
		ReadTimeout:    5 * time.Second,
		WriteTimeout:   5 * time.Second,
		IdleTimeout:    30 * time.Second,
		MaxHeaderBytes: 8 << 10,
	}
	go s.Serve(l)
	return s, nil
}
