package subnetenv

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/condition"
	"flanneld/pkg/lease"
	"flanneld/pkg/pace"
)

const (
	// resync is the time between two checks in case that inotify misses a change. retryInterval is
	// the time between failed attempts, and between checks without inotify.
	resync        = time.Minute
	retryInterval = time.Second
	// burst is the delay after a change, so that a program can finish writing.
	burst = 100 * time.Millisecond
)

// IDs of conditions.
const (
	fileCondition  = "file/subnet"
	claimCondition = "file/claim"
	fightCondition = "file/fight"
)

// Keeper keeps subnet.env and the claim beside it in the wanted state, which Update and Remember
// set.
//
// Invariant: as far as possible, subnet.env does not name a subnet that is not this host's: a file
// that cannot be replaced is removed.
type Keeper struct {
	path       string
	conditions *condition.List
	log        *slog.Logger
	wake       chan struct{}
	onChange   func(first, changed bool) // see Run

	wanted struct { // wanted content of subnet.env; not locked while a file is written
		sync.Mutex
		Env
	}

	mu           sync.Mutex  // one writer at a time; guards the following
	writtenEnv   Env         // content after the last successful write
	claim        lease.Claim // wanted claim; zero if there is none yet
	writtenClaim lease.Claim // content after the last successful write
	fight        pace.Fight
}

// NewKeeper returns a keeper of the subnet.env at path, without wanted content.
func NewKeeper(path string, conditions *condition.List, log *slog.Logger) *Keeper {
	return &Keeper{
		path: path, conditions: conditions, log: log,
		wake:  make(chan struct{}, 1),
		fight: pace.Fight{Limits: &pace.Limits{Burst: 10, Leak: 5 * time.Second, Pause: 5 * time.Second}},
	}
}

// Update changes the wanted content of subnet.env, which is written once all of it is known. It
// does not wait for the file.
func (k *Keeper) Update(change func(*Env)) {
	k.wanted.Lock()
	defer k.wanted.Unlock()
	before := k.wanted.Env
	if change(&k.wanted.Env); k.wanted.Env != before {
		k.trigger()
	}
}

// complete returns the wanted content of subnet.env, and reports whether all of it is known.
func (k *Keeper) complete() (Env, bool) {
	k.wanted.Lock()
	defer k.wanted.Unlock()
	e := k.wanted.Env
	return e, e.Network.IsValid() && e.Subnet.IsValid() && e.MTU > 0
}

// trigger requests a check. It never blocks.
func (k *Keeper) trigger() {
	pace.Wake(k.wake)
}

// Remember sets the claim, and tries to write it before it returns.
func (k *Keeper) Remember(c lease.Claim) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.claim = c; c == k.writtenClaim {
		return
	}
	if _, err := k.syncClaim(); err != nil {
		k.trigger()
	}
}

// Claim returns the wanted claim, the zero one if there is none.
func (k *Keeper) Claim() lease.Claim {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.claim
}

// Run keeps the files in the wanted state until ctx ends. wrote is called when the content of
// subnet.env has changed in this run; first is set for the first time, and changed if the file was
// written.
func (k *Keeper) Run(ctx context.Context, wrote func(first, changed bool)) {
	k.onChange = wrote
	var w *watch
	defer func() {
		if w != nil {
			w.close()
		}
	}()
	for ctx.Err() == nil {
		pause, fight := k.sync()
		var other bool
		var err error
		if w == nil {
			w, err = newWatch(k.path)
		}
		if err == nil {
			other, err = w.rewatch()
		}
		wake, changed := k.wake, (<-chan struct{})(nil)
		switch {
		case err != nil:
			pause = min(pause, retryInterval)
		case other: // earlier changes there were not signalled
			pause = min(pause, burst)
			fallthrough
		default:
			changed = w.c
		}
		if fight {
			changed, wake = nil, nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		case <-wake:
		case <-changed:
			_ = pace.Sleep(ctx, burst)
		}
	}
}

