package api

import (
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"

	"flanneld/pkg/condition"
)

// HealthHandler returns the handler of the health port. /healthz reports that the process lives.
// /readyz reports that the host has its subnet, or why not, and whether etcd is unreachable, which
// is degraded but not an error. It answers any method, and publishes no addresses, because the port
// is open to all by default.
func (s *State) HealthHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", healthz)
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		away := ""
		if since := s.EtcdDownSince(); !since.IsZero() {
			away = "etcd does not answer since " + since.Format(rfc3339)
		}
		switch {
		case !s.Ready():
			s.writeNotReady(w, "flanneld is not ready yet", away)
		case s.subnetLost.Load():
			s.writeNotReady(w, "flanneld is not ready: another host has the subnet of this one", away)
		case away != "":
			io.WriteString(w, "flanneld is ready, degraded: "+away)
		default:
			io.WriteString(w, "flanneld is ready")
		}
	})
	return mux
}

func healthz(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "flanneld is running") }

// writeNotReady writes that the host has no subnet, followed by the present conditions.
func (s *State) writeNotReady(w http.ResponseWriter, what, away string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8") // conditions may contain any text
	w.WriteHeader(http.StatusServiceUnavailable)
	io.WriteString(w, what)
	if away != "" {
		io.WriteString(w, "\n"+away)
	}
	for _, c := range s.conditions.Current() {
		io.WriteString(w, "\n"+withoutAddresses(c).String())
	}
}

// address matches IPv4 addresses, also those of keys, and whatever may be an IPv6 address or a MAC.
var address = regexp.MustCompile(`\d+[.-]\d+[.-]\d+[.-]\d+([/-]\d+)?|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(/\d+)?`)

// withoutAddresses returns a condition with each address in its fields replaced by "...", and without
// users and passwords.
func withoutAddresses(c condition.Condition) condition.Condition {
	kept := slices.Clone(c.Fields)
	for i := 1; i < len(kept); i += 2 {
		kept[i] = address.ReplaceAllString(withoutUsers(fmt.Sprint(kept[i])), "...")
	}
	c.Fields = kept
	return c
}
