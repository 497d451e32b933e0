package iptables

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/pace"
)

// lockPoll is the time between two checks of a lock while waiting for it.
const lockPoll = 10 * time.Millisecond

// lock is the lock of the legacy variant, which this package only observes. The file stays open,
// because other programs take closing it for a change of rules.
type lock struct {
	path string
	mu   sync.Mutex // guards file
	file *os.File

	writing  sync.Mutex // held while a command of ours writes; guards watchers
	watchers map[*watcher]struct{}
}

// newLock returns the lock of this host. iptables uses the same variable.
func newLock() *lock {
	return &lock{path: cmp.Or(os.Getenv("XTABLES_LOCKFILE"), "/run/xtables.lock"), watchers: map[*watcher]struct{}{}}
}

// free reports whether the lock is free at the moment. A file that cannot be opened counts as free.
func (l *lock) free() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.open() {
		return true
	}
	fd := int(l.file.Fd())
	err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		_ = unix.Flock(fd, unix.LOCK_UN)
	}
	return err != unix.EWOULDBLOCK
}

// open opens the present file of that name.
func (l *lock) open() bool {
	now, err := os.Stat(l.path)
	if err != nil {
		return false
	}
	if l.file != nil {
		if had, err := l.file.Stat(); err == nil && os.SameFile(now, had) {
			return true
		}
		l.file.Close()
	}
	l.file, err = os.Open(l.path)
	return err == nil
}

// wait waits until the lock is free at some moment. It returns a LockedError if that does not
// happen in time.
func (l *lock) wait(ctx context.Context) error {
	end := time.Now().Add(lockTimeout)
	for !l.free() {
		if time.Now().After(end) {
			return l.lockedError()
		}
		if err := pace.Sleep(ctx, lockPoll); err != nil {
			return err
		}
	}
	return nil
}

// lockedError returns an error that names the process that holds the lock.
func (l *lock) lockedError() error {
	e := &firewall.LockedError{Lock: "iptables", Free: l.free}
	var s unix.Stat_t
	if unix.Stat(l.path, &s) != nil {
		return e
	}
	locks, _ := os.ReadFile("/proc/locks")
	for line := range strings.Lines(string(locks)) {
		if e.PID = flockHolder(line, uint64(s.Dev), s.Ino); e.PID != 0 {
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", e.PID))
			e.Name = strings.TrimSpace(string(name))
			break
		}
	}
	return e
}

// flockHolder parses a line of /proc/locks (proc_locks(5)), as "1: FLOCK  ADVISORY  WRITE 708
// 08:01:279 0 EOF". Processes that wait for a lock have "->" behind the number.
func flockHolder(line string, dev, inode uint64) (pid int) {
	words := strings.Fields(line)
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(dev), unix.Minor(dev), inode)
	if len(words) < 6 || words[1] != "FLOCK" || words[5] != file {
		return 0
	}
	pid, err := strconv.Atoi(words[4])
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}
