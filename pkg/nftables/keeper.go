package nftables

import (
	"context"
	"sync"
	"time"

	"flanneld/pkg/firewall"
)

// resync is the time between two Syncs, in case that an event is lost.
const resync = time.Minute

// Keeper keeps rules in sync with nftables. It implements firewall.Keeper and firewall.Inspector.
// The zero value is ready for use; it opens its socket on first use, in the network namespace of
// the calling thread.
type Keeper struct {
	mu       sync.Mutex
	tables   *Tables  // nil until they are opened
	ownPorts sync.Map // netlink ports of our sockets
}

// open returns the tables, and opens them on first use.
func (k *Keeper) open() (t *Tables, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.tables == nil {
		k.tables, err = open(&k.ownPorts)
	}
	return k.tables, err
}

// current returns the tables if they are open, or nil.
func (k *Keeper) current() *Tables {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tables
}

// OpenLock opens tables with a separate socket, for a lock that is written concurrently. Watches of
// either ignore the changes of the other.
func (k *Keeper) OpenLock() (*Tables, error) { return open(&k.ownPorts) }

// Close closes the socket. The rules stay.
func (k *Keeper) Close() error {
	if t := k.current(); t != nil {
		return t.Close()
	}
	return nil
}

// Traits implements firewall.Keeper.
func (k *Keeper) Traits(firewall.Family) firewall.Traits {
	return firewall.Traits{Name: "nftables", Place: firewall.Native, Resync: resync}
}

// Sync implements firewall.Keeper.
func (k *Keeper) Sync(ctx context.Context, r firewall.Ruleset) (changes []string, err error) {
	t, err := k.open()
	if err != nil {
		return nil, err
	}
	return t.Sync(ctx, r)
}

// Plan implements firewall.Keeper.
func (k *Keeper) Plan(ctx context.Context, r firewall.Ruleset) ([]firewall.Change, error) {
	t, err := k.open()
	if err != nil {
		return nil, err
	}
	return t.plan(ctx, r)
}

// Watch implements firewall.Keeper.
func (k *Keeper) Watch(ctx context.Context) (<-chan struct{}, error) {
	if t := k.current(); t != nil {
		return t.Watch(ctx)
	}
	return nil, nil
}

// Tables implements firewall.Inspector.
func (k *Keeper) Tables(f firewall.Family) (names []string, err error) {
	t, err := k.open()
	if err != nil {
		return nil, err
	}
	all, err := t.list(familyOf(f))
	for _, table := range all {
		names = append(names, table.name)
	}
	return names, err
}

// Barriers implements firewall.Inspector.
func (k *Keeper) Barriers(ctx context.Context, p firewall.Packet) ([]firewall.Barrier, error) {
	if t := k.current(); t != nil {
		return t.Barriers(ctx, p)
	}
	return nil, nil
}

// View calls use with the base chains of a family. What their Steps evaluate is read when it is
// first needed, and valid until use returns. use is called again if the rules changed meanwhile.
func (k *Keeper) View(ctx context.Context, f firewall.Family, use func([]firewall.BaseChain) error) error {
	t, err := k.open()
	if err != nil {
		return err
	}
	return t.view(ctx, f, use)
}
