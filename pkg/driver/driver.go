// Package driver says what a driver of kernel objects can do, and makes one of several: kernel
// has most objects, tunnel what is in this process. Only the Mux knows more than one driver.
//
// A driver decides nothing: what is wanted, what is ours and when to try again is known above
// it. Invariant: the Mux gives each operation to the driver of its kind, in the order in which it
// got them.
package driver

import (
	"strings"
	"sync"

	"flanneld/pkg/dataplane"
)

// Driver reads, writes and watches the objects of some kinds.
type Driver interface {
	// Snapshot adds to a State what there is in scope of the driver's kinds, or corrects what
	// those before it have read. After an error the State is of no use. What changes later is
	// an event.
	Snapshot(dataplane.Scope, *dataplane.State) error

	// Apply carries out operations in order, as far as possible, and returns one result for
	// each; nil: done. One that fails does not keep the others from being tried, and leaves its
	// object as it was, so that a Snapshot does not show it as wanted. Put replaces whatever
	// stands under the same key; to delete what is not there is success.
	Apply([]dataplane.Op) []error

	// Events is where sets of events arrive that others than Apply have caused. It holds one
	// set: a slow reader finds in it all that happened since its last read. There may be more
	// events than changes, never fewer.
	Events() <-chan Event
}

// Event is a set of things that may have changed and should be read again.
type Event uint

// Members of a set of events.
const (
	Links       Event = 1 << iota // a link of the scope: made, changed, deleted
	Addrs                         // addresses of such a link
	FDB                           // its forwarding entries
	Neighs                        // its neighbours
	Routes                        // main-table routes inside the network, and nexthops
	Uplink                        // an uplink or its addresses
	Candidates                    // what another uplink could be chosen by: IPv4 default routes, other links' addresses
	DeviceTaken                   // another program has a device that one of ours was to be
	Overflow                      // events were lost: anything may have changed
)

func (e Event) String() string {
	var words []string
	for i, w := range []string{"links", "addrs", "fdb", "neighs", "routes", "uplink", "candidates", "taken", "overflow"} {
		if e&(1<<i) != 0 {
			words = append(words, w)
		}
	}
	return strings.Join(words, "+")
}

// Mailbox holds, as one set, the events that nobody has fetched yet.
type Mailbox struct {
	c chan Event

	mu     sync.Mutex // for those who send
	closed bool
}

// NewMailbox returns an empty one.
func NewMailbox() *Mailbox { return &Mailbox{c: make(chan Event, 1)} }

// Report adds events. It does not block. After Close nothing is added.
func (m *Mailbox) Report(e Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	select {
	case before := <-m.c:
		e |= before
	default:
	}
	m.c <- e // there is room: nobody else sends meanwhile
}

// Events is where the events are fetched. It is closed by Close.
func (m *Mailbox) Events() <-chan Event { return m.c }

// Close says that there will be no more events.
func (m *Mailbox) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.closed = true
		close(m.c)
	}
}
