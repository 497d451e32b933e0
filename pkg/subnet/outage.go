package subnet

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"flanneld/pkg/registry"
)

const (
	// After causePause, an outage may have another cause than at its beginning, for example because
	// etcd returns with an untrusted certificate.
	causePause = 3 * time.Second
	// maxCauses is the maximum number of causes logged per outage.
	maxCauses = 4
)

// outage logs the beginning and the end of an outage of the registry, and further causes in
// between.
type outage struct {
	log    *slog.Logger
	since  time.Time
	count  uint64   // of outages
	causes []string // already logged
}

func (o *outage) active() bool { return !o.since.IsZero() }

func (o *outage) begin(err error) {
	switch c := cause(err); {
	case errors.Is(err, registry.ErrDenied):
		if !o.active() {
			o.start()
		}
		o.log.Debug("registry denies reading, will retry", "err", err)
	case !o.active():
		o.start(c)
		o.log.Warn("registry is unreachable, waiting for it", "err", err)
	case time.Since(o.since) < causePause || len(o.causes) == maxCauses || slices.Contains(o.causes, c):
		o.log.Debug("registry is still unreachable", "err", err)
	default:
		o.causes = append(o.causes, c)
		o.log.Warn("registry is still unreachable, for another reason", "err", err)
	}
}

func (o *outage) start(causes ...string) {
	o.since, o.causes = time.Now(), causes
	o.count++
}

// cause returns the innermost reason in an error without digits, because ports and times vary.
func cause(err error) string {
	text := err.Error()
	return strings.Map(func(r rune) rune {
		if '0' <= r && r <= '9' {
			return -1
		}
		return r
	}, text[strings.LastIndex(text, ": ")+1:])
}

func (o *outage) end() {
	if o.active() && len(o.causes) > 0 {
		o.log.Info("registry is reachable again", "duration", time.Since(o.since).Round(time.Millisecond))
	}
	o.since = time.Time{}
}
