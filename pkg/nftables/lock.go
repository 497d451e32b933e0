package nftables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/pace"
)

const (
	// lockPrefix is the prefix of the name of a network's lock table. Each network has its own
	// table, so that no daemon writes another's.
	lockPrefix = "flannel-lock-"
	lockSet    = "peers"
)

// LockTable returns the name of a network's lock table in the syntax of nft(8).
func LockTable(network netip.Prefix) string { return "ip " + lockPrefix + network.String() }

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
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range maxAttempts {
		if err := pace.Sleep(ctx, time.Duration(i)*backOff); err != nil {
			return nil, err
		}
		changes, err = t.conn.syncLock(l, peers, prune)
		if !errors.Is(err, errChanged) {
			break
		}
	}
	if err != nil {
		err = fmt.Errorf("nftables: %w", err)
	}
	return changes, err
}

// EditLock adds peers to a lock and removes others, without reading the lock. It fails if the lock
// is damaged.
func (t *Tables) EditLock(network netip.Prefix, add, remove []netip.Addr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	ms := lockElements(network, unix.NFT_MSG_NEWSETELEM, add)
	ms = append(ms, lockElements(network, unix.NFT_MSG_DELSETELEM, remove)...)
	if len(ms) == 0 {
		return nil
	}
	if err := t.conn.commit(0, ms); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// Unlock removes the lock table of a network, if it exists.
func (t *Tables) Unlock(network netip.Prefix) (removed bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err = t.conn.commit(0, []message{deleteLock(network)})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		err = fmt.Errorf("nftables: %w", err)
	}
	return err == nil, err
}

// Locked reports whether a network has a lock table.
func (t *Tables) Locked(network netip.Prefix) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tables, err := t.conn.tables(IPv4)
	name := lockPrefix + network.String()
	return slices.ContainsFunc(tables, func(t table) bool { return t.name == name }), err
}

func (c *conn) syncLock(
	l firewall.Lock, peers map[netip.Addr]struct{}, prune bool,
) (changes []string, err error) {
	generation, err := c.generation()
	if err != nil {
		return nil, err
	}
	there, sound, err := c.checkLock(l)
	if err != nil {
		return nil, err
	}
	var ms []message
	have := map[netip.Addr]struct{}{}
	if sound {
		if have, err = c.lockPeers(l.Network, peers); err != nil {
			return nil, err
		}
	} else {
		verb := "created"
		if there {
			verb = "recreated"
			ms = append(ms, deleteLock(l.Network))
		}
		ms = append(ms, createLock(l)...)
		changes = append(changes, fmt.Sprintf("%s table %s", verb, LockTable(l.Network)))
	}
	add, remove := missing(peers, have), []netip.Addr(nil)
	if prune {
		remove = missing(have, peers)
	}
	if len(add)+len(remove) > 0 {
		changes = append(changes,
			fmt.Sprintf("added %d peer addresses, removed %d", len(add), len(remove)))
	}
	ms = append(ms, lockElements(l.Network, unix.NFT_MSG_NEWSETELEM, add)...)
	ms = append(ms, lockElements(l.Network, unix.NFT_MSG_DELSETELEM, remove)...)
	if len(ms) == 0 {
		return nil, nil
	}
	return changes, c.commit(generation, ms)
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
