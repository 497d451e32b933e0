package daemon

import (
	"sync"
	"time"

	"flanneld/pkg/host"
)

// factsAge bounds the age of a reading, for what no event tells of, such as a
// route between two underlay networks, wherever the kernel is read anyway: among many
// peers there are many routes to read, which one changed peer must not wait for.
const factsAge = 30 * time.Second

// facts keeps the last reading of the facts about this host, until something
// says that they may have changed.
type facts struct {
	read func() (host.Facts, error)

	mu    sync.Mutex
	value host.Facts
	until time.Time
}

// latest gives the facts, read anew if something has changed, or if they are old and may
// not be. When they cannot be read, as while the uplink is gone, the next call tries again.
func (f *facts) latest(mayBeOld bool) (host.Facts, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Now().Before(f.until) || mayBeOld && !f.until.IsZero() {
		return f.value, nil
	}
	value, err := f.read()
	if err != nil {
		return host.Facts{}, err
	}
	f.value, f.until = value, time.Now().Add(factsAge)
	return value, nil
}

// stale makes the next call of latest read.
func (f *facts) stale() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.until = time.Time{}
}
