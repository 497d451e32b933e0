package nftables

import (
	"context"
	"fmt"
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
	tables   *Tables             // nil until they are opened
	ownPorts map[uint32]struct{} // netlink ports of our sockets, whose changes Watch ignores
}

// open returns the tables, and opens them on first use.
func (k *Keeper) open() (t *Tables, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.tables == nil {
		k.tables, err = k.dial()
	}
	return k.tables, err
}

// dial opens tables with a socket whose changes Watch ignores.
func (k *Keeper) dial() (*Tables, error) {
	t, err := New()
	if err != nil {
		return nil, err
	}
	t.isOwnPort = k.isOwnPort
	if k.ownPorts == nil {
		k.ownPorts = map[uint32]struct{}{}
	}
	k.ownPorts[t.Port()] = struct{}{}
	return t, nil
}

func (k *Keeper) isOwnPort(port uint32) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ours := k.ownPorts[port]
	return ours
}

// current returns the tables if they are open, or nil.
func (k *Keeper) current() *Tables {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tables
}

// OpenLock opens tables with a separate socket, for a lock that is written concurrently. Watches of
// either ignore the changes of the other.
func (k *Keeper) OpenLock() (*Tables, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.dial()
}

// Close closes the socket. The rules stay.
func (k *Keeper) Close() error {
	if t := k.current(); t != nil {
		return t.Close()
	}
	return nil
}

// familyOf returns nfnetlink's number of a family.
func familyOf(f firewall.Family) Family { return [...]Family{IPv4, IPv6}[f] }

// Traits implements firewall.Keeper.
func (k *Keeper) Traits(firewall.Family) firewall.Traits {
	return firewall.Traits{Name: "nftables", Place: firewall.Native, Resync: resync}
}

// Sync implements firewall.Keeper. The chains of iptables-nft need no accepts if it holds the
// rules.
func (k *Keeper) Sync(ctx context.Context, r firewall.Ruleset) (changes []string, err error) {
	t, err := k.open()
	if err != nil {
		return nil, err
	}
	if r.HeldIn == firewall.Nowhere {
		return t.Sync(ctx, familyOf(r.Family), r.Owner, r.Chains)
	}
	var except []string
	if r.HeldIn == firewall.Compat {
		for _, h := range []firewall.Hook{firewall.Forward, firewall.PreRouting} {
			except = append(except, fmt.Sprintf("%s %s %s", familyOf(r.Family), h.Table(), h.Chain()))
		}
	}
	return t.SyncAccepts(ctx, familyOf(r.Family), r.Owner, r.Chains, except...)
}

// Removal implements firewall.Keeper.
func (k *Keeper) Removal(ctx context.Context, r firewall.Ruleset) (commands []string, err error) {
	t, err := k.open()
	if err != nil {
		return nil, err
	}
	return t.Removal(ctx, familyOf(r.Family), r.Owner)
}

// Watch implements firewall.Keeper.
func (k *Keeper) Watch(ctx context.Context) (<-chan struct{}, error) {
	if t := k.current(); t != nil {
		return t.Watch(ctx)
	}
	return nil, nil
}

// Tables implements firewall.Inspector.
func (k *Keeper) Tables(f firewall.Family) ([]string, error) {
	t, err := k.open()
	if err != nil {
		return nil, err
	}
	return t.tableNames(familyOf(f))
}

// Barriers implements firewall.Inspector.
func (k *Keeper) Barriers(ctx context.Context, p firewall.Packet) ([]firewall.Barrier, error) {
	if t := k.current(); t != nil {
		return t.Barriers(ctx, p)
	}
	return nil, nil
}
