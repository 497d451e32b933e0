package nftables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
)

const (
	// lockPrefix is the prefix of the name of a network's lock table. Each network has its own
	// table, so that no daemon writes another's.
	lockPrefix = "flannel-lock-"
	lockSet    = "peers"
)

// LockTable returns the name of a network's lock table in the syntax of nft(8).
func LockTable(network netip.Prefix) string { return "ip " + lockTable(network) }

func lockTable(network netip.Prefix) string { return lockPrefix + network.String() }

// ownTable reports whether a table belongs to a flanneld.
func ownTable(family Family, name string) bool {
	return (family == IPv4 || family == IPv6) && name == family.tableName() ||
		family == IPv4 && strings.HasPrefix(name, lockPrefix)
}

// SyncLock makes the lock table of a network match l and peers. Unless prune is set, it leaves
// other addresses in the set.
func (t *Tables) SyncLock(
	ctx context.Context, l firewall.Lock, peers map[netip.Addr]struct{}, prune bool,
) (changes []string, err error) {
	err = t.retry(ctx, func() (err error) {
		changes, err = t.conn.syncLock(l, peers, prune)
		return err
	})
	return changes, err
}

// EditLock adds peers to a lock and removes others, without reading the lock. It fails if the lock
// is damaged.
func (t *Tables) EditLock(network netip.Prefix, add, remove []netip.Addr) error {
	return t.write(lockEdits(network, add, remove))
}

// Unlock removes the lock table of a network, if it exists.
func (t *Tables) Unlock(network netip.Prefix) (removed bool, err error) {
	err = t.write([]message{deleteTable(IPv4, lockTable(network))})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, err
}

// write applies messages regardless of the generation, once.
func (t *Tables) write(ms []message) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return wrap(t.conn.commit(0, ms))
}

// Locked reports whether a network has a lock table.
func (t *Tables) Locked(network netip.Prefix) (bool, error) {
	tables, err := t.list(IPv4)
	return slices.ContainsFunc(tables, func(t table) bool { return t.name == lockTable(network) }), err
}

// lockChange is the difference between a lock and the wanted one.
type lockChange struct {
	generation   uint32 // of the rules that were compared
	there, sound bool   // the table exists; it is as wanted, except for the peers
	add, remove  []netip.Addr
}

// compareLock compares the lock table of a network with the wanted one.
func (c *conn) compareLock(l firewall.Lock, peers map[netip.Addr]struct{}, prune bool) (d lockChange, err error) {
	if d.generation, err = c.generation(); err != nil {
		return d, err
	}
	if d.there, d.sound, err = c.checkLock(l); err != nil {
		return d, err
	}
	have := map[netip.Addr]struct{}{}
	if d.sound {
		if have, err = c.lockPeers(l.Network, peers); err != nil {
			return d, err
		}
	}
	d.add = missing(peers, have)
	if prune {
		d.remove = missing(have, peers)
	}
	return d, nil
}

func (c *conn) syncLock(
	l firewall.Lock, peers map[netip.Addr]struct{}, prune bool,
) (changes []string, err error) {
	d, err := c.compareLock(l, peers, prune)
	if err != nil {
		return nil, err
	}
	var ms []message
	if !d.sound {
		verb := "created"
		if d.there {
			verb = "recreated"
			ms = append(ms, deleteTable(IPv4, lockTable(l.Network)))
		}
		ms = append(ms, createLock(l)...)
		changes = append(changes, fmt.Sprintf("%s table %s", verb, LockTable(l.Network)))
	}
	if len(d.add)+len(d.remove) > 0 {
		changes = append(changes,
			fmt.Sprintf("added %d peer addresses, removed %d", len(d.add), len(d.remove)))
	}
	return changes, c.commit(d.generation, append(ms, lockEdits(l.Network, d.add, d.remove)...))
}

// missing returns the addresses that are in a but not in b, sorted.
func missing(a, b map[netip.Addr]struct{}) (all []netip.Addr) {
	for k := range a {
		if _, ok := b[k]; !ok {
			all = append(all, k)
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return all
}
