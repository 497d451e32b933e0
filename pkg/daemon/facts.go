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
	cost  time.Duration
	valid bool // nothing has told of a change since
}

// latest gives the last reading, or a new one if something has changed since. When the
// facts cannot be read, as while the uplink is gone, the next call tries again.
func (f *facts) latest() (host.Facts, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.since(time.Time{})
}

// last returns what latest does, or the last reading if there is no other now.
func (f *facts) last() host.Facts {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, _ = f.since(time.Time{}) // why not, others say
	return f.value
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
	begun := time.Now()
	value, err := f.read()
	f.cost = time.Since(begun)
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

// needy reports whether the host needs an address that a route of the overlay could take.
func (f *facts) needy() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.value.Needs)+len(f.value.NameServers) > 0
}

// pause is how long to wait with a reading that others cause, and may cause all the time,
// so that readings take a twentieth of a processor at most.
func (f *facts) pause() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return min(max(20*f.cost, 50*time.Millisecond), 3*time.Second)
}

// alarm is a timer that can be set to an earlier time, not to a later one.
type alarm struct {
	*time.Timer

	mu sync.Mutex
	at time.Time // zero: it is not set
}

func newAlarm() *alarm {
	a := &alarm{Timer: time.NewTimer(time.Hour)}
	a.Stop()
	return a
}

// within has it ring after d, if not before.
func (a *alarm) within(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if at := time.Now().Add(d); a.at.IsZero() || at.Before(a.at) {
		a.at = at
		a.Reset(d)
	}
}

// rang is to be called when it has.
func (a *alarm) rang() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at = time.Time{}
}
