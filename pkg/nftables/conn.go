package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// buffer holds the answers to a request, and the news of some thousand
	// transactions (bytes).
	buffer = 1 << 20
	// readSize is more than the kernel puts into one datagram of a dump
	// (32 KiB) and more than any of its single messages that are asked for.
	readSize = 64 << 10
)

// conn is a NETLINK_NETFILTER socket. It stays in the network namespace that it
// was opened in. The kernel has answered a request when the system call that
// sent it returns; only news have to be waited for.
type conn struct {
	file *os.File
	raw  syscall.RawConn
	port uint32 // the name the kernel knows the socket by (nl_pid)
	seq  uint32
	buf  []byte
}

// dial opens a socket in the namespace of the calling thread and subscribes it
// to groups.
func dial(groups ...int) (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open nfnetlink socket: %w", err)
	}
	c := &conn{buf: make([]byte, readSize)}
	if err := c.prepare(fd, groups); err != nil {
		unix.Close(fd)
		return nil, err
	}
	c.file = os.NewFile(uintptr(fd), "nfnetlink")
	if c.raw, err = c.file.SyscallConn(); err != nil {
		c.file.Close()
		return nil, fmt.Errorf("open nfnetlink socket: %w", err)
	}
	return c, nil
}

func (c *conn) prepare(fd int, groups []int) error {
	for _, o := range []struct{ force, option int }{
		{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF},
	} {
		// Beyond net.core.rmem_max where we may, else as much as is allowed.
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.force, buffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.option, buffer)
		}
	}
	// Errors come without the message that they are about; older kernels send
	// it all the same.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind nfnetlink socket: %w", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("name nfnetlink socket: %w", err)
	}
	if a, ok := name.(*unix.SockaddrNetlink); ok {
		c.port = a.Pid
	}
	if len(groups) > 0 {
		onlyGenerations(fd)
	}
	for _, g := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			return fmt.Errorf("subscribe to nfnetlink group %d: %w", g, err)
		}
	}
	return nil
}

func (c *conn) close() error { return c.file.Close() }

// interrupt makes a wait return, once and for all.
func (c *conn) interrupt() {
	// It fails only on a closed socket, which does not block either.
	_ = c.file.SetReadDeadline(time.Unix(1, 0))
}

// receive gives the next datagram from the kernel, if there is one. It is valid
// until the next call.
func (c *conn) receive(fd uintptr) ([]byte, error) {
	for {
		n, from, err := unix.Recvfrom(int(fd), c.buf, unix.MSG_TRUNC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
			continue // another process; it has nothing to tell us
		}
		if n > len(c.buf) {
			return nil, fmt.Errorf("message of %d bytes: %w", n, unix.EMSGSIZE)
		}
		return c.buf[:n], nil
	}
}

// wait gives the next datagram, however long that takes.
func (c *conn) wait() (b []byte, err error) {
	waiting := c.raw.Read(func(fd uintptr) bool {
		b, err = c.receive(fd)
		return err != unix.EAGAIN
	})
	if waiting != nil {
		return nil, waiting
	}
	return b, err
}

// exchange sends requests and calls each with each message of the answer, until
// there is an error.
func (c *conn) exchange(requests []byte, each func(header, []byte) error) error {
	var failed error
	err := c.raw.Control(func(fd uintptr) {
		// What is left of an answer that was not read to its end would keep the
		// kernel from beginning another.
		for {
			if _, err := c.receive(fd); err != nil && err != unix.ENOBUFS && !errors.Is(err, unix.EMSGSIZE) {
				break
			}
		}
		err := unix.EINTR
		for err == unix.EINTR {
			err, _ = unix.Sendto(int(fd), requests, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}).(unix.Errno)
		}
		if err != 0 {
			failed = fmt.Errorf("send to kernel: %w", err)
			return
		}
		for failed == nil {
			b, err := c.receive(fd)
			if err == unix.EAGAIN {
				return
			}
			if err != nil {
				failed = fmt.Errorf("receive from kernel: %w", err)
				return
			}
			for h, body := range messages(b) {
				if failed = each(h, body); failed != nil {
					return
				}
			}
		}
	})
	return errors.Join(err, failed)
}

// errSilent cannot happen: the kernel answers everything.
var errSilent = errors.New("no answer from the kernel")

// ask sends a request and calls each with each message of the answer, which is
// as of one moment.
func (c *conn) ask(m message, each func(family Family, attributes []byte)) error {
	c.seq++
	complete := false
	err := c.exchange(m.appendTo(nil, c.seq), func(h header, body []byte) error {
		if h.seq != c.seq {
			return nil
		}
		if h.flags&unix.NLM_F_DUMP_INTR != 0 {
			return errChanged
		}
		if h.kind == unix.NLMSG_ERROR || h.kind == unix.NLMSG_DONE {
			complete = true
			return failure(h, body)
		}
		complete = complete || h.flags&unix.NLM_F_MULTI == 0
		each(afterGen(body))
		return nil
	})
	if err == nil && !complete {
		err = errSilent
	}
	return err
}

// generation is the number of the present rules; each transaction of anybody
// changes it.
func (c *conn) generation() (id uint32, err error) {
	err = c.ask(message{kind: unix.NFT_MSG_GETGEN}, func(_ Family, b []byte) {
		id = read(b)[unix.NFTA_GEN_ID].u32()
	})
	if err != nil {
		return 0, fmt.Errorf("read generation: %w", err)
	}
	return id, nil
}

// commit carries out all messages or none, if the rules are still those of the
// generation; 0 is any.
func (c *conn) commit(generation uint32, ms []message) error {
	first := c.seq + 1
	next := func() uint32 { c.seq++; return c.seq }
	var valid attrs
	if generation != 0 {
		valid = valid.u32(unix.NFNL_BATCH_GENID, generation)
	}
	b := appendMessage(nil, unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, next(), 0, unix.NFNL_SUBSYS_NFTABLES, valid)
	for i, m := range ms {
		// Failures are told anyhow; of success we want to hear once.
		if i == len(ms)-1 {
			m.flags |= unix.NLM_F_ACK
		}
		b = m.appendTo(b, next())
	}
	last := c.seq
	b = appendMessage(b, unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, next(), 0, unix.NFNL_SUBSYS_NFTABLES, nil)

	done := false
	err := c.exchange(b, func(h header, body []byte) error {
		at := h.seq - first // 0 is the transaction itself
		if h.kind != unix.NLMSG_ERROR || at > c.seq-first {
			return nil
		}
		done = done || h.seq == last
		if err := failure(h, body); err != nil {
			return fmt.Errorf("request %d of %d: %w", at, len(ms), err)
		}
		return nil
	})
	if err == nil && !done {
		err = errSilent
	}
	if err != nil {
		err = fmt.Errorf("write rules: %w", c.reason(err, generation))
	}
	return err
}

// reason makes errChanged of a failure that comes of others' changes. Kernels
// before 4.16 do not compare generations, but then something is missing, or there
// already, or in use.
func (c *conn) reason(err error, generation uint32) error {
	changed := errors.Is(err, unix.ERESTART)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) {
		now, unknown := c.generation()
		changed = unknown == nil && now != generation
	}
	if changed {
		return fmt.Errorf("%w (%w)", errChanged, err)
	}
	return err
}

// failure reads struct nlmsgerr, or the error number at the end of a dump.
func failure(h header, body []byte) error {
	if len(body) < 4 {
		if h.kind == unix.NLMSG_DONE {
			return nil
		}
		return unix.EBADMSG
	}
	if n := int32(binary.NativeEndian.Uint32(body)); n < 0 {
		return unix.Errno(-n)
	}
	return nil
}
