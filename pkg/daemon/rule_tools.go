package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"flanneld/pkg/firewall"
	"flanneld/pkg/iptables"
	"flanneld/pkg/netconf"
	"flanneld/pkg/nftables"
)

// findShare bounds what looking for a tool in vain costs: one part in so many of a processor.
const findShare = 10

// found is a tool of this host. It is looked for when it is needed: again when that failed, and
// when what was found has become stale. Nothing but its absence now is concluded from an error.
type found[T any] struct {
	find  func() (T, error)
	stale func(T) bool

	mu    sync.Mutex // not held while a process is waited for
	tool  T
	has   bool
	err   error
	again time.Time // not to be looked for before
}

func (f *found[T]) get() (T, error) {
	if tool, ok := f.peek(); ok {
		return tool, nil
	}
	var none T
	f.mu.Lock()
	err, wait := f.err, time.Until(f.again)
	f.mu.Unlock()
	if err != nil && wait > 0 {
		return none, err
	}
	begun := time.Now()
	tool, err := f.find()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tool, f.has, f.err = tool, err == nil, err
	f.again = time.Now().Add(min(findShare*time.Since(begun), ruleResync))
	return tool, err
}

// peek returns what was found before, if it is that still.
func (f *found[T]) peek() (tool T, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.has && f.stale(f.tool) {
		f.has, f.err = false, nil
	}
	return f.tool, f.has
}

// tools are what this host has to keep rules with.
type tools struct {
	iptables    found[*iptables.Tables] // as it is installed, of either variant
	legacy, nft found[*iptables.Tables] // variants by their own names
	nftables    found[*nftables.Tables]
}

func newTools() *tools {
	program := func(find func() (*iptables.Tables, error)) found[*iptables.Tables] {
		return found[*iptables.Tables]{find: find, stale: (*iptables.Tables).Replaced}
	}
	finder := new(iptables.Finder)
	return &tools{
		iptables: program(func() (*iptables.Tables, error) { return finder.Find(iptables.IPv4) }),
		legacy:   program(func() (*iptables.Tables, error) { return finder.Variant(iptables.IPv4, true) }),
		nft:      program(func() (*iptables.Tables, error) { return finder.Variant(iptables.IPv4, false) }),
		nftables: found[*nftables.Tables]{find: nftables.New, stale: func(*nftables.Tables) bool { return false }},
	}
}

// legacyIPTables returns the variant of iptables that has tables of its own in the kernel.
func (t *tools) legacyIPTables() (*iptables.Tables, error) {
	if main, ok := t.iptables.peek(); ok && main.Legacy() {
		return main, nil
	}
	legacy, err := t.legacy.get()
	if errors.Is(err, iptables.ErrNotFound) { // it may be the only one
		if main, _ := t.iptables.get(); main != nil && main.Legacy() {
			return main, nil
		}
	}
	return legacy, err
}

// nftIPTables returns the variant of iptables that writes nftables.
func (t *tools) nftIPTables() (*iptables.Tables, error) {
	main, err := t.iptables.get()
	if err == nil && !main.Legacy() {
		return main, nil
	}
	variant, failed := t.nft.get()
	if errors.Is(failed, iptables.ErrNotFound) && err != nil {
		failed = err
	}
	return variant, failed
}

// ruleSet is where rules are kept: iptables or nftables.
type ruleSet interface {
	// Sync makes the owner's rules those that are wanted, here and in what older
	// generations have left, and touches no other network's. It tells what it has changed.
	Sync(ctx context.Context, owner firewall.Owner, want []firewall.Chain) (changes []string, err error)
	RandomPorts() bool
}

// nftSet is nftables' IPv4 tables. The generations that left rules in chains of
// others did so by iptables.
type nftSet struct{ *nftables.Tables }

func (s nftSet) Sync(ctx context.Context, owner firewall.Owner, want []firewall.Chain) ([]string, error) {
	return s.Tables.Sync(ctx, nftables.IPv4, owner, want)
}

// keeper is one of the two that can keep the rules.
type keeper struct {
	name    string
	find    func() (ruleSet, error)
	replace string // text of the condition that it does so for the other one
}

// keepers returns who keeps the rules, as the network config wants it, and who does as long as
// that one cannot.
func (t *tools) keepers(c netconf.Choice) (first, second keeper) {
	first = keeper{"iptables", func() (ruleSet, error) {
		set, err := t.iptables.get()
		return set, err
	}, "nftables cannot be used; packet filter rules are kept by iptables meanwhile"}
	second = keeper{"nftables", func() (ruleSet, error) {
		set, err := t.nftables.get()
		return nftSet{set}, err
	}, "iptables cannot be used; packet filter rules are kept by nftables meanwhile"}
	if c == netconf.Yes {
		return second, first
	}
	return first, second
}

// attempt is one try of a keeper to have the rules right. It has a goroutine of its own: a
// command may hang.
type attempt struct {
	cancel context.CancelFunc
	done   chan struct{}

	// Results, for whoever has seen done closed.
	set     ruleSet
	changes []string
	err     error
	took    time.Duration
}

func (k keeper) try(ctx context.Context, owner firewall.Owner, want func(ruleSet) []firewall.Chain) *attempt {
	a := &attempt{done: make(chan struct{})}
	ctx, a.cancel = context.WithCancel(ctx)
	go func() {
		defer close(a.done)
		defer a.cancel()
		begun := time.Now()
		if a.set, a.err = k.find(); a.err == nil {
			a.changes, a.err = a.set.Sync(ctx, owner, want(a.set))
		}
		a.took = time.Since(begun)
	}()
	return a
}

// wait waits for the end of an attempt.
func (a *attempt) wait(ctx context.Context, within time.Duration) error {
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-a.done:
		return a.err
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return fmt.Errorf("no end after %s", within)
	}
}

// ended reports whether the results are there.
func (a *attempt) ended() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}
