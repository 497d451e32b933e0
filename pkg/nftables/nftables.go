// Package nftables applies wanted packet filter rules to the kernel's nftables over nfnetlink,
// without any binary: it lists rules, compares them, and writes the difference.
//
// It does not decide which rules are wanted; package firewall does. It writes them to two places:
//
//   - a table of our own for each address family, which holds the rules of all networks
//     of this host, each written by its daemon, and nothing else;
//   - foreign accepts: rules at the head of other programs' base chains that might drop
//     forwarded packets of the overlay. An accept ends only its own base chain, so one in
//     our table does not override a drop in another. Foreign accepts have the form that
//     iptables-nft writes, because the chain may be one that iptables-nft reads.
//
// Invariants: every change is one transaction that is valid only for the generation of rules that
// was listed, so that no packet sees a half-written chain and no decision is based on outdated
// rules. Correct rules are not written again. In other programs' tables nothing but foreign accepts
// is changed. Rules of other networks stay.
package nftables

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/netlink"
	"flanneld/pkg/pace"
)

// Family is an address family, with its number in nfnetlink.
type Family uint8

// The families of overlays.
const (
	IPv4 Family = unix.NFPROTO_IPV4
	IPv6 Family = unix.NFPROTO_IPV6
)

// maxAttempts is how often a Sync retries while other programs change the rules. A listing takes
// about a millisecond. The pause grows with each attempt, to a quarter of a second in total,
// because programs that write faster do not do so for long.
const (
	maxAttempts = 20
	backOff     = time.Millisecond
)

// absent is the error of a kernel without nftables. Every other error may be temporary.
const absent = firewall.AbsentError("kernel without nftables")

// errChanged is the error if other programs changed the rules since they were listed.
var errChanged = errors.New("rules change faster than they can be read")

// Tables accesses the nftables of one network namespace. Its methods may be called from any
// goroutine.
type Tables struct {
	ns       *netlink.Namespace
	ownPorts *sync.Map  // netlink ports whose changes Watch ignores
	mu       sync.Mutex // one exchange at a time
	conn     conn
}

// open opens the nftables of the calling thread's network namespace, and adds the port of its
// socket to ownPorts. It fails if the kernel has no nftables.
func open(ownPorts *sync.Map) (*Tables, error) {
	ns, err := netlink.CurrentNamespace()
	if err != nil {
		return nil, err
	}
	t := &Tables{ns: ns, ownPorts: ownPorts}
	if t.conn.Conn, err = ns.Dial(unix.NETLINK_NETFILTER, netlink.RequestBuffer); err == nil {
		if _, err = t.conn.generation(); err != nil {
			t.conn.Close()
		}
	}
	if err != nil {
		ns.Close()
		if pace.IsAny(err, unix.EPROTONOSUPPORT, unix.EINVAL, unix.EOPNOTSUPP) {
			err = fmt.Errorf("%w: %w", absent, err)
		}
		return nil, err
	}
	// The port is in the kernel's notifications of changes that were made with the socket.
	ownPorts.Store(t.conn.Port(), nil)
	return t, nil
}

// retry calls f until it succeeds, or until another attempt does not help.
func (t *Tables) retry(ctx context.Context, f func() error) (err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range maxAttempts {
		if err := pace.Sleep(ctx, time.Duration(i)*backOff); err != nil {
			return err
		}
		if err = f(); !retryable(err) {
			break
		}
	}
	return wrap(err)
}

// retryable reports whether an immediate retry may help: rules were changed meanwhile, or the
// kernel could not answer.
func retryable(err error) bool {
	return pace.IsAny(err, errChanged, netlink.ErrNoAnswer, unix.ENOBUFS, unix.EINTR, unix.EAGAIN)
}

func wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("nftables: %w", err)
}

// Close closes the socket. A Watch ends with its context.
func (t *Tables) Close() error { return errors.Join(t.conn.Close(), t.ns.Close()) }

// Sync makes the tables of one family hold exactly the wanted ones of the owner's rules. With none
// wanted, all of the owner's rules are removed, and with the last network's the table. It returns a
// short description of each change. If it returns firewall.ErrOwnerLocked, everything else is
// applied.
//
// If another place holds the rules, only foreign accepts are maintained, and the owner's rules are
// removed from our table.
func (t *Tables) Sync(ctx context.Context, r firewall.Ruleset) (changes []string, err error) {
	err = t.retry(ctx, func() error {
		w, err := t.conn.list(familyOf(r.Family))
		if err != nil {
			return err
		}
		p := newPlan(r, w)
		if err := t.conn.commit(w.generation, p.messages); err != nil {
			return err
		}
		changes = p.changes
		return p.ownerError()
	})
	return changes, err
}

// familyOf returns nfnetlink's number of a family.
func familyOf(f firewall.Family) Family { return [...]Family{IPv4, IPv6}[f] }

func (f Family) String() string {
	switch f {
	case unix.NFPROTO_IPV4:
		return "ip"
	case unix.NFPROTO_IPV6:
		return "ip6"
	case unix.NFPROTO_INET:
		return "inet"
	case unix.NFPROTO_NETDEV:
		return "netdev"
	case unix.NFPROTO_BRIDGE:
		return "bridge"
	}
	return fmt.Sprintf("family %d", uint8(f))
}

// bits returns the length of the family's addresses.
func (f Family) bits() int {
	if f == IPv4 {
		return 32
	}
	return 128
}
