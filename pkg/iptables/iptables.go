// Package iptables applies the wanted chains with the iptables commands, of the legacy or of the
// nftables variant.
//
// A Sync lists all rules, compares them as values and writes the difference with one
// iptables-restore, so that it does not matter who changed what since the last one. The difference
// consists of single rules to delete and to insert: our chains also hold the rules of other
// networks, and to declare or flush a chain would lose what their daemons have written since the
// listing.
//
// Invariants: correct rules are not written again. A table changes by one commit, so that no packet
// sees a part of a network's rules if they were complete and are still wanted. The rules of others,
// including those of other networks, keep their order and every byte.
//
// It does not decide which rules are wanted: package firewall does.
package iptables

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	goiptables "github.com/coreos/go-iptables/iptables"

	"flanneld/pkg/firewall"
)

// absent is the error of a host without iptables. Every other error, such as a process that cannot
// be started, may be temporary.
const absent = firewall.AbsentError("iptables is not installed")

const (
	commandTimeout = 10 * time.Second // of one command
	maxAttempts    = 8                // of one Sync, while other programs change the same tables

	// A lock that is not released within lockTimeout is held by one program for an unknown time. If
	// many programs hold it briefly, iptables-restore queues for it for lockWait seconds.
	lockTimeout = time.Second
	lockWait    = 5

	exitResource = 4 // of the legacy variant, RESOURCE_PROBLEM
	// lockMessage is part of its error message if it did not get the lock.
	lockMessage = "holding the xtables lock"
)

// Tables are the tables of one address family in this network namespace. The methods may be called
// from several goroutines.
type Tables struct {
	command       string // name
	save, restore string // paths
	programs      []program
	restoreArgs   []string
	version       string
	place         firewall.Place
	randomPorts   bool
	lock          *lock
	timeout       time.Duration
}

// program is the file of a command at the time of the search.
type program struct {
	path string
	file fs.FileInfo
}

// find finds the commands of a name and their capabilities.
func (t *Tools) find(name string, patience time.Duration) (*Tables, error) {
	tables := &Tables{command: name, lock: t.lock, timeout: patience}
	var err error
	if tables.programs, err = findPrograms(name, name+"-save", name+"-restore"); err != nil {
		return nil, err
	}
	command := tables.programs[0].path
	tables.save, tables.restore = tables.programs[1].path, tables.programs[2].path
	text, err := tables.run(context.Background(), "", command, "--version")
	if err != nil {
		return nil, err
	}
	tables.version, _, _ = strings.Cut(strings.TrimSpace(text), "\n")
	if tables.place = firewall.Legacy; strings.Contains(tables.version, "nf_tables") {
		tables.place = firewall.Compat
	}
	able, err := t.probe(command, patience)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	// iptables-restore supports --wait since the same release as --random-fully.
	tables.randomPorts = able.HasRandomFully()
	tables.restoreArgs = []string{"--noflush"}
	if tables.randomPorts {
		tables.restoreArgs = append(tables.restoreArgs, fmt.Sprintf("--wait=%d", lockWait))
	}
	return tables, nil
}

// probe determines the capabilities of a command. go-iptables has no timeout; a command that hangs
// is not started a second time.
func (t *Tools) probe(command string, patience time.Duration) (*goiptables.IPTables, error) {
	answer := t.probing.DoChan(command, func() (any, error) { return goiptables.New(goiptables.Path(command)) })
	select {
	case a := <-answer:
		if a.Err != nil {
			return nil, a.Err
		}
		return a.Val.(*goiptables.IPTables), nil
	case <-time.After(patience):
		return nil, fmt.Errorf("no end after %s", patience)
	}
}

// findPrograms finds the files of commands.
func findPrograms(names ...string) (all []program, err error) {
	for _, name := range names {
		path, err := lookPath(name)
		var file fs.FileInfo
		if err == nil {
			file, err = os.Stat(path)
		}
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %w", absent, err)
		}
		if err != nil {
			return nil, err
		}
		all = append(all, program{path, file})
	}
	return all, nil
}

// lookPath is exec.LookPath, which reports every error as absence, except that other errors are
// returned as they are: a file that is not executable, a file system that does not answer.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if !errors.Is(err, exec.ErrNotFound) {
		return path, err
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		file := filepath.Join(dir, name)
		switch info, failed := os.Stat(file); {
		case failed == nil && info.Mode().IsRegular():
			return "", &fs.PathError{Op: "execute", Path: file, Err: fs.ErrPermission}
		case failed != nil && !errors.Is(failed, fs.ErrNotExist) && !errors.Is(failed, fs.ErrPermission) && !errors.Is(failed, syscall.ENOTDIR):
			return "", failed
		}
	}
	return "", err
}

