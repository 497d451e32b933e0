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
	// lockPrefix begins the name of a network's table for its lock, which has no other purpose.
	// Each network has one, so that no daemon writes what another one keeps.
	lockPrefix = "flannel-lock-"
	lockSet    = "peers"
)

// LockTable names the table of a network's lock, for people.
func LockTable(network netip.Prefix) string { return "ip " + lockPrefix + network.String() }

// ownTable reports whether a table is that of a flanneld.
func ownTable(family Family, name string) bool {
	return (family == IPv4 || family == IPv6) && name == family.tableName() ||
		family == IPv4 && strings.HasPrefix(name, lockPrefix)
}

// SyncLock makes the table of a network's lock what it is to be. Unless it prunes, it leaves
// addresses that are no peers'.
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

// EditLock adds peers to a lock, and removes some, without a look at the rest. It fails if the lock
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

// Unlock removes the table of a network's lock, if there is one.
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

// Locked reports whether there is a table for a network's lock.
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
		verb := "made"
		if there {
			verb = "made anew"
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
			fmt.Sprintf("added %d addresses of peers, removed %d", len(add), len(remove)))
	}
	ms = append(ms, lockElements(l.Network, unix.NFT_MSG_NEWSETELEM, add)...)
	ms = append(ms, lockElements(l.Network, unix.NFT_MSG_DELSETELEM, remove)...)
	if len(ms) == 0 {
		return nil, nil
	}
	return changes, c.commit(generation, ms)
}

// missing returns what is in a, and not in b.
func missing(a, b map[netip.Addr]struct{}) (all []netip.Addr) {
	for k := range a {
		if _, ok := b[k]; !ok {
			all = append(all, k)
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return all
}
