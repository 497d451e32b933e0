package daemon

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// startHealth answers /healthz, which says that the process lives, and
// /readyz, which says that the host has its subnet. Everything else is 404.
func startHealth(addr string, ready *atomic.Bool) (*http.Server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("answer health checks: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "flanneld is running")
	})
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			io.WriteString(w, "flanneld is not ready yet")
			return
		}
		io.WriteString(w, "flanneld is ready")
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
