package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// requestBuffer holds the answers to a chunk of requests (bytes).
	requestBuffer = 1 << 20
	// readSize is more than the kernel puts into one datagram of a dump
	// (32 KiB) or in any single message that is asked for here.
	readSize = 64 << 10
	// requestTimeout guards against a kernel that never answers; it answers
	// within the system call that asks.
	requestTimeout = 30 * time.Second
	// dumpAttempts bounds the attempts to read a list while nothing of it changes: where
	// containers come and go all the time, there may be no such moment.
	dumpAttempts = 3
	maxChunk     = 512
	// ackSize bounds from above what the kernel charges a receive buffer for
	// one error answer with its message (bytes).
	ackSize = 4096
)

// conn is a NETLINK_ROUTE socket. It stays in the network namespace that it was
// opened in.
type conn struct {
	mu   sync.Mutex // one exchange at a time
	file *os.File
	raw  syscall.RawConn
	port uint32 // the name the kernel knows the socket by (nl_pid)
	seq  uint32
	buf  []byte
	// chunk is how many error answers fit into the receive buffer.
	chunk int
}

// dial opens a socket in the namespace of the calling thread and subscribes it
// to groups.
func dial(receiveBuffer int, groups ...int) (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	c := &conn{buf: make([]byte, readSize)}
	if err := c.prepare(fd, receiveBuffer, groups); err != nil {
		unix.Close(fd)
		return nil, err
	}
	c.file = os.NewFile(uintptr(fd), "rtnetlink")
	if c.raw, err = c.file.SyscallConn(); err != nil {
		c.file.Close()
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	return c, nil
}

func (c *conn) prepare(fd, receiveBuffer int, groups []int) error {
	// Beyond net.core.rmem_max where we may, else as much as is allowed.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer); err != nil {
			return fmt.Errorf("size rtnetlink socket: %w", err)
		}
	}
	size, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		return fmt.Errorf("size rtnetlink socket: %w", err)
	}
	c.chunk = min(max(size/ackSize, 1), maxChunk)
	for _, opt := range []int{unix.NETLINK_CAP_ACK, unix.NETLINK_EXT_ACK, unix.NETLINK_GET_STRICT_CHK} {
		// Older kernels lack them: errors then say less, and lists have more
		// in them than was asked for, which their readers look out for.
		_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, opt, 1)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind rtnetlink socket: %w", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("name rtnetlink socket: %w", err)
	}
	c.port = name.(*unix.SockaddrNetlink).Pid
	for _, g := range groups {
		if err := subscribe(fd, g); err != nil {
			return err
		}
	}
	return nil
}

func subscribe(fd, group int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
		return fmt.Errorf("subscribe to rtnetlink group %d: %w", group, err)
	}
	return nil
}

func (c *conn) close() error { return c.file.Close() }

// interrupt makes a blocked receive return, once and for all.
func (c *conn) interrupt() {
	// It fails only on a closed socket, which does not block either.
	_ = c.file.SetReadDeadline(time.Unix(1, 0))
}

// receive gives the next datagram from the kernel. It is valid until the next
// call.
func (c *conn) receive() ([]byte, error) {
	for {
		var n int
		var from unix.Sockaddr
		var err error
		wait := c.raw.Read(func(fd uintptr) bool {
			for {
				n, from, err = unix.Recvfrom(int(fd), c.buf, unix.MSG_TRUNC)
				if err != unix.EINTR {
					return err != unix.EAGAIN
				}
			}
		})
		if err = cmp.Or(wait, err); err != nil {
			return nil, fmt.Errorf("receive from kernel: %w", err)
		}
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
			continue // another process; it has nothing to tell us
		}
		if n > len(c.buf) {
			return nil, fmt.Errorf("receive from kernel: message of %d bytes: %w", n, unix.EMSGSIZE)
		}
		return c.buf[:n], nil
	}
}

