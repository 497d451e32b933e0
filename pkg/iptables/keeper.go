package iptables

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"flanneld/pkg/firewall"
	"flanneld/pkg/pace"
)

const (
	// listingGap is the minimum time between two listings, each of which starts a process.
	listingGap = 500 * time.Millisecond
	// watchTables is how long Watch polls for new tables of the legacy variant before it ends, so
	// that the caller checks again whether the lock can be watched instead.
	watchTables = time.Minute
)

// Tools finds the iptables commands of this host when they are needed.
type Tools struct {
	resync    time.Duration
	lock      *lock
	probing   singleflight.Group // by command
	searching singleflight.Group // likewise

	mu    sync.Mutex // not held while a process runs
	found map[tool]found
}

// tool is a set of commands. Those named "iptables" are of any variant; their place is Nowhere.
type tool struct {
	family firewall.Family
	place  firewall.Place
}

func (w tool) command() string {
	return [...]string{"iptables", "ip6tables"}[w.family] + [...]string{"", "-legacy", "-nft"}[w.place]
}

// found is the result of the last search for a tool.
type found struct {
	tables  *Tables // nil if there was an error
	err     error
	retryAt time.Time // earliest time of the next search
}

// NewTools returns the tools of this host. It does not search for them yet; see Search. resync is the time
// between two listings, because Watch misses some changes.
func NewTools(resync time.Duration) *Tools {
	return &Tools{resync: resync, lock: newLock(), found: map[tool]found{}}
}

// Search searches for the installed commands, so that the first Sync of their keeper need not. It
// takes the time of starting them twice.
func (t *Tools) Search() { _, _ = t.get(tool{firewall.IPv4, firewall.Nowhere}) } // Sync reports the error

// Installed returns the keeper that uses the commands named "iptables", of either variant.
func (t *Tools) Installed() *Keeper { return &Keeper{t, firewall.Nowhere} }

// Legacy returns the keeper that uses the variant with its own tables in the kernel.
func (t *Tools) Legacy() *Keeper { return &Keeper{t, firewall.Legacy} }

// Compat returns the keeper that uses the variant based on nftables.
func (t *Tools) Compat() *Keeper { return &Keeper{t, firewall.Compat} }

// get finds a tool. It searches again if the last search failed, or if the tool was replaced.
func (t *Tools) get(w tool) (*Tables, error) {
	if last := t.last(w); last.tables != nil || time.Until(last.retryAt) > 0 {
		return last.tables, last.err
	}
	tables, err, _ := t.searching.Do(w.command(), func() (any, error) { return t.search(w) })
	return tables.(*Tables), err
}

// search searches for a tool, and keeps the result.
func (t *Tools) search(w tool) (*Tables, error) {
	begun := time.Now()
	name := w.command()
	tables, err := t.find(name, commandTimeout)
	if err == nil && w.place != firewall.Nowhere && w.place != tables.place {
		tables, err = nil, fmt.Errorf("%w: %s is of the other variant", absent, name)
	}
	// Failed searches take at most a tenth of the time.
	rest := pace.Share{OneIn: 10, Max: time.Minute}.Rest(time.Since(begun))
	t.mu.Lock()
	defer t.mu.Unlock()
	t.found[w] = found{tables, err, time.Now().Add(rest)}
	return tables, err
}

// last returns the result of the last search, or the zero value if the tool was replaced since.
func (t *Tools) last(w tool) found {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.found[w]; f.tables != nil && f.tables.replaced() {
		delete(t.found, w)
	}
	return t.found[w]
}

// cached returns what the last search has found, or nil.
func (t *Tools) cached(w tool) *Tables { return t.last(w).tables }

// Keeper keeps rules in sync with iptables commands, of one variant or of the installed one. It
// implements firewall.Keeper and, for the legacy tables, firewall.Inspector.
type Keeper struct {
	tools *Tools
	place firewall.Place // of the variant; Nowhere for the installed one
}

