// Package netlink exchanges messages with the kernel (netlink(7)): sockets, requests, answers,
// lists, notifications, and the network namespace that they belong to.
//
// It knows how messages are framed and when the kernel has answered. It does not know what they
// mean: package kernel speaks rtnetlink with it and package nftables nfnetlink. It does not log,
// retry on its own account or decide anything.
//
// The kernel carries out a request within the system call that sends it. When that returns, the
// answer is in the receive buffer; of a list, the next part is made when the one before is read
// (net/netlink/af_netlink.c, netlink_unicast_kernel and netlink_recvmsg). Therefore:
//
//   - Nothing here waits for an answer. One that is not there was lost: [ErrNoAnswer].
//   - A refused request is always answered, with an [Error]. One that is done is answered only
//     if it asks for that (NLM_F_ACK), which the last one of a batch does; those before it are
//     done by then.
//   - ENOBUFS means that the receive buffer overflowed. A batch whose answers were lost is sent
//     again in halves, since every request of it may be repeated; a list ends with the error;
//     [Conn.Follow] returns, and its caller has to read what it may have missed.
//   - A list that changed while it was read (NLM_F_DUMP_INTR) is read again by [Conn.Dump], a few
//     times; [Conn.List] tells its caller.
//   - Only notifications are waited for, by [Conn.Receive], which [Conn.Follow] ends with its
//     context.
//
// vishvananda/netlink sends one request at a time and has no transactions, nexthop objects or
// nftables; package kernel takes the fixed headers of rtnetlink from its package nl.
//
// Generic netlink needs nothing more than a [Namespace.Dial] with NETLINK_GENERIC; the number of
// a family is the answer to a [Conn.Get] of CTRL_CMD_GETFAMILY.
package netlink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// RequestBuffer holds the answers to a batch of requests (bytes).
	RequestBuffer = 1 << 20
	// dumpAttempts bounds how often a list is read while it changes: on a host where containers
	// come and go all the time, there may be no moment without a change.
	dumpAttempts = 3
	maxBatch     = 512
	// ackSize bounds from above what the kernel charges a receive buffer for one error answer
	// with its message (bytes).
	ackSize = 4096
)

// ErrNoAnswer says that the answer to a request was lost.
var ErrNoAnswer = errors.New("no answer from the kernel")

// Conn is a netlink socket in the network namespace that it was opened in. Its methods may be
// called from any goroutine, but a Conn that receives notifications makes no requests.
type Conn struct {
	socket    *socket
	transport transport // socket, or what a test has instead

	mu    sync.Mutex // one exchange at a time
	seq   uint32
	batch int // requests whose answers fit into the receive buffer
}

// transport is what an exchange needs of a socket.
type transport interface {
	send(datagram []byte) error
	// pending returns the next datagram of the kernel, valid until the next call, or
	// unix.EAGAIN if there is none.
	pending() ([]byte, error)
}

// dial opens a socket in the network namespace of the calling thread.
func dial(protocol, receiveBuffer int) (*Conn, error) {
	s, size, err := openSocket(protocol, receiveBuffer)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return &Conn{socket: s, transport: s, batch: min(max(size/ackSize, 1), maxBatch)}, nil
}

// Close closes the socket. Whoever waits in Receive returns.
func (c *Conn) Close() error { return c.socket.file.Close() }

// Port returns the number by which the kernel knows the socket (nl_pid), as in the header of the
// notifications that its requests cause.
func (c *Conn) Port() uint32 { return c.socket.port }

// BatchSize returns how many requests Batch sends at a time.
func (c *Conn) BatchSize() int { return c.batch }

// Join subscribes to notifications of a group.
func (c *Conn) Join(group int) error {
	if err := c.socket.setOption(unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
		return fmt.Errorf("subscribe to netlink group %d: %w", group, err)
	}
	return nil
}

// SetFilter has the kernel drop the notifications that a filter does not pass, before they wake
// anybody up. With one that it does not take, all pass.
func (c *Conn) SetFilter(f *Filter) error {
	if err := c.socket.setFilter(f); err != nil {
		return fmt.Errorf("filter netlink notifications: %w", err)
	}
	return nil
}

// Receive waits for the next datagram of notifications. It is valid until the next call.
func (c *Conn) Receive() ([]byte, error) {
	b, err := c.socket.wait()
	if err != nil {
		return nil, fmt.Errorf("receive from kernel: %w", err)
	}
	return b, nil
}

// Pending is like Receive, but returns nothing instead of waiting.
func (c *Conn) Pending() ([]byte, error) {
	b, err := c.socket.pending()
	if err != nil && err != unix.EAGAIN {
		return nil, fmt.Errorf("receive from kernel: %w", err)
	}
	return b, nil
}

