package kernel

import (
	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/driver"
)

// handler is how the objects of one kind are read and written. Each kind has a file, which
// registers its handler. Requests may be repeated: what stands already is replaced by the same.
type handler struct {
	// read adds to a reading what there is of the kind in scope.
	read func(*reader) error

	// apply carries out an operation by itself. nil: operations are requests, of which many are
	// sent at a time.
	apply func(*Kernel, dataplane.Op) error
	// request writes an operation; index is that of its link.
	request func(r *requests, op dataplane.Op, index int)
	// stands are the errors that say that what was to be put is there already.
	existsErrs []unix.Errno
	// again, if there is one, tries in another way what the kernel has refused.
	retry func(k *Kernel, op dataplane.Op, index int, refused error) error
	// done, if there is one, is told what was done. What is known of forwarding is locked from
	// before the request.
	applied func(k *Kernel, op dataplane.Op, index int)
	// limit, if there is one, says which limit of the kernel a Put has reached, where the error
	// number alone leaves that open; "" if none.
	limit func(op dataplane.Op, refused error) string

	// groups are those of rtnetlink(7) that tell of changes, by messages of which event returns
	// what a Watch is to report. young says that older kernels have no such groups.
	groups   []int
	optional bool
	messages []uint16
	event    func(w *Watch, h unix.NlMsghdr, body []byte) driver.Event
}

// handlers, and those with an event by their messages, are filled by the init function of each
// kind's file.
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

// verb begins a request that puts or deletes an object.
func (r *requests) verb(v dataplane.Verb, put, del uint16) {
	if v == dataplane.Del {
		r.Begin(del, 0)
	} else {
		r.Begin(put, replace)
	}
}
