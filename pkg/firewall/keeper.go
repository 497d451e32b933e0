package firewall

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Family is an address family. Each has tables of its own, which the same code keeps.
type Family uint8

const (
	IPv4 Family = iota
	IPv6
)

// FamilyOf returns the family of a prefix.
func FamilyOf(p netip.Prefix) Family {
	if p.Addr().Is4() {
		return IPv4
	}
	return IPv6
}

// Place is where in the kernel rules are kept. A packet passes the chains of all places, and an
// accept in one of them does not help against a drop in another one.
type Place uint8

const (
	Nowhere Place = iota
	Legacy        // the tables of iptables-legacy, which nftables do not see
	Compat        // the tables of iptables-nft, in nftables
	Native        // a table of our own, in nftables
)

// Ruleset is what one daemon wants of one address family.
type Ruleset struct {
	Family Family
	Owner  Owner
	Chains []Chain
	// Beside, if it is not Nowhere, is where the chains are kept instead of here. Then only
	// accepts are wanted here, and only where chains of others may drop what the network
	// forwards.
	HeldIn Place
}

// Keeper makes the kernel hold rulesets, by one tool. What the tool needs is looked for when it
// is needed, and again when it was not there or was replaced: until then Sync and Removal fail,
// and there is nothing to watch. Methods may be called from several goroutines.
type Keeper interface {
	// Traits returns what is known of the tool for a family so far.
	Traits(Family) Traits
	// Sync makes the owner's rules those that are wanted, also in what older releases have
	// left, and touches nobody else's. With no chains it removes them. It returns each change
	// in a few words, also with an error. A second Sync changes nothing.
	Sync(ctx context.Context, r Ruleset) (changes []string, err error)
	// Removal returns, as commands, what a Sync with no chains would do. It changes nothing.
	Removal(ctx context.Context, r Ruleset) (commands []string, err error)
	// Watch signals that others may have changed rules, until ctx ends or the channel is
	// closed; then changes may have been missed. It is nil where there is nothing to watch now.
	Watch(ctx context.Context) (<-chan struct{}, error)
}

// Inspector reads what others have in one of the two packet filters that the kernel has, legacy
// tables and nftables. It makes and changes nothing. Methods may be called from several goroutines.
type Inspector interface {
	// Tables returns the names of a family's tables.
	Tables(Family) ([]string, error)
	// Barriers returns the base chains that drop, or may drop, a packet; none as long as the
	// filter cannot be read at all, which Sync says.
	Barriers(ctx context.Context, p Packet) ([]Barrier, error)
}

// Traits are what a keeper's tool is and what it costs.
type Traits struct {
	Name    string // of the tool: "iptables", "nftables"
	Version string // what the tool says of itself; empty if that is not known, or nothing
	Place   Place  // where it keeps rules; Nowhere if that is not known
	// Gap is the least time between two Syncs, Resync the time between two while no change is
	// signalled: a tool that takes processes is asked less often, and one that is not told of
	// every change more often.
	Gap, Resync time.Duration
}

// AbsentError says that this host does not have what a keeper works with. Every other error may
// pass, and says nothing about whether it does.
type AbsentError string

func (e AbsentError) Error() string { return string(e) }

// Absent reports whether an error is, or wraps, an AbsentError.
func Absent(err error) bool { return errors.As(err, new(AbsentError)) }

// ErrOwnerLocked says that chains may drop the network's packets which the kernel lets nobody change
// but the program that owns their table. Everything else is as wanted.
var ErrOwnerLocked = errors.New("chains in tables with an owner may drop forwarded packets")

// LockedError says that another program holds the lock that a keeper needs, and by whom as far as
// that can be seen.
type LockedError struct {
	Lock string      // what it is the lock of
	PID  int         // 0: unknown, as of a process outside this container
	Name string      // of the process
	Free func() bool // reports whether the lock is free now; it does not wait
}

func (e *LockedError) Error() string {
	text := "another program holds the lock of " + e.Lock
	if e.PID == 0 {
		return text
	}
	return fmt.Sprintf("%s: %s (PID %d)", text, e.Name, e.PID)
}

// Locked returns the LockedError that an error is or wraps, nil if there is none.
func Locked(err error) *LockedError {
	var e *LockedError
	errors.As(err, &e)
	return e
}
