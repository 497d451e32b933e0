package daemon

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
	"golang.org/x/time/rate"

	"flanneld/pkg/condition"
	"flanneld/pkg/lease"
	"flanneld/pkg/reconcile"
	"flanneld/pkg/subnetenv"
)

const (
	// fileResync is the safety net under inotify, fileRetry the time between attempts that
	// fail, and between looks where inotify cannot be had.
	fileResync = time.Minute
	fileRetry  = time.Second
	// fileBurst lets a program that changes a file finish.
	fileBurst = 100 * time.Millisecond

	// Repairs beyond fileFights in quick succession wait for fileFightPause.
	fileFights     = 10
	fileFightPause = 5 * time.Second
)

// IDs of conditions.
const (
	subnetFileCondition = "file/subnet"
	claimCondition      = "file/claim"
	fileFightCondition  = "file/fight"
)

// files keeps subnet.env and the claim beside it as they are wanted, whatever happens to
// them.
//
// Invariant: while it can be helped, subnet.env names no subnet that this host knows not to
// be its own: one that cannot be replaced is removed.
type files struct {
	path       string
	conditions *condition.List
	log        *slog.Logger
	wake       chan struct{}
	fights     *rate.Limiter

	mu    sync.Mutex                    // one writer at a time; guards what follows
	want  func() (subnetenv.Env, error) // of subnet.env, all but the MTU with an error, too; nil: nothing yet
	news  func(first, changed bool)     // called when it says something else than before in this run
	env   subnetenv.Env                 // as it was when it was right last
	claim lease.Claim                   // wanted; zero: none yet
	noted lease.Claim                   // as it was when it was right last
}

func newFiles(path string, conditions *condition.List, log *slog.Logger) *files {
	return &files{
		path: path, conditions: conditions, log: log,
		wake:   make(chan struct{}, 1),
		fights: rate.NewLimiter(rate.Every(fileFightPause), fileFights),
	}
}

// begin says what subnet.env is to be, from the next look on.
func (f *files) begin(want func() (subnetenv.Env, error), news func(first, changed bool)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.want, f.news = want, news
}

// trigger asks for a look soon. It never blocks.
func (f *files) trigger() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// remember takes another claim, and writes it before it returns if that is possible.
func (f *files) remember(c lease.Claim) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.claim = c; c == f.noted {
		return
	}
	if _, err := f.syncClaim(); err != nil {
		f.trigger()
	}
}

