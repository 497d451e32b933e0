// Package terms determines the terms of this host's lease: what it publishes, from which pool, and
// for how long. They follow from the facts about this host, the network config, and peers that
// publish the same MAC.
//
// It does not read or write leases; the follower does that with the terms. Invariant: what this
// host publishes changes only if necessary: when it has another address, or when it cannot exchange
// packets with another host.
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
	"flanneld/pkg/pace"
	"flanneld/pkg/subnet"
)

const (
	// rivalTimeout is how long the host with the older of two leases with one MAC waits for the
	// other one to change its MAC. Other implementations may never do so.
	rivalTimeout = 30 * time.Second
	// minMACInterval is the minimum time between two changes of the MAC.
	minMACInterval = 10 * time.Second
)

// Keeper computes the terms. Its methods may be called by several goroutines, and never block.
type Keeper struct {
	backend    backend.Backend
	conditions *condition.List
	log        *slog.Logger
	out        chan subnet.Terms // the latest terms

	mu      sync.Mutex // guards the following
	terms   subnet.Terms
	own     lease.Lease // present lease; zero if there is none yet
	facts   host.Facts
	known   bool          // facts are known
	rivals  []lease.Lease // peers with this host's MAC
	since   time.Time     // since when there are rivals
	changed time.Time     // last change of the MAC
	timer   *time.Timer   // calls resolveConflict
}

// New returns a Keeper with the terms of a network config. The attributes are set by the first
// lease.
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

// Close stops the timer.
func (k *Keeper) Close() { k.timer.Stop() }

// Changes returns a channel that receives the latest terms when they have changed.
func (k *Keeper) Changes() <-chan subnet.Terms { return k.out }

// SetOwn sets this host's lease.
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

// SetFacts sets the facts about this host, or why they are unknown. The lease follows the address
// of the uplink.
func (k *Keeper) SetFacts(f host.Facts, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.facts, k.known = f, err == nil
	k.updateAddress()
	k.resolveConflict()
}

// SetConfig sets a later network config, and reports whether the terms have changed.
func (k *Keeper) SetConfig(n backend.Network) (changed bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.change(func(t *subnet.Terms) { t.Pool, t.TTL = n.V4, n.LeaseTTL })
}

// SetRivals sets the peers that are skipped because they have this host's MAC.
func (k *Keeper) SetRivals(rivals []lease.Lease) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.rivals = slices.Clone(rivals)
	k.resolveConflict()
}

// addressCondition is the ID of the condition that the lease cannot publish the uplink's address.
const addressCondition = "lease/address"

// updateAddress makes the lease publish the address of the uplink. Other attributes, such as the
// MAC of a device, are kept, because peers use them.
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
	k.conditions.SetError(condition.Condition{
		ID: addressCondition, Text: "cannot update lease to the uplink's new address",
		Fields: []any{"public_ip", k.terms.Attrs.PublicIP, "addr", f.PublicIP},
	}, err)
	if err == nil {
		k.change(func(t *subnet.Terms) { t.Attrs = a })
	}
}

// resolveConflict changes this host's MAC if a peer has the same one, because the two hosts cannot
// exchange packets. The host with the newer lease changes its MAC at once, the other one after
// rivalTimeout.
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

// change changes the terms, and reports whether they differ from before.
func (k *Keeper) change(change func(*subnet.Terms)) bool {
	before := k.terms
	if change(&k.terms); k.terms == before {
		return false
	}
	pace.SendLatest(k.out, k.terms)
	return true
}
