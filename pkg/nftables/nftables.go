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
	"net/netip"
	"strings"
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
	ns        *netlink.Namespace
	isOwnPort func(port uint32) bool // netlink ports, besides its own, whose changes Watch ignores; may be nil
	mu        sync.Mutex             // one exchange at a time
	conn      conn
}

// New opens the nftables of the calling thread's network namespace. It fails if the kernel has no
// nftables.
func New() (*Tables, error) {
	ns, err := netlink.CurrentNamespace()
	if err != nil {
		return nil, err
	}
	t := &Tables{ns: ns}
	if t.conn.Conn, err = ns.Dial(unix.NETLINK_NETFILTER, netlink.RequestBuffer); err != nil {
		ns.Close()
		if errors.Is(err, unix.EPROTONOSUPPORT) {
			err = fmt.Errorf("%w: %w", absent, err)
		}
		return nil, err
	}
	if _, err := t.conn.generation(); err != nil {
		t.Close()
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			err = fmt.Errorf("%w: %w", absent, err)
		}
		return nil, err
	}
	return t, nil
}

// retryable reports whether an immediate retry may help: rules were changed meanwhile, or the
// kernel could not answer.
func retryable(err error) bool {
	for _, e := range []error{errChanged, netlink.ErrNoAnswer, unix.ENOBUFS, unix.EINTR, unix.EAGAIN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Close closes the socket. A Watch ends with its context.
func (t *Tables) Close() error { return errors.Join(t.conn.Close(), t.ns.Close()) }

// Port returns the socket's netlink port, by which the kernel reports who made a change.
func (t *Tables) Port() uint32 { return t.conn.Port() }

// Sync makes the tables of one family hold exactly the wanted ones of the owner's rules. With none
// wanted, all of the owner's rules are removed, and with the last network's the table. It returns a
// short description of each change. If it returns firewall.ErrOwnerLocked, everything else is
// applied.
func (t *Tables) Sync(
	ctx context.Context, family Family, owner firewall.Owner, want []firewall.Chain,
) (changes []string, err error) {
	return t.syncChains(ctx, family, owner, wanted{own: want, accepts: want})
}

// SyncAccepts maintains foreign accepts only, where other programs' chains may drop forwarded
// packets of an overlay whose rules are held by iptables. except are chains that have these accepts
// already, as "ip filter FORWARD". It removes the owner's rules from our table.
func (t *Tables) SyncAccepts(
	ctx context.Context, family Family, owner firewall.Owner, want []firewall.Chain, except ...string,
) (changes []string, err error) {
	return t.syncChains(ctx, family, owner, wanted{accepts: want, except: except})
}

// wanted is the wanted state.
type wanted struct {
	own     []firewall.Chain // chains of our table
	accepts []firewall.Chain // foreign accepts
	except  []string         // chains without foreign accepts
}

func (t *Tables) syncChains(
	ctx context.Context, family Family, owner firewall.Owner, want wanted,
) (changes []string, err error) {
	want.own, err = normalize(family, want.own)
	if err == nil {
		want.accepts, err = normalize(family, want.accepts)
	}
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range maxAttempts {
		if err := pace.Sleep(ctx, time.Duration(i)*backOff); err != nil {
			return nil, err
		}
		changes, err = t.sync(family, owner, want)
		if !retryable(err) {
			break
		}
	}
	if err != nil {
		err = fmt.Errorf("nftables: %w", err)
	}
	return changes, err
}

func (t *Tables) sync(family Family, owner firewall.Owner, want wanted) ([]string, error) {
	w, err := t.conn.list(family)
	if err != nil {
		return nil, err
	}
	p := newPlan(family, owner, want, w)
	if len(p.messages) > 0 {
		if err := t.conn.commit(w.generation, p.messages); err != nil {
			return nil, err
		}
	}
	if len(p.ownerLocked) > 0 {
		return p.changes, fmt.Errorf("%w: %s", firewall.ErrOwnerLocked, strings.Join(p.ownerLocked, ", "))
	}
	return p.changes, nil
}

// normalize converts rules to the form in which rules of the kernel are parsed: a match on all
// addresses is no match, and a rule that no address can match is omitted.
func normalize(family Family, want []firewall.Chain) ([]firewall.Chain, error) {
	var out []firewall.Chain
	for _, c := range want {
		if c.Hook >= firewall.Hooks {
			return nil, fmt.Errorf("unknown hook %d", c.Hook)
		}
		n := firewall.Chain{Hook: c.Hook}
		for _, r := range c.Rules {
			src, never := normalizeMatch(r.Src)
			dst, neither := normalizeMatch(r.Dst)
			if never || neither {
				continue
			}
			r.Src, r.Dst = src, dst
			for _, p := range []netip.Prefix{src.Prefix, dst.Prefix} {
				if p.IsValid() && p.Addr().Is4() != (family == IPv4) {
					return nil, fmt.Errorf("rule %q is not for family %s", r, family)
				}
			}
			n.Rules = append(n.Rules, r)
		}
		out = append(out, n)
	}
	return out, nil
}

func normalizeMatch(m firewall.Match) (_ firewall.Match, never bool) {
	if !m.Prefix.IsValid() || m.Prefix.Bits() == 0 {
		return firewall.Match{}, m.Not
	}
	m.Prefix = m.Prefix.Masked()
	return m, false
}

func (f Family) String() string {
	switch f {
	case unix.NFPROTO_IPV4:
		return "ip"
	case unix.NFPROTO_IPV6:
		return "ip6"
	case unix.NFPROTO_INET:
		return "inet"
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