// Follow calls each with every datagram of notifications, until ctx ends or the socket fails,
// and returns why. After unix.ENOBUFS some were lost, and more may be followed.
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

// discardPending makes the socket ready for an exchange. What is left of an earlier one that was cut
// short is thrown away, and not only to be rid of it: the kernel begins no list before the one
// before was read to its end, and once the receive buffer has overflowed, it reports further
// losses only after the buffer was empty.
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

// receiveAnswer returns the next datagram of an answer.
func (c *Conn) receiveAnswer() ([]byte, error) {
	b, err := c.transport.pending()
	if err == unix.EAGAIN {
		return nil, ErrNoAnswer
	}
	if err != nil {
		return nil, fmt.Errorf("receive from kernel: %w", err)
	}
	return b, nil
}

func (c *Conn) send(b []byte) error {
	if err := c.transport.send(b); err != nil {
		return fmt.Errorf("send to kernel: %w", err)
	}
	return nil
}

// sendRequest sends the first request of r under a new number.
func (c *Conn) sendRequest(r *Requests, list bool) error {
	if err := c.discardPending(); err != nil {
		return err
	}
	c.seq++
	r.setFlag(0, unix.NLM_F_ACK, false)
	r.setFlag(0, unix.NLM_F_DUMP, list)
	return c.send(r.Datagram(0, 1, c.seq))
}

// Get sends a request that has one message as its answer, and returns that without its header.
func (c *Conn) Get(r *Requests) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.sendRequest(r, false); err != nil {
		return nil, err
	}
	for {
		b, err := c.receiveAnswer()
		if err != nil {
			return nil, err
		}
		for h, body := range Messages(b) {
			switch {
			case h.Seq != c.seq:
			case h.Type == unix.NLMSG_ERROR:
				return nil, Answer(h, body)
			default:
				return slices.Clone(body), nil
			}
		}
	}
}

// Dump sends a request that has a list as its answer, and calls each with each of its messages,
// without their headers. When the list changed meanwhile, it is read again after a call of
// reset, but not without end. The last attempt counts in any case: such a list may have in it
// what is gone by now, and lack what came meanwhile, of which there are notifications. It has
// what stood all the time: the kernel goes on behind the last index, id or key that it told,
// wherever that is by now. Only its older releases, which go on behind so many entries of a hash
// bucket, may pass over a link or an address then; so nothing may be concluded from the absence
// of a link in a list.
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
// end, and unchanged meanwhile. What is left of a long one costs the next request of this Conn
// the time of reading it.
func (c *Conn) List(r *Requests, each func(body []byte) (more bool)) (whole bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.sendRequest(r, true); err != nil {
		return false, err
	}
	whole = true
	for {
		b, err := c.receiveAnswer()
		if err != nil {
			return false, err
		}
		for h, body := range Messages(b) {
			if h.Seq != c.seq {
				continue
			}
			if h.Flags&unix.NLM_F_DUMP_INTR != 0 {
				whole = false
			}
			switch h.Type {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				return whole, Answer(h, body)
			default:
				if !each(body) {
					return false, nil
				}
			}
		}
	}
}

// Do sends a single request and returns the kernel's answer.
func (c *Conn) Do(r *Requests) error { return c.Batch(r)[0] }

// Batch sends requests, many at a time, and returns the kernel's answer to each; nil: done. It
// may send a request more than once.
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

// exchange sends the requests from, to. When answers were lost, or it is too much at a time, it
// sends them in halves.
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

// exchangeOnce sends the requests from, to as one datagram and notes the answers, which are in
// their order, up to that to the last one that asks for it.
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
	for {
		b, err := c.receiveAnswer()
		if err != nil {
			return err
		}
		for h, body := range Messages(b) {
			i := h.Seq - first // wraps; an older answer gets out of range
			if h.Type != unix.NLMSG_ERROR || i >= uint32(len(errs)) {
				continue
			}
			errs[i] = Answer(h, body)
			if int(i) == last-from {
				return nil
			}
		}
	}
}

// Transaction sends all requests as one datagram, to a subsystem that carries out all of them or
// none, and returns why it was none. At least one has to ask for an answer (NLM_F_ACK); that to
// the last such says that the transaction is done.
func (c *Conn) Transaction(r *Requests) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := r.Len() - 1
	for last > 0 && !r.hasFlag(last, unix.NLM_F_ACK) {
		last--
	}
	errs := make([]error, r.Len())
	err := c.exchangeOnce(r, 0, r.Len(), last, errs)
	for i, refused := range errs {
		if refused != nil {
			return fmt.Errorf("request %d of %d: %w", i+1, r.Len(), refused)
		}
	}
	return err
}
