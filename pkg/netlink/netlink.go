// Package netlink exchanges messages with the kernel (netlink(7)): sockets, requests, answers,
// lists, notifications, and the network namespace that they belong to.
//
// It handles the framing of messages and detects when the kernel has answered. It does not
// interpret them: package kernel uses it for rtnetlink and package nftables for nfnetlink. It does
// not log, and it makes no decisions.
//
// The kernel processes a request within the system call that sends it. When that returns, the
// answer is in the receive buffer; the next part of a list is generated when the previous one is
// read (net/netlink/af_netlink.c, netlink_unicast_kernel and netlink_recvmsg). Therefore:
//
//   - No function waits for an answer. If there is none, it was lost: [ErrNoAnswer].
//   - A failed request is always answered, with an [Error]. A successful one is answered only
//     if it asks for that (NLM_F_ACK), which the last request of a batch does; by then, those
//     before it are done.
//   - ENOBUFS means that the receive buffer has overflowed. A batch whose answers were lost is
//     sent again in halves, because all its requests may be repeated; a list ends with the error;
//     [Conn.Follow] returns, and its caller has to read the state that it may have missed.
//   - A list that changed while it was read (NLM_F_DUMP_INTR) is read again by [Conn.Dump], up
//     to a limit; [Conn.List] reports it to the caller.
//   - The only functions that wait are for notifications: [Conn.Receive], and [Conn.Follow],
//     which ends with its context.
//
// vishvananda/netlink sends one request at a time and has no transactions, nexthop objects or
// nftables; package kernel uses the fixed headers of rtnetlink from its package nl.
//
// Generic netlink needs nothing more than a [Namespace.Dial] with NETLINK_GENERIC; the number of a
// family is the answer to a [Conn.Get] of CTRL_CMD_GETFAMILY.
package netlink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// RequestBuffer is the size of a buffer for the answers to a batch of requests, in bytes.
	RequestBuffer = 1 << 20
	// dumpAttempts limits how often a list is read again because it changed: on a host where
	// containers start and stop constantly, there may be no moment without a change.
	dumpAttempts = 3
	maxBatch     = 512
	// ackSize is an upper limit of the space that an error answer with its message takes in a
	// receive buffer, in bytes, as the kernel accounts it.
	ackSize = 4096

	receive = "receive from kernel" // for errors
)

// ErrNoAnswer reports that the answer to a request was lost.
var ErrNoAnswer = errors.New("no answer from the kernel")

// Conn is a netlink socket in the network namespace that it was opened in. Its methods may be
// called from any goroutine. A Conn that receives notifications must not send requests.
type Conn struct {
	socket    *socket
	transport transport // socket, or a fake in tests

	mu    sync.Mutex // one exchange at a time
	seq   uint32
	batch int // requests whose answers fit into the receive buffer
}

// transport is the part of a socket that exchanges use.
type transport interface {
	send(datagram []byte) error
	// pending returns the next datagram from the kernel, valid until the next call, or unix.EAGAIN
	// if there is none.
	pending() ([]byte, error)
}

// Close closes the socket. It ends a waiting Receive.
func (c *Conn) Close() error { return c.socket.file.Close() }

// Port returns the socket's port (nl_pid), which is in the header of notifications that its
// requests cause.
func (c *Conn) Port() uint32 { return c.socket.port }

// BatchSize returns the number of requests that Batch sends at a time.
func (c *Conn) BatchSize() int { return c.batch }

// Join subscribes to notifications of a group.
func (c *Conn) Join(group int) error {
	err := c.socket.setOption(unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group)
	return failed(fmt.Sprint("subscribe to netlink group ", group), err)
}

// SetFilter makes the kernel drop notifications that the filter does not pass, before they wake up
// the process. If the kernel does not accept the filter, all pass.
func (c *Conn) SetFilter(f *Filter) error {
	return failed("filter netlink notifications", c.socket.setFilter(f))
}

