// Package nftables makes the kernel's nftables hold wanted packet filter rules, over nfnetlink and
// without any binary: it lists, compares, and writes the difference.
//
// It decides no rules; package firewall does. There are two places for them:
//
//   - a table of our own for each address family, which holds what the networks of
//     this host want, each daemon its own rules, and nothing else;
//   - guests: rules at the head of other programs' base chains that might drop
//     what the overlay forwards. An accept ends only the base chain it stands
//     in, so one in a table of our own does not help against another's drop.
//     Guests have the form that iptables-nft gives its own rules, for the chain
//     may be one that iptables-nft reads.
//
// Invariants: every change is one transaction that is valid for the generation of the rules that
// was listed, so that no packet ever meets a half-written chain and nothing is decided on what is
// no longer so; rules that are right are not written again; of other programs' tables nothing but
// guests is touched; rules of other networks stay, and of the owner's no packet meets a part.
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

// Family is an address family, with the number that nfnetlink has for it.
type Family uint8

// The families that overlays have.
const (
	IPv4 Family = unix.NFPROTO_IPV4
	IPv6 Family = unix.NFPROTO_IPV6
)

// maxAttempts is how often a Sync lists when others change the rules at the same time. A listing takes
// about a millisecond; who writes faster than that does not do so for long, and so a Sync waits a
// little longer from time to time, a quarter of a second in all.
const (
	maxAttempts = 20
	backOff     = time.Millisecond
)

// absent says that the kernel has no nftables. Every other error may pass.
const absent = firewall.AbsentError("kernel without nftables")

// errChanged: somebody else has changed the rules since they were listed.
var errChanged = errors.New("rules change faster than they can be read")

// Tables is the nftables of one network namespace. Its methods may be called from any goroutine.
type Tables struct {
	ns        *netlink.Namespace
	isOwnPort func(port uint32) bool // of whose sockets, beside its own, changes are no news; may be nil
	mu        sync.Mutex             // one exchange at a time
	conn      conn
}

// New gives access to the network namespace of the calling thread. It fails where the kernel has no
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

// retryable reports whether to list again helps at once: rules were changed meanwhile, or the kernel
// could not answer just then.
func retryable(err error) bool {
	for _, e := range []error{errChanged, netlink.ErrNoAnswer, unix.ENOBUFS, unix.EINTR, unix.EAGAIN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Close frees the socket. A Watch ends with its context.
func (t *Tables) Close() error { return errors.Join(t.conn.Close(), t.ns.Close()) }

// Port is what the kernel knows the socket by that changes are made by.
func (t *Tables) Port() uint32 { return t.conn.Port() }

// Sync makes the tables of one family hold, of the owner's rules, the wanted chains and nothing
// else. With none wanted nothing of the owner's is left, and with the last network's the table
// goes. It tells what it changed, in a few words each. An error of firewall.ErrBarred comes after
// everything else is done.
func (t *Tables) Sync(
	ctx context.Context, family Family, owner firewall.Owner, want []firewall.Chain,
) (changes []string, err error) {
	return t.syncChains(ctx, family, owner, wanted{own: want, accepts: want})
}

// SyncAccepts keeps guests only, where others' chains may drop what the overlay forwards although its
// rules are kept by iptables; except are chains that those already stand in, as "ip filter
// FORWARD". Our table holds nothing of the owner's then.
func (t *Tables) SyncAccepts(
	ctx context.Context, family Family, owner firewall.Owner, want []firewall.Chain, except ...string,
) (changes []string, err error) {
	return t.syncChains(ctx, family, owner, wanted{accepts: want, except: except})
}

// wanted is what is to be kept where.
type wanted struct {
	own     []firewall.Chain // in our table
	accepts []firewall.Chain // in the chains of others
	except  []string         // of these
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

// normalize gives rules the form in which the kernel's are read: a match on all addresses is none, and
// a rule that no address can meet is left out.
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

// bits is the length of the family's addresses.
func (f Family) bits() int {
	if f == IPv4 {
		return 32
	}
	return 128
}
