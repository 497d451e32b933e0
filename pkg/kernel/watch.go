package kernel

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/driver"
	"flanneld/pkg/netlink"
	"flanneld/pkg/pace"
)

// Interest is what a Watch reports on.
type Interest struct {
	Scope dataplane.Scope
	// Uplinks are links that are not ours and that something of ours depends
	// on: the external interface, and those that carry routes of ours. When one
	// goes down, or loses an address or its carrier, the kernel takes routes away
	// and tells of the cause only.
	Uplinks []string
}

func (i Interest) equal(j Interest) bool {
	return i.Scope.Network == j.Scope.Network && slices.Equal(i.Scope.Links, j.Scope.Links) && slices.Equal(i.Uplinks, j.Uplinks)
}

const (
	// watchBuffer takes the events of some ten thousand changes (bytes).
	watchBuffer = 8 << 20
	minRetry    = 100 * time.Millisecond
	maxRetry    = 10 * time.Second
)

// Watch is a subscription to the kernel's events (rtnetlink(7)).
//
// The kernel tells of causes, not of all that follows from them: a link that
// goes down loses its routes and neighbours, one that gets another MAC its
// neighbours, and the last address takes both along, without a word. So an event
// says when to read, never what to find.
type Watch struct {
	k      *Kernel
	buffer int // bytes
	out    *driver.Mailbox

	mu            sync.Mutex
	interest      Interest
	conn          *netlink.Conn
	links         map[int]device // by index: those of interest, and those with an address that had an event
	hasAddr       map[int]bool   // links that had an IPv4 address at some time
	filterLinks   []int          // indexes whose neighbour events pass the socket filter; nil: not known
	filterNetwork netip.Prefix   // to where route events pass it, then
	linksUnread   bool           // the links of interest could not be read
}

// Watch subscribes to link, address, route, nexthop and neighbour events, and
// reports those that concern interest until ctx ends. It is subscribed when it
// returns: a Snapshot taken later misses nothing. What this Kernel's own Apply did is
// not reported; the kernel says who did it, but for FDB entries, of which
// forwarding knows, and older ones but for links, whose events are all reported.
//
// After a loss of events or of the socket it subscribes anew and then reports
// Overflow.
func (k *Kernel) Watch(ctx context.Context, interest Interest) (*Watch, error) {
	w := &Watch{k: k, interest: interest, buffer: watchBuffer, out: driver.NewMailbox()}
	if err := w.subscribe(); err != nil {
		return nil, err
	}
	go w.run(ctx)
	return w, nil
}

// Events is where sets of events arrive. It holds one set: a slow reader finds
// in it all that happened since its last read. It is closed when the context of
// the Watch ends.
func (w *Watch) Events() <-chan driver.Event { return w.out.Events() }

// Focus changes what is reported on. A Snapshot taken later misses nothing. If a link cannot
// be read, Overflow is reported, and the next call tries again.
func (w *Watch) Focus(interest Interest) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.interest.equal(interest) && !w.linksUnread {
		return
	}
	w.interest = interest
	if w.linksUnread = w.readLinks() != nil; w.linksUnread {
		w.out.Report(driver.Overflow)
	}
	w.setFilter()
}

// readLinks asks for the links of interest by their names. Others are known by their events, if
// at all: a host with many containers has thousands, of which no list is ever whole.
func (w *Watch) readLinks() error {
	for _, names := range [][]string{w.interest.Scope.Links, w.interest.Uplinks} {
		for _, name := range names {
			switch d, err := w.k.byName(name); {
			case err == nil:
				w.links[d.index] = d
			case !isNoLink(err):
				return err
			}
		}
	}
	return nil
}

// subscribe opens the socket first and reads what there is then, so that no change
// falls between.
func (w *Watch) subscribe() error {
	c, err := w.dial()
	if err != nil {
		return fmt.Errorf("watch kernel: %w", err)
	}
	addrs, err := w.k.addrs()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.links, w.hasAddr = map[int]device{}, map[int]bool{}
	if err == nil {
		err = w.readLinks()
	}
	if err != nil {
		c.Close()
		return fmt.Errorf("watch kernel: %w", err)
	}
	for _, a := range addrs {
		w.hasAddr[a.index] = true
	}
	w.conn, w.filterLinks, w.linksUnread = c, nil, false
	w.setFilter()
	return nil
}

func (w *Watch) dial() (*netlink.Conn, error) {
	c, err := w.k.ns.Dial(unix.NETLINK_ROUTE, w.buffer)
	if err != nil {
		return nil, err
	}
	for _, h := range handlers {
		for _, group := range h.groups {
			if err := c.Join(group); err != nil && !h.optional {
				c.Close()
				return nil, err
			}
		}
	}
	return c, nil
}

func (w *Watch) run(ctx context.Context) {
	defer w.out.Close()
	losses := pace.Pace{First: minRetry, Most: maxRetry}
	for {
		w.mu.Lock()
		c := w.conn
		w.mu.Unlock()
		// Whatever ends it: after a loss, too, all is read again.
		_ = c.Follow(ctx, func(datagram []byte) {
			if e := w.events(datagram); e != 0 {
				w.out.Report(e)
			}
		})
		c.Close()
		if !w.resubscribe(ctx, &losses) {
			return
		}
		w.out.Report(driver.Overflow)
	}
}

// resubscribe tries until it succeeds or ctx ends. It waits first: what was too
// much for the socket may last a little longer.
func (w *Watch) resubscribe(ctx context.Context, losses *pace.Pace) bool {
	for {
		if pace.Sleep(ctx, max(minRetry, losses.Next(time.Now()))) != nil {
			return false
		}
		if w.subscribe() == nil {
			return true
		}
	}
}
