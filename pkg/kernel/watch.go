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

const (
	// watchBuffer has room for the events of about ten thousand changes, in bytes.
	watchBuffer = 8 << 20
	minRetry    = 100 * time.Millisecond
	maxRetry    = 10 * time.Second
)

// Watch is a subscription to the kernel's events (rtnetlink(7)).
//
// The kernel reports causes, not all their consequences: a link that goes down loses its routes and
// neighbours, a link whose MAC changes loses its neighbours, and a link that loses its last address
// loses both, without further events. So an event shows when to read, not what has changed.
type Watch struct {
	k      *Kernel
	buffer int // bytes
	out    *driver.Mailbox

	mu             sync.Mutex
	interest       dataplane.Scope
	conn           *netlink.Conn
	links          map[int]device // by index: links of interest, and links with an address that had an event
	hasAddr        map[int]bool   // links that have had an IPv4 address
	filterLinks    []int          // indexes of links whose neighbour events pass the socket filter; nil if unknown
	filterNetworks []netip.Prefix // networks whose route events pass the socket filter
	linksUnread    bool           // reading the links of interest has failed
}

// Watch subscribes to link, address, route, nexthop and neighbour events, and reports those of
// interest until ctx ends. It is subscribed when it returns, so a later Snapshot misses nothing.
// Changes by this Kernel's own Apply are not reported. The kernel reports who made a change, except
// for FDB entries, for which fdbCache is used, and except that older kernels do so for links only,
// and all other events are reported.
//
// After a loss of events or of the socket it subscribes again and reports Overflow.
func (k *Kernel) Watch(ctx context.Context, interest dataplane.Scope) (*Watch, error) {
	w := &Watch{k: k, interest: interest, buffer: watchBuffer, out: driver.NewMailbox()}
	if err := w.subscribe(); err != nil {
		return nil, err
	}
	go w.run(ctx)
	return w, nil
}

// Events returns the channel of event sets. It holds one set: a slow reader receives all events
// since its last read at once. It is closed when the context of the Watch ends.
func (w *Watch) Events() <-chan driver.Event { return w.out.Events() }

// Focus sets the interest. A later Snapshot misses nothing. If a link cannot be read, Overflow is
// reported, and the next call tries again.
func (w *Watch) Focus(interest dataplane.Scope) {
	w.mu.Lock()
	defer w.mu.Unlock()
	same := slices.Equal(interest.Networks, w.interest.Networks) && slices.Equal(interest.Links, w.interest.Links) &&
		slices.Equal(interest.Underlay, w.interest.Underlay)
	if same && !w.linksUnread {
		return
	}
	w.interest = interest
	if w.linksUnread = w.readLinks() != nil; w.linksUnread {
		w.out.Report(driver.Overflow)
	}
	w.setFilter()
}

// readLinks reads the links of interest by name. Other links are known only from their events: a
// host with many containers has thousands, and no list of them is ever complete.
func (w *Watch) readLinks() error {
	found, err := w.k.existing(slices.Concat(w.interest.Links, w.interest.Underlay))
	for _, d := range found {
		w.links[d.index] = d
	}
	return err
}

// subscribe opens the socket before it reads the present state, so that no change is missed.
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
	losses := pace.Pace{Initial: minRetry, Max: maxRetry}
	for {
		w.mu.Lock()
		c := w.conn
		w.mu.Unlock()
		// The reason does not matter: everything is read again.
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

// resubscribe retries until it succeeds or ctx ends. It waits before the first attempt, because the
// burst that has overflowed the socket may not be over.
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