func (c *conn) send(b []byte) error {
	var err error
	wait := c.raw.Write(func(fd uintptr) bool {
		for {
			err = unix.Sendto(int(fd), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	if err = cmp.Or(wait, err); err != nil {
		return fmt.Errorf("send to kernel: %w", err)
	}
	return nil
}

// begin makes the socket ready for an exchange. What is left of an earlier one
// that was cut short is thrown away; not only to be rid of it: once the receive
// buffer has overflowed, the kernel tells of further losses only after it was
// empty.
func (c *conn) begin() error {
	err := c.raw.Control(func(fd uintptr) {
		for {
			_, _, err := unix.Recvfrom(int(fd), c.buf, unix.MSG_DONTWAIT)
			if err != nil && err != unix.EINTR && err != unix.ENOBUFS {
				return
			}
		}
	})
	if err != nil {
		return fmt.Errorf("use rtnetlink socket: %w", err)
	}
	if err := c.file.SetReadDeadline(time.Now().Add(requestTimeout)); err != nil {
		return fmt.Errorf("use rtnetlink socket: %w", err)
	}
	return nil
}

// get sends a request that has one message as its answer.
func (c *conn) get(r *requests) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.begin(); err != nil {
		return nil, err
	}
	c.seq++
	r.number(0, c.seq, unix.NLM_F_ACK, false)
	if err := c.send(r.b); err != nil {
		return nil, err
	}
	for {
		b, err := c.receive()
		if err != nil {
			return nil, err
		}
		for h, body := range messages(b) {
			switch {
			case h.Seq != c.seq:
			case h.Type == unix.NLMSG_ERROR:
				return nil, answer(h, body)
			default:
				return slices.Clone(body), nil
			}
		}
	}
}

// dump sends a request that has a list as its answer, and calls each with each
// message. When the list changed meanwhile, it is read again after a call of
// reset, but not without end. The last attempt counts in any case: such a list may
// have in it what is gone by now, and lack what came meanwhile, of which there are events.
// It has what stands all the time: the kernel goes on behind the last index, id or key that
// it told, wherever that is by now. Only its older releases, which go on behind so many
// entries of a hash bucket, may pass over a link or an address then; so nothing is
// concluded from the absence of a link in a list.
func (c *conn) dump(r *requests, reset func(), each func(body []byte)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for attempt := 1; ; attempt++ {
		reset()
		whole, err := c.dumpOnce(r, func(b []byte) bool { each(b); return true })
		if err != nil || whole || attempt == dumpAttempts {
			return err
		}
	}
}

// dumpOnce reads a list until each returns false. Then the socket is of no use any more, for
// the rest of the list is still to come.
func (c *conn) dumpOnce(r *requests, each func(body []byte) (more bool)) (whole bool, err error) {
	if err := c.begin(); err != nil {
		return false, err
	}
	c.seq++
	r.number(0, c.seq, unix.NLM_F_DUMP, true)
	if err := c.send(r.b); err != nil {
		return false, err
	}
	whole = true
	for {
		b, err := c.receive()
		if err != nil {
			return false, err
		}
		for h, body := range messages(b) {
			if h.Seq != c.seq {
				continue
			}
			if h.Flags&unix.NLM_F_DUMP_INTR != 0 {
				whole = false
			}
			switch h.Type {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				return whole, answer(h, body)
			default:
				if !each(body) {
					return false, nil
				}
			}
		}
	}
}

// batch sends requests, many at a time, and gives the kernel's answer to each;
// nil: done.
func (c *conn) batch(r *requests) []error {
	c.mu.Lock()
	defer c.mu.Unlock()
	errs := make([]error, r.len())
	for from := 0; from < r.len(); from += c.chunk {
		to := min(from+c.chunk, r.len())
		c.exchange(r, from, to, errs[from:to])
	}
	return errs
}

// exchange sends a chunk, the requests from, to. When answers were lost, it is
// sent again in halves: every request may be repeated.
func (c *conn) exchange(r *requests, from, to int, errs []error) {
	err := c.exchangeOnce(r, from, to, errs)
	if err == nil {
		return
	}
	if n := to - from; n > 1 && (errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EMSGSIZE)) {
		c.exchange(r, from, from+n/2, errs[:n/2])
		c.exchange(r, from+n/2, to, errs[n/2:])
		return
	}
	for i := range errs {
		errs[i] = err
	}
}

func (c *conn) exchangeOnce(r *requests, from, to int, errs []error) error {
	if err := c.begin(); err != nil {
		return err
	}
	// The kernel works in order and answers every failure; only the last
	// request asks for an answer to success, which says that all are done.
	first := c.seq + 1
	c.seq += uint32(to - from)
	if err := c.send(r.part(from, to, first)); err != nil {
		return err
	}
	clear(errs)
	for {
		b, err := c.receive()
		if err != nil {
			return err
		}
		for h, body := range messages(b) {
			i := h.Seq - first // wraps; an older answer gets out of range
			if h.Type != unix.NLMSG_ERROR || i >= uint32(len(errs)) {
				continue
			}
			errs[i] = answer(h, body)
			if h.Seq == c.seq {
				return nil
			}
		}
	}
}

// only sends a single request and gives the kernel's answer.
func (c *conn) only(r *requests) error { return c.batch(r)[0] }
