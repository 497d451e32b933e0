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
	at    time.Time // when it was read
	valid bool      // nothing has told of a change since
}

// latest gives the last reading, or a new one if something has changed since. When the
// facts cannot be read, as while the uplink is gone, the next call tries again.
func (f *facts) latest() (host.Facts, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.since(time.Time{})
}

// recent is latest, of at most factsAge.
func (f *facts) recent() (host.Facts, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.since(time.Now().Add(-factsAge))
}

// since reads anew if the last reading is older, or stale.
func (f *facts) since(oldest time.Time) (host.Facts, error) {
	if f.valid && f.at.After(oldest) {
		return f.value, nil
	}
	value, err := f.read()
	if err != nil {
		return host.Facts{}, err
	}
	f.value, f.at, f.valid = value, time.Now(), true
	return value, nil
}

// stale makes the next call read.
func (f *facts) stale() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.valid = false
}
