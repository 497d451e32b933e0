package daemon

import (
	"slices"
	"strings"
	"sync"
	"time"

	"flanneld/pkg/status"
)

const (
	// maxRepairs is the number of repairs that are kept, for the status.
	maxRepairs = 20
	// maxExample limits the length of an example, which may contain text of other programs.
	maxExample = 300
)

// repairs are the last repairs of what other programs had changed. The rooms that repair something
// add to it.
type repairs struct {
	mu   sync.Mutex
	last []status.Repair // the latest first
}

// add adds a repair that was made now.
func (r *repairs) add(what, example string) {
	if len(example) > maxExample {
		example = strings.ToValidUTF8(example[:maxExample], "") + "…"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = slices.Insert(r.last[:min(len(r.last), maxRepairs-1)], 0, status.Repair{At: time.Now(), What: what, Example: example})
}

// list returns the repairs, the latest first.
func (r *repairs) list() []status.Repair {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]status.Repair{}, r.last...)
}
