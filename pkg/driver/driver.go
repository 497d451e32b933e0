// Package driver defines the interface of drivers for kernel objects, and combines several drivers:
// kernel for most objects, tunnel for those in this process. Only the Mux knows more than one
// driver.
//
// A driver makes no decisions: its callers define what is wanted, what is ours and when to retry.
// Invariant: the Mux passes each operation to the driver of its kind, in the given order.
package driver

import (
	"strings"
	"sync"

	"flanneld/pkg/dataplane"
)

// Driver reads, writes and watches the objects of some kinds.
type Driver interface {
	// Snapshot adds the objects in scope of the driver's kinds to a State, or corrects what
	// previous drivers have added. After an error the State must not be used. Later changes cause
	// events.
	Snapshot(dataplane.Scope, *dataplane.State) error

	// Apply executes operations in order and returns a result for each; nil means success. A failed
	// operation does not prevent the others, and leaves its object in a state that Snapshot does
	// not show as wanted. Put replaces an existing object with the same key. Deleting a missing
	// object is a success.
	Apply([]dataplane.Op) []error

	// Events returns a channel of event sets about changes that Apply has not caused. It holds one
	// set: a slow reader receives all events since its last read at once. There may be more events
	// than changes, but never fewer.
	Events() <-chan Event
}

// Event is a set of kinds of objects that may have changed and should be read again.
type Event uint

// Members of an event set.
const (
	Links       Event = 1 << iota // a link of the scope was created, changed or deleted
	Addrs                         // addresses of such a link
	FDB                           // FDB entries of such a link
	Neighs                        // neighbours of such a link
	Routes                        // main-table routes inside the network, and nexthops
	Uplink                        // an uplink or its addresses
	Candidates                    // inputs of the uplink choice: IPv4 default routes, addresses of other links
	DeviceTaken                   // another program uses the name of a device that is to be created
	Overflow                      // events were lost, anything may have changed
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

// Mailbox holds the events that were not received yet, as one set.
type Mailbox struct {
	c chan Event

	mu     sync.Mutex // guards sending
	closed bool
}

// NewMailbox returns an empty Mailbox.
func NewMailbox() *Mailbox { return &Mailbox{c: make(chan Event, 1)} }

// Report adds events. It does not block. After Close it does nothing.
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
	m.c <- e // does not block, because the mutex excludes other senders
}

// Events returns the channel of events, which Close closes.
func (m *Mailbox) Events() <-chan Event { return m.c }

// Close closes the channel of events.
func (m *Mailbox) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.closed = true
		close(m.c)
	}
}