// replaced reports whether a command's file was removed, upgraded, or replaced by another variant.
func (t *Tables) replaced() bool {
	return slices.ContainsFunc(t.programs, func(p program) bool {
		now, err := os.Stat(p.path)
		if err != nil {
			return errors.Is(err, fs.ErrNotExist)
		}
		return !os.SameFile(now, p.file) || !now.ModTime().Equal(p.file.ModTime())
	})
}

// Sync makes our chains hold exactly the wanted ones of the owner's rules, and removes what earlier
// releases left for its overlays. Rules of other networks stay. With nothing wanted all of the
// owner's rules are removed, and with the last network's rules the chains and the jumps to them. It
// returns a short description of each change.
//
// After writing, the rules are listed once more: another program may have changed them, or iptables
// may print a rule in an unknown form, which would otherwise be written again and again.
func (t *Tables) Sync(ctx context.Context, owner firewall.Owner, want []firewall.Chain) (changes []string, err error) {
	return t.syncChains(ctx, owner, func(listing, policies) []firewall.Chain { return t.supported(want) })
}

// supported returns the chains with rules that this version of iptables supports: it may not
// support random source ports.
func (t *Tables) supported(want []firewall.Chain) (chains []firewall.Chain) {
	for _, c := range want {
		c.Rules = slices.Clone(c.Rules)
		for i, r := range c.Rules {
			if r.Verdict == firewall.MasqueradeRandom && !t.randomPorts {
				c.Rules[i].Verdict = firewall.Masquerade
			}
		}
		chains = append(chains, c)
	}
	return chains
}

// syncChains is Sync with a function that returns the wanted chains for a listing.
func (t *Tables) syncChains(ctx context.Context, owner firewall.Owner, want func(listing, policies) []firewall.Chain) (changes []string, err error) {
	var left error // why something was left undone
	for try := 0; ; try++ {
		thorough := try < maxAttempts-1
		if try == maxAttempts-1 {
			// In the last attempt, leave rules without an owner: iptables may print one in a form
			// that it cannot delete, which must not keep our rules from being written.
			left = err
		}
		p, listed := t.plan(ctx, owner, want, thorough)
		switch {
		case listed != nil:
			return changes, listed
		case len(p.edits) == 0:
			return changes, left
		case try == maxAttempts:
			return changes, err
		}
		if err = t.write(ctx, p.input()); err == nil {
			changes = append(changes, p.changes...)
			err = fmt.Errorf("not as written, for another program or an unknown form: %s", strings.Join(p.changes, ", "))
		} else if !t.raced(err) {
			return changes, err
		}
	}
}

// raced reports whether a failure may be due to changes since the listing, such as a rule that was
// deleted. Retrying for the lock, or after a command that hangs, is left to the caller.
func (t *Tables) raced(err error) bool {
	return errors.As(err, new(*exec.ExitError)) && !t.isResourceError(err)
}

// isResourceError reports whether a command of the legacy variant failed for want of a resource:
// the lock, or its file.
func (t *Tables) isResourceError(err error) bool {
	var exit *exec.ExitError
	return t.legacy() && errors.As(err, &exit) && exit.ExitCode() == exitResource
}

func (t *Tables) plan(ctx context.Context, owner firewall.Owner, want func(listing, policies) []firewall.Chain, thorough bool) (plan, error) {
	l, drops, err := t.list(ctx)
	if err != nil {
		return plan{}, err
	}
	return makePlan(l, owner, want(l, drops), thorough), nil
}

// list lists all tables.
func (t *Tables) list(ctx context.Context) (l listing, drops policies, err error) {
	text, err := t.run(ctx, "", t.save)
	if err == nil {
		if l, drops, err = parseListing(text); err != nil {
			err = fmt.Errorf("%s: %w", t.save, err)
		}
	}
	return l, drops, err
}

// write is the only function that changes rules. Changes of the legacy variant's rules that it
// makes are hidden from the watchers of the lock.
func (t *Tables) write(ctx context.Context, input string) error {
	if !t.legacy() {
		_, err := t.run(ctx, input, t.restore, t.restoreArgs...)
		return err
	}
	if t.waitsForLock() {
		if err := t.lock.wait(ctx); err != nil {
			return err
		}
	}
	t.lock.writing.Lock()
	defer t.lock.writing.Unlock()
	for w := range t.lock.watchers {
		w.handle(w.drain()) // changes by other programs, until now
	}
	_, err := t.run(ctx, input, t.restore, t.restoreArgs...)
	for w := range t.lock.watchers {
		w.handle(w.drain() &^ fileClosed)
	}
	if t.isResourceError(err) && (strings.Contains(err.Error(), lockMessage) || t.waitsForLock() && !t.lock.free()) {
		err = fmt.Errorf("%w: %w", t.lock.lockedError(), err)
	}
	return err
}

func (t *Tables) legacy() bool { return t.place == firewall.Legacy }

// waitsForLock reports whether iptables-restore takes the lock. Releases before 1.6.2 do not.
func (t *Tables) waitsForLock() bool { return t.legacy() && t.randomPorts }
