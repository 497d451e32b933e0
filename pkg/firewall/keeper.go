package firewall

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Family is an address family. Each family has its own tables, which the same code manages.
type Family uint8

const (
	IPv4 Family = iota
	IPv6
)

// FamilyOf returns the family of an address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Place is where the kernel stores rules. A packet traverses the chains of all places, and an
// accept in one place does not override a drop in another.
type Place uint8

const (
	Nowhere Place = iota
	Legacy        // the tables of iptables-legacy, which are invisible to nftables
	Compat        // the tables of iptables-nft, in nftables
	Native        // our own table in nftables
)

// Ruleset is the wanted state of one daemon's rules in one address family.
type Ruleset struct {
	Family Family
	Owner  Owner
	Chains []Chain
	// HeldIn, if it is not Nowhere, is the place that holds the chains instead of this one. Then
	// only accepts are wanted here, and only if chains of other programs may drop forwarded packets
	// of the network.
	HeldIn Place
}

// Keeper applies rulesets with one tool. It looks for the tool when it needs it, and again if it
// was not found or was replaced; meanwhile Sync and Plan fail, and Watch has nothing to watch.
// Methods may be called from several goroutines.
type Keeper interface {
	// Traits returns what is known about the tool for a family so far.
	Traits(Family) Traits
	// Sync makes the owner's rules match the wanted ones, including rules left by older releases,
	// and does not touch other rules. With no chains it removes all rules of the owner. It returns
	// a short description of each change, also together with an error. A second Sync changes
	// nothing.
	Sync(ctx context.Context, r Ruleset) (changes []string, err error)
	// Plan returns what Sync would do, in order. It changes nothing.
	Plan(ctx context.Context, r Ruleset) ([]Change, error)
	// Watch signals possible changes by other programs until ctx ends or the channel is closed,
	// after which changes may be missed. The channel is nil if there is nothing to watch at the
	// moment.
	Watch(ctx context.Context) (<-chan struct{}, error)
}

// Change is one change of the packet filter.
type Change struct {
	Kind    string // "table", "chain", "rule", "set", "element" or "source"
	Verb    string // "add", "insert", "change", "flush" or "delete"
	Object  string // the object's name, with its kind
	Command string // that makes the change, for a shell
}

// Inspector reads the rules of other programs in one of the kernel's two packet filters, legacy
// iptables and nftables. It changes nothing. Methods may be called from several goroutines.
type Inspector interface {
	// Tables returns the names of a family's tables.
	Tables(Family) ([]string, error)
	// Barriers returns the base chains that drop, or may drop, a packet. It returns none if the
	// filter cannot be read at all, which Sync reports.
	Barriers(ctx context.Context, p Packet) ([]Barrier, error)
}

// Traits describe a keeper's tool and its cost.
type Traits struct {
	Name    string // of the tool: "iptables", "nftables"
	Version string // as the tool prints it; empty if it is unknown or the tool has none
	Place   Place  // where it stores rules; Nowhere if that is unknown
	// Gap is the minimum time between two Syncs, and Resync the time between two Syncs without a
	// signal of a change. A tool that starts processes has a longer Gap; one whose Watch misses
	// some changes has a shorter Resync.
	Gap, Resync time.Duration
}

// AbsentError reports that this host lacks the tool or kernel feature that a keeper needs. Any
// other error may be temporary and says nothing about that.
type AbsentError string

func (e AbsentError) Error() string { return string(e) }

// Absent reports whether an error is, or wraps, an AbsentError.
func Absent(err error) bool { return errors.As(err, new(AbsentError)) }

// ErrOwnerLocked reports that chains which only the owner of their table can change may drop the
// network's packets. Everything else was applied.
var ErrOwnerLocked = errors.New("chains in tables with an owner may drop forwarded packets")

// LockedError reports that another program holds the lock that a keeper needs, and which program,
// if that is known.
type LockedError struct {
	Lock string      // what the lock protects
	PID  int         // 0: unknown, as of a process outside this container
	Name string      // of the process
	Free func() bool // reports whether the lock is free now, without waiting
}

func (e *LockedError) Error() string {
	text := "another program holds the lock of " + e.Lock
	if e.PID == 0 {
		return text
	}
	return fmt.Sprintf("%s: %s (PID %d)", text, e.Name, e.PID)
}

// Locked returns the LockedError in err's chain, or nil.
func Locked(err error) *LockedError {
	var e *LockedError
	errors.As(err, &e)
	return e
}