// failed returns nil for nil, otherwise err with what has failed.
func failed(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Receive waits for the next datagram of notifications. It is valid until the next call.
func (c *Conn) Receive() ([]byte, error) {
	b, err := c.socket.wait()
	return b, failed(receive, err)
}

// Pending is like Receive, but returns nil instead of waiting.
func (c *Conn) Pending() ([]byte, error) {
	b, err := c.socket.pending()
	if err == unix.EAGAIN {
		err = nil
	}
	return b, failed(receive, err)
}

// Follow calls each with every datagram of notifications, until ctx ends or the socket fails, and
// returns the reason. After unix.ENOBUFS some were lost, and Follow may be called again.
func (c *Conn) Follow(ctx context.Context, each func(datagram []byte)) error {
	defer context.AfterFunc(ctx, c.socket.interrupt)()
	for {
		b, err := c.Receive()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		each(b)
	}
}

// discardPending prepares the socket for an exchange by reading what is left of an earlier one that
// was interrupted. That is necessary: the kernel starts no list before the previous one was read to
// its end, and once the receive buffer has overflowed, it reports further losses only after the
// buffer was empty.
func (c *Conn) discardPending() error {
	for {
		switch _, err := c.transport.pending(); err {
		case nil, unix.ENOBUFS, unix.EMSGSIZE:
		case unix.EAGAIN:
			return nil
		default:
			return fmt.Errorf("use netlink socket: %w", err)
		}
	}
}

// receiveAnswers calls each with the messages of an answer, until it returns true.
func (c *Conn) receiveAnswers(each func(h unix.NlMsghdr, body []byte) (last bool)) error {
	for {
		b, err := c.transport.pending()
		if err == unix.EAGAIN {
			return ErrNoAnswer
		}
		if err != nil {
			return failed(receive, err)
		}
		for h, body := range Messages(b) {
			if each(h, body) {
				return nil
			}
		}
	}
}

func (c *Conn) send(b []byte) error { return failed("send to kernel", c.transport.send(b)) }

// sendRequest sends the first request of r with a new sequence number.
func (c *Conn) sendRequest(r *Requests, list bool) error {
	if err := c.discardPending(); err != nil {
		return err
	}
	c.seq++
	r.setFlag(0, unix.NLM_F_ACK, false)
	r.setFlag(0, unix.NLM_F_DUMP, list)
	return c.send(r.Datagram(0, 1, c.seq))
}

// Get sends a request that is answered by one message, and returns that without its header.
func (c *Conn) Get(r *Requests) (answer []byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.sendRequest(r, false); err != nil {
		return nil, err
	}
	lost := c.receiveAnswers(func(h unix.NlMsghdr, body []byte) bool {
		switch {
		case h.Seq != c.seq:
			return false
		case h.Type == unix.NLMSG_ERROR:
			err = Answer(h, body)
		default:
			answer = slices.Clone(body)
		}
		return true
	})
	return answer, cmp.Or(lost, err)
}

// Dump sends a request that is answered by a list, and calls each with the body of each message. If
// the list changed meanwhile, Dump calls reset and reads it again, a limited number of times. The
// result of the last attempt is used in any case: it may contain objects that were deleted
// meanwhile, and lack new ones, but notifications are sent for both. It contains all objects that
// existed the whole time: the kernel continues after the last index, id or key that it has sent.
// Only older releases, which continue after a number of entries of a hash bucket, may skip a link
// or an address then; so nothing may be concluded from the absence of a link in a list.
func (c *Conn) Dump(r *Requests, reset func(), each func(body []byte)) error {
	for attempt := 1; ; attempt++ {
		reset()
		whole, err := c.List(r, func(b []byte) bool { each(b); return true })
		if err != nil || whole || attempt == dumpAttempts {
			return err
		}
	}
}

// List reads a list once, until each returns false, and reports whether it is whole: read to its
// end, and unchanged meanwhile. The rest of a long list costs the next request of this Conn the
// time to read it.
func (c *Conn) List(r *Requests, each func(body []byte) (more bool)) (whole bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.sendRequest(r, true); err != nil {
		return false, err
	}
	ended, changed := false, false
	lost := c.receiveAnswers(func(h unix.NlMsghdr, body []byte) (last bool) {
		if h.Seq != c.seq {
			return false
		}
		changed = changed || h.Flags&unix.NLM_F_DUMP_INTR != 0
		if ended = h.Type == unix.NLMSG_ERROR || h.Type == unix.NLMSG_DONE; ended {
			err = Answer(h, body)
		}
		return ended || !each(body)
	})
	return ended && !changed, cmp.Or(lost, err)
}

// Do sends a single request and returns its result.
func (c *Conn) Do(r *Requests) error { return c.Batch(r)[0] }

// Batch sends requests, many at a time, and returns the result of each; nil means success. It may
// send a request more than once.
func (c *Conn) Batch(r *Requests) []error {
	c.mu.Lock()
	defer c.mu.Unlock()
	errs := make([]error, r.Len())
	for from := 0; from < r.Len(); from += c.batch {
		to := min(from+c.batch, r.Len())
		c.exchange(r, from, to, errs[from:to])
	}
	return errs
}

// exchange sends the requests with index from <= i < to. If answers were lost, or the datagram is
// too large, it sends them in halves.
func (c *Conn) exchange(r *Requests, from, to int, errs []error) {
	for i := from; i < to; i++ {
		r.setFlag(i, unix.NLM_F_ACK, i == to-1)
	}
	err := c.exchangeOnce(r, from, to, to-1, errs)
	if err == nil {
		return
	}
	lost := errors.Is(err, ErrNoAnswer) || errors.Is(err, unix.ENOBUFS)
	if n := to - from; n > 1 && (lost || errors.Is(err, unix.EMSGSIZE)) {
		c.exchange(r, from, from+n/2, errs[:n/2])
		c.exchange(r, from+n/2, to, errs[n/2:])
		return
	}
	for i := range errs {
		errs[i] = err
	}
}

// exchangeOnce sends the requests with index from <= i < to in one datagram, and records the
// answers, which arrive in the order of the requests, up to that of the last one that asks for it.
func (c *Conn) exchangeOnce(r *Requests, from, to, last int, errs []error) error {
	if err := c.discardPending(); err != nil {
		return err
	}
	first := c.seq + 1
	c.seq += uint32(to - from)
	if err := c.send(r.Datagram(from, to, first)); err != nil {
		return err
	}
	clear(errs)
	return c.receiveAnswers(func(h unix.NlMsghdr, body []byte) bool {
		i := h.Seq - first // wraps around for older answers, which are then out of range
		if h.Type != unix.NLMSG_ERROR || i >= uint32(len(errs)) {
			return false
		}
		errs[i] = Answer(h, body)
		return int(i) == last-from
	})
}

// Transaction sends all requests in one datagram, to a subsystem that applies all of them or none,
// and returns why none was applied. The last request only ends the transaction and is not answered;
// the answer to the one before it means that the transaction is complete.
func (c *Conn) Transaction(r *Requests) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := r.Len() - 2
	r.setFlag(last, unix.NLM_F_ACK, true)
	errs := make([]error, r.Len())
	err := c.exchangeOnce(r, 0, r.Len(), last, errs)
	for i, refused := range errs {
		if refused != nil {
			return fmt.Errorf("request %d of %d: %w", i+1, r.Len(), refused)
		}
	}
	return err
}