// run keeps the files until ctx ends.
func (f *files) run(ctx context.Context) {
	var watch *subnetenv.Watch
	defer func() {
		if watch != nil {
			watch.Close()
		}
	}()
	for {
		pause, fight := f.look()
		fresh, err := false, error(nil)
		if watch == nil {
			watch, err = subnetenv.NewWatch(f.path)
			fresh = err == nil
		} else {
			fresh, err = watch.Again()
		}
		var changed <-chan struct{}
		switch {
		case err != nil:
			pause = min(pause, fileRetry)
		case fresh: // nobody has told of what happened there before
			pause = min(pause, fileBurst)
			fallthrough
		default:
			changed = watch.C
		}
		wake := f.wake
		if fight {
			pause, changed, wake = fileFightPause, nil, nil
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-wake:
		case <-changed:
			timer.Reset(fileBurst)
			select {
			case <-ctx.Done():
			case <-timer.C:
			}
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// look has the files right where that is possible. It returns the time until the next look,
// and whether somebody keeps changing them.
func (f *files) look() (pause time.Duration, fight bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	repaired, err := f.syncEnv()
	again, failed := f.syncClaim()
	fight = (repaired || again) && !f.fights.Allow()
	switch {
	case fight:
		f.conditions.Set(condition.Condition{
			ID: fileFightCondition, Text: "another program keeps changing the subnet file or the claim beside it, slowing down",
			Fields: []any{"path", f.path},
		})
	case !repaired && !again:
		f.conditions.End(fileFightCondition)
	}
	if err != nil || failed != nil {
		return fileRetry, fight
	}
	return fileResync, fight
}

// syncEnv makes subnet.env say what is wanted, and reports whether it had said that before.
func (f *files) syncEnv() (repaired bool, err error) {
	if f.want == nil {
		return false, nil
	}
	env, err := f.want()
	if errors.As(err, &reconcile.ReportedError{}) {
		if f.env == (subnetenv.Env{}) {
			return false, err
		}
		env.MTU, err = f.env.MTU, nil // as long as the uplink is away
	}
	var changed bool
	var stale netip.Prefix
	if err == nil {
		changed, stale, err = f.writeEnv(env)
	}
	if err != nil {
		f.conditions.Set(f.unwritten(err, stale))
		return false, err
	}
	f.conditions.End(subnetFileCondition)
	before := f.env
	f.env = env
	if changed {
		msg := "wrote the subnet file"
		if repaired = env == before; repaired {
			msg = "repaired the subnet file"
		}
		f.log.Info(msg, "path", f.path, "subnet", env.Subnet, "mtu", env.MTU)
	}
	if env != before {
		f.news(before == subnetenv.Env{}, changed)
	}
	return repaired, nil
}

// writeEnv writes subnet.env. Where that fails, and the file names another subnet, it is
// removed, which may make room. stale is the other subnet if it stands there still.
func (f *files) writeEnv(env subnetenv.Env) (changed bool, stale netip.Prefix, err error) {
	repair := env == f.env
	if changed, err = subnetenv.Write(f.path, env, repair); err == nil {
		return changed, stale, nil
	}
	have, unread := subnetenv.Read(f.path)
	if unread != nil || !have.Subnet.IsValid() || have.Subnet == env.Subnet {
		return false, stale, err
	}
	if os.Remove(f.path) != nil {
		return false, have.Subnet, err
	}
	f.log.Warn("removed the subnet file, which named another subnet and cannot be replaced", "path", f.path, "subnet", env.Subnet, "before", have.Subnet, "err", err)
	changed, err = subnetenv.Write(f.path, env, repair)
	return changed, stale, err
}

// unwritten is the condition that subnet.env is not as it should be.
func (f *files) unwritten(err error, stale netip.Prefix) condition.Condition {
	c := condition.Condition{
		ID: subnetFileCondition, Text: "cannot write the subnet file, will retry",
		Fields: []any{"path", f.path, "err", err},
	}
	if _, missing := os.Stat(filepath.Dir(f.path)); errors.Is(err, unix.EROFS) && errors.Is(missing, fs.ErrNotExist) && os.Getenv("NOTIFY_SOCKET") != "" {
		// The unit lets it write there, and nowhere else.
		c.Fields = append(c.Fields, "reason", "somebody has removed the directory")
		c.Command = "systemctl restart flanneld"
	}
	switch {
	case stale.IsValid():
		c.Severe = true
		c.Fields = append(c.Fields, "reason", "it names "+stale.String()+", which is not this host's: do not restart docker")
	case f.env == subnetenv.Env{}:
		c.Severe = true
		c.Fields = append(c.Fields, "reason", "READY waits for it")
	}
	return c
}

// syncClaim writes the claim, and reports whether it had been there before.
func (f *files) syncClaim() (repaired bool, err error) {
	if f.claim == (lease.Claim{}) {
		return false, nil
	}
	changed, err := subnetenv.WriteClaim(f.path, f.claim)
	if err != nil {
		f.conditions.Set(condition.Condition{
			ID: claimCondition, Text: "cannot note the claim on the lease, will retry",
			Fields: []any{"path", subnetenv.ClaimPath(f.path), "err", err, "reason", "with another address, the next start may get another subnet"},
		})
		return false, err
	}
	f.conditions.End(claimCondition)
	if repaired = changed && f.claim == f.noted; repaired {
		f.log.Info("repaired the claim on the lease", "path", subnetenv.ClaimPath(f.path), "subnet", f.claim.Subnet)
	}
	f.noted = f.claim
	return repaired, nil
}
