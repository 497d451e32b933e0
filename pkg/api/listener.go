package api

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/time/rate"
)

const (
	// maxConns limits the number of connections, of the 1024 descriptors that a process often has.
	// A further one replaces the oldest of the address that has most, so that an address with many
	// connections does not lock out others.
	maxConns = 128
	// Connections beyond acceptBurst, which is more than the kernel's queue, are accepted at
	// acceptRate per second, so that they take a few percent of a processor.
	acceptBurst = 16384
	acceptRate  = 2000
)

// listener limits the number of its connections.
type listener struct {
	net.Listener
	accepts *rate.Limiter

	mu   sync.Mutex
	open []*conn // the oldest first
	from map[netip.Addr]int
}

func newListener(l net.Listener) *listener {
	return &listener{Listener: l, accepts: rate.NewLimiter(acceptRate, acceptBurst), from: map[netip.Addr]int{}}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	_ = l.accepts.Wait(context.Background()) // for one connection: at most 1/acceptRate
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	added := &conn{Conn: c, listener: l}
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		added.from = a.AddrPort().Addr().Unmap()
	}
	if victim := l.add(added); victim != nil {
		victim.Conn.Close()
	}
	return added, nil
}

// add adds a connection. If there are too many, it removes and returns another one.
func (l *listener) add(c *conn) (victim *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = append(l.open, c)
	l.from[c.from]++
	if len(l.open) <= maxConns {
		return nil
	}
	for _, o := range l.open {
		if victim == nil || l.from[o.from] > l.from[victim.from] {
			victim = o
		}
	}
	l.remove(victim)
	return victim
}

// remove removes a connection. The caller holds the lock.
func (l *listener) remove(c *conn) {
	i := slices.Index(l.open, c)
	if i < 0 {
		return
	}
	l.open = slices.Delete(l.open, i, i+1)
	if l.from[c.from]--; l.from[c.from] == 0 {
		delete(l.from, c.from)
	}
}

// conn is a connection that its listener counts.
type conn struct {
	net.Conn
	listener *listener
	from     netip.Addr
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.listener.mu.Lock()
	c.listener.remove(c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}