// sync writes the files where necessary. It returns the time until the next check, and whether
// there should be none before, because another program keeps changing them.
func (k *Keeper) sync() (pause time.Duration, fight bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	repaired, err := k.syncEnv()
	again, failed := k.syncClaim()
	now := time.Now()
	if repaired || again {
		pause = k.fight.Repaired(now)
		fight = pause > 0
	}
	switch {
	case fight:
		k.conditions.Set(condition.Condition{
			ID: fightCondition, Text: "another program keeps changing the subnet file or the lease claim, backing off",
			Fields: []any{"path", k.path},
		})
	case err != nil || failed != nil:
		pause = retryInterval
	case k.fight.On(now):
		pause = k.fight.Pause // then check whether it has ended
	default:
		pause = resync
	}
	if !k.fight.On(now) {
		k.conditions.End(fightCondition)
	}
	return pause, fight
}

// syncEnv writes subnet.env if it differs, and reports whether that is a repair.
func (k *Keeper) syncEnv() (repaired bool, err error) {
	env, known := k.complete()
	if !known {
		return false, nil
	}
	changed, stale, err := k.writeEnv(env)
	if err != nil {
		k.conditions.Set(k.writeCondition(err, stale))
		return false, err
	}
	k.conditions.End(fileCondition)
	before := k.writtenEnv
	k.writtenEnv = env
	if changed {
		msg := "wrote subnet file"
		if repaired = env == before; repaired {
			msg = "repaired subnet file"
		}
		k.log.Info(msg, "path", k.path, "subnet", env.Subnet, "mtu", env.MTU)
	}
	if env != before {
		k.onChange(before == Env{}, changed)
	}
	return repaired, nil
}

// writeEnv writes subnet.env. If that fails, and the file names another subnet, it is removed,
// which may also free space. stale is the other subnet if the file could not be removed either.
func (k *Keeper) writeEnv(env Env) (changed bool, stale netip.Prefix, err error) {
	repair := env == k.writtenEnv
	if changed, err = Write(k.path, env, repair); err == nil {
		return changed, stale, nil
	}
	have, unread := Read(k.path)
	if unread != nil || !have.Subnet.IsValid() || have.Subnet == env.Subnet {
		return false, stale, err
	}
	if os.Remove(k.path) != nil {
		return false, have.Subnet, err
	}
	k.log.Warn("removed subnet file, it named another subnet and cannot be replaced", "path", k.path, "subnet", env.Subnet, "before", have.Subnet, "err", err)
	changed, err = Write(k.path, env, repair)
	return changed, stale, err
}

// writeCondition returns the condition that subnet.env could not be written.
func (k *Keeper) writeCondition(err error, stale netip.Prefix) condition.Condition {
	c := condition.Condition{
		ID: fileCondition, Text: "failed to write subnet file, will retry",
		Fields: []any{"path", k.path, "err", err},
	}
	if _, missing := os.Stat(filepath.Dir(k.path)); errors.Is(err, unix.EROFS) && errors.Is(missing, fs.ErrNotExist) && os.Getenv("NOTIFY_SOCKET") != "" {
		// The unit permits writing in that directory only.
		c.Fields = append(c.Fields, "reason", "the directory was removed")
		c.Command = "systemctl restart flanneld"
	}
	switch {
	case stale.IsValid():
		c.Severity = condition.Severe
		c.Fields = append(c.Fields, "reason", "it names "+stale.String()+", which is not this host's: do not restart docker")
	case k.writtenEnv == Env{}:
		c.Severity = condition.Severe
		c.Fields = append(c.Fields, "reason", "READY waits for it")
	}
	return c
}

// syncClaim writes the claim if it differs, and reports whether that is a repair.
func (k *Keeper) syncClaim() (repaired bool, err error) {
	if k.claim == (lease.Claim{}) {
		return false, nil
	}
	changed, err := WriteClaim(k.path, k.claim)
	if err != nil {
		k.conditions.Set(condition.Condition{
			ID: claimCondition, Text: "failed to write lease claim, will retry",
			Fields: []any{"path", ClaimPath(k.path), "err", err, "reason", "with another address, the next start may get another subnet"},
		})
		return false, err
	}
	k.conditions.End(claimCondition)
	if repaired = changed && k.claim == k.writtenClaim; repaired {
		k.log.Info("repaired lease claim", "path", ClaimPath(k.path), "subnet", k.claim.Subnets)
	}
	k.writtenClaim = k.claim
	return repaired, nil
}