// tables finds the commands. A variant may be installed under its own name only, or as "iptables".
func (k *Keeper) tables(f firewall.Family) (*Tables, error) {
	t := k.tools
	main, own := tool{f, firewall.Nowhere}, tool{f, k.place}
	switch k.place {
	case firewall.Legacy:
		if tables := t.cached(main); tables != nil && tables.legacy() {
			return tables, nil
		}
		tables, err := t.get(own)
		if firewall.Absent(err) {
			if other, _ := t.get(main); other != nil && other.legacy() {
				return other, nil
			}
		}
		return tables, err
	case firewall.Compat:
		other, err := t.get(main)
		if err == nil && !other.legacy() {
			return other, nil
		}
		tables, failed := t.get(own)
		if firewall.Absent(failed) && err != nil {
			failed = err
		}
		return tables, failed
	}
	return t.get(main)
}

// cachedTables returns what tables found before, or nil if it was replaced.
func (k *Keeper) cachedTables(f firewall.Family) *Tables {
	main := k.tools.cached(tool{f, firewall.Nowhere})
	if k.place == firewall.Nowhere || main != nil && main.place == k.place {
		return main
	}
	return k.tools.cached(tool{f, k.place})
}

// Traits implements firewall.Keeper.
func (k *Keeper) Traits(f firewall.Family) firewall.Traits {
	t := firewall.Traits{
		Name: tool{f, k.place}.command(), Gap: listingGap, Resync: k.tools.resync,
	}
	if tables := k.cachedTables(f); tables != nil {
		t.Name, t.Version, t.Place = tables.command, tables.version, tables.place
	}
	return t
}

// Sync implements firewall.Keeper.
func (k *Keeper) Sync(ctx context.Context, r firewall.Ruleset) (changes []string, err error) {
	t, err := k.tables(r.Family)
	if err != nil {
		return nil, err
	}
	if r.HeldIn != firewall.Nowhere {
		return t.SyncAccepts(ctx, r.Owner, r.Chains)
	}
	return t.Sync(ctx, r.Owner, r.Chains)
}

// Plan implements firewall.Keeper.
func (k *Keeper) Plan(ctx context.Context, r firewall.Ruleset) ([]firewall.Change, error) {
	t, err := k.tables(r.Family)
	if err != nil {
		return nil, err
	}
	return t.Plan(ctx, r)
}

// Watch implements firewall.Keeper. Changes of the nft variant are signalled by package nftables.
// If the legacy commands are not installed, a program that changes the legacy tables runs in
// another container, whose lock may be another file: then Watch polls for a while, and signals when
// tables appear or disappear.
func (k *Keeper) Watch(ctx context.Context) (<-chan struct{}, error) {
	if k.place == firewall.Compat {
		return nil, nil
	}
	for _, f := range []firewall.Family{firewall.IPv4, firewall.IPv6} {
		tables := k.tools.cached(tool{f, firewall.Nowhere})
		_, err := exec.LookPath(tool{f, firewall.Legacy}.command())
		if tables != nil && tables.legacy() || err == nil {
			return k.tools.lock.watch(ctx)
		}
	}
	out := make(chan struct{})
	before, _ := allTables() // failures are reported by Sync
	go func() {
		defer close(out) // leads to another sync
		for end := time.Now().Add(watchTables); time.Now().Before(end); {
			if pace.Sleep(ctx, k.tools.resync) != nil {
				return
			}
			if now, err := allTables(); err == nil && !slices.Equal(now, before) {
				return
			}
		}
	}()
	return out, nil
}

// allTables returns the names of the legacy tables of all families.
func allTables() ([]string, error) {
	four, err := legacyTables(firewall.IPv4)
	six, failed := legacyTables(firewall.IPv6)
	return slices.Concat(four, []string{"|"}, six), errors.Join(err, failed)
}

// Tables implements firewall.Inspector.
func (k *Keeper) Tables(f firewall.Family) ([]string, error) { return legacyTables(f) }

// Barriers implements firewall.Inspector.
func (k *Keeper) Barriers(ctx context.Context, p firewall.Packet) ([]firewall.Barrier, error) {
	f := firewall.FamilyOf(p.Dst)
	names, err := legacyTables(f)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	t, err := k.tables(f)
	if err != nil {
		return nil, nil // Sync reports why
	}
	return t.Barriers(ctx, p)
}
