package kernel

import (
	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/driver"
)

// handler reads and writes the objects of one kind. Each kind has a file, which registers its
// handler. Requests may be repeated, so they must be idempotent.
type handler struct {
	// read adds the objects of the kind that are in scope.
	read func(*reader) error

	// apply executes a single operation. If it is nil, operations are requests that are sent in
	// batches.
	apply func(*Kernel, dataplane.Op) error
	// request writes the request of an operation; index is the index of its link.
	request func(r *requests, op dataplane.Op, index int)
	// existsErrs are errors of a Put which mean that the object exists already.
	existsErrs []unix.Errno
	// retry, if not nil, tries another way after the kernel has refused a request.
	retry func(k *Kernel, op dataplane.Op, index int, refused error) error
	// applied, if not nil, is called after a successful operation. The FDB cache is locked from
	// before the request.
	applied func(k *Kernel, op dataplane.Op, index int)
	// limit, if not nil, returns the kernel limit that a Put has reached if it fails with the given
	// error, which alone is ambiguous.
	limit func(dataplane.Op) (unix.Errno, string)

	// groups are the multicast groups of rtnetlink(7) for the kind. event returns the events that a
	// Watch reports for a message of one of the types. optional is set if older kernels lack the
	// groups.
	groups   []int
	optional bool
	messages []uint16
	event    func(w *Watch, h unix.NlMsghdr, body []byte) driver.Event
}

// handlers and byMessage are filled by the init functions of the kinds' files.
var (
	handlers  = map[dataplane.Kind]*handler{}
	byMessage = map[uint16]*handler{}
)

func register(kind dataplane.Kind, h *handler) {
	handlers[kind] = h
	for _, m := range h.messages {
		byMessage[m] = h
	}
}

const replace = unix.NLM_F_CREATE | unix.NLM_F_REPLACE

// verb starts a request that puts or deletes an object.
func (r *requests) verb(v dataplane.Verb, put, del uint16) {
	if v == dataplane.Del {
		r.Begin(del, 0)
	} else {
		r.Begin(put, replace)
	}
}
