// Package terms decides on what terms this host holds its lease: what the lease publishes, out of
// which pool it is, and for how long. They follow from the facts about this host, from the network
// config, and from peers that publish what this host does.
//
// It neither reads nor writes leases; whoever follows them takes the terms. Invariant: what peers
// know of this host changes only when it must: when it has another address, or when no packet could
// pass between it and another host.
package terms

import (
	"log/slog"
	"slices"
	"sync"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
	"flanneld/pkg/subnet"
)

const (
	// rivalTimeout is how long the host with the older of two leases with one MAC
	// waits for the other one to take another: that may run a flanneld which never does.
	rivalTimeout = 30 * time.Second
	// minMACInterval is the least time between two changes of the MAC.
	minMACInterval = 10 * time.Second
)

// Keeper keeps the terms. Its methods may be called by several goroutines, and never block.
type Keeper struct {
	backend    backend.Backend
	conditions *condition.List
	log        *slog.Logger
	out        chan subnet.Terms // the latest

	mu      sync.Mutex // guards what follows
	terms   subnet.Terms
	own     lease.Lease // as it is held; zero: there is none yet
	facts   host.Facts
	known   bool          // the facts are
	rivals  []lease.Lease // that have this host's MAC
	since   time.Time     // when there were none before
	changed time.Time     // when the MAC was changed last
	timer   *time.Timer   // look at the rivals again
}

// New returns a keeper of the terms that a network config gives, without attributes: these are
// those of the first lease.
func New(n backend.Network, conditions *condition.List, log *slog.Logger) *Keeper {
	k := &Keeper{
		backend: n.Backend, conditions: conditions, log: log, out: make(chan subnet.Terms, 1),
		terms: subnet.Terms{Pool: n.V4, TTL: n.LeaseTTL},
	}
	k.timer = time.AfterFunc(time.Hour, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.resolveConflict()
	})
	k.timer.Stop()
	return k
}

// Close ends what the keeper does by itself.
func (k *Keeper) Close() { k.timer.Stop() }

// Changes is where the terms arrive when they have changed: the latest ones.
func (k *Keeper) Changes() <-chan subnet.Terms { return k.out }

// SetOwn says what this host's lease is now.
func (k *Keeper) SetOwn(l lease.Lease) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !l.Subnets.IsValid() {
		return
	}
	if !k.own.Subnets.IsValid() {
		k.terms.Attrs = l.Attrs
	}
	k.own = l
	k.updateAddress()
}

// SetFacts says what is true of this host now, or why that is not known. What the lease publishes
// follows the address of the uplink.
func (k *Keeper) SetFacts(f host.Facts, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.facts, k.known = f, err == nil
	k.updateAddress()
	k.resolveConflict()
}

// SetConfig says what a later network config gives, and reports whether that is something else.
func (k *Keeper) SetConfig(n backend.Network) (changed bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.change(func(t *subnet.Terms) { t.Pool, t.TTL = n.V4, n.LeaseTTL })
}

// SetRivals says which peers are left out because they claim what is this host's: its MAC.
func (k *Keeper) SetRivals(rivals []lease.Lease) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.rivals = slices.Clone(rivals)
	k.resolveConflict()
}

// addressCondition is there while the lease cannot publish the uplink's address.
const addressCondition = "lease/address"

// updateAddress has the lease publish the address of the uplink. What else it publishes, as the MAC of a
// device, stays: peers know it.
func (k *Keeper) updateAddress() {
	if !k.known || !k.own.Subnets.IsValid() {
		return
	}
	if k.terms.Attrs.PublicIP == k.facts.PublicIP {
		k.conditions.End(addressCondition)
		return
	}
	f := k.facts
	f.MACs = nil
	a, err := k.backend.Attrs(f, k.terms.Attrs, nil)
	if err != nil {
		k.conditions.Set(condition.Condition{
			ID: addressCondition, Text: "cannot update lease to the uplink's new address",
			Fields: []any{"public_ip", k.terms.Attrs.PublicIP, "addr", f.PublicIP, "err", err},
		})
		return
	}
	k.conditions.End(addressCondition)
	k.change(func(t *subnet.Terms) { t.Attrs = a })
}

// resolveConflict ends a rivalry over the MAC of this host, which no packet between the rivals
// survives. The newer of two leases takes another MAC at once, the older one when the
// other has not done so in time.
func (k *Keeper) resolveConflict() {
	k.timer.Stop()
	if len(k.rivals) == 0 || !k.own.Subnets.IsValid() {
		k.since = time.Time{}
		return
	}
	now := time.Now()
	if k.since.IsZero() {
		k.since = now
	}
	at := k.since.Add(rivalTimeout)
	if slices.ContainsFunc(k.rivals, func(l lease.Lease) bool { return l.Precedes(k.own) }) {
		at = k.since
	}
	if next := k.changed.Add(minMACInterval); at.Before(next) {
		at = next
	}
	if wait := at.Sub(now); wait > 0 {
		k.timer.Reset(wait)
		return
	}
	if !k.known {
		return
	}
	f := k.facts
	f.MACs = nil
	before := k.terms.Attrs.BackendData
	a, err := k.backend.Attrs(f, k.terms.Attrs, k.rivals)
	if err == nil && k.change(func(t *subnet.Terms) { t.Attrs = a }) {
		k.changed = now
		k.log.Warn("another host has the same MAC address, choosing a new one", "peer", k.rivals[0].Subnets, "public_ip", k.rivals[0].PublicIP, "before", before, "backend_data", a.BackendData)
	}
}

// change changes the terms, and reports whether they are others now.
func (k *Keeper) change(change func(*subnet.Terms)) bool {
	before := k.terms
	if change(&k.terms); k.terms == before {
		return false
	}
	select { // the latest counts
	case <-k.out:
	default:
	}
	k.out <- k.terms
	return true
}
