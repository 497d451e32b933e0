package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	stateRoot  = "/run/flannel-lab"
	namePrefix = "flab" // of the namespaces: flab<id>-<node>
)

// A state is the lab's entry in /run/flannel-lab: a directory with the lab's ID as its name, locked
// by its owner. The kernel releases the lock when the owner ends for whatever reason, so an entry
// without a lock is stale. An entry exists before the first namespace of its lab and is removed
// after the last one.
type state struct {
	id     string
	dir    string
	lock   *os.File
	socket atomic.Int64
}

// newState removes stale labs and creates an entry with a free ID.
func newState(ctx context.Context) (*state, error) {
	if err := os.MkdirAll(stateRoot, 0o700); err != nil {
		return nil, fmt.Errorf("create %s: %w", stateRoot, err)
	}
	// One process at a time: an entry that is created but not locked yet would look stale.
	root, err := lockDir(stateRoot, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if err := shareNetnsDir(); err != nil {
		return nil, err
	}
	if err := sweep(ctx); err != nil {
		return nil, fmt.Errorf("remove what a dead lab left: %w", err)
	}
	for {
		var raw [2]byte
		rand.Read(raw[:])
		s := &state{id: hex.EncodeToString(raw[:])}
		s.dir = filepath.Join(stateRoot, s.id)
		if err := os.Mkdir(s.dir, 0o700); errors.Is(err, os.ErrExist) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("create lab entry: %w", err)
		}
		if s.lock, err = lockDir(s.dir, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return nil, errors.Join(err, os.RemoveAll(s.dir))
		}
		return s, nil
	}
}

// netns returns the name of the namespace of a node of the lab.
func (s *state) netns(node string) string { return namePrefix + s.id + "-" + node }

// socketPath returns a new path that is short enough for a unix socket.
func (s *state) socketPath() string {
	return filepath.Join(s.dir, fmt.Sprintf("notify%d", s.socket.Add(1)))
}

// makeTemp creates a temporary directory and records it, so that a later sweep removes it too.
func (s *state) makeTemp() (string, error) {
	dir, err := os.MkdirTemp("", "flannel-lab-")
	if err != nil {
		return "", fmt.Errorf("create lab directory: %w", err)
	}
	if err := os.Symlink(dir, filepath.Join(s.dir, "temp")); err != nil {
		return "", errors.Join(fmt.Errorf("record lab directory: %w", err), os.Remove(dir))
	}
	return dir, nil
}

// remove removes everything that the lab has outside its own process.
func (s *state) remove(ctx context.Context) error {
	err := removeLab(ctx, s.id)
	s.lock.Close()
	return err
}

// sweep removes every lab whose owner has ended. The caller holds the lock of the root.
func sweep(ctx context.Context) error {
	ids := map[string]bool{}
	entries, err := os.ReadDir(stateRoot)
	if err != nil {
		return err
	}
	for _, e := range entries {
		ids[e.Name()] = true
	}
	paths, err := netnsFiles(namePrefix)
	if err != nil {
		return err
	}
	for _, path := range paths {
		id, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(path), namePrefix), "-")
		ids[id] = true
	}
	var errs []error
	for id := range ids {
		lock, err := lockDir(filepath.Join(stateRoot, id), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EWOULDBLOCK):
			continue // its owner is running
		case errors.Is(err, os.ErrNotExist):
			errs = append(errs, removeLab(ctx, id))
		case err != nil:
			errs = append(errs, err)
		default:
			errs = append(errs, removeLab(ctx, id))
			lock.Close()
		}
	}
	return errors.Join(errs...)
}

// removeLab kills the processes in the namespaces of a lab and removes the namespaces, the
// temporary directory and the entry.
func removeLab(ctx context.Context, id string) error {
	paths, err := netnsFiles(namePrefix + id + "-")
	if err != nil {
		return err
	}
	errs := []error{killInside(ctx, paths)}
	for _, path := range paths {
		errs = append(errs, removeNetnsFile(path))
	}
	entry := filepath.Join(stateRoot, id)
	if temp, err := os.Readlink(filepath.Join(entry, "temp")); err == nil {
		errs = append(errs, os.RemoveAll(temp))
	}
	if err := errors.Join(errs...); err != nil {
		return err // the entry is kept, so that the next sweep tries again
	}
	return os.RemoveAll(entry)
}

// lockDir opens and locks a directory. The lock is held until the file is closed or the process
// ends.
func lockDir(path string, how int) (*os.File, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if err := unix.Flock(int(dir.Fd()), how); err != nil {
		dir.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return dir, nil
}
