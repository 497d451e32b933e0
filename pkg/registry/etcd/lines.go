package etcd

import (
	"net"
	"sync"
)

// Lines are the connections that are open, so that all can be cut: with a
// local address that the host has lost, a connection is dead, and TCP is slow to
// notice. The zero value has none. Methods may be called by several goroutines.
type Lines struct {
	mu   sync.Mutex
	open map[*line]struct{}
}

type line struct {
	net.Conn
	of *Lines
}

// Add takes a connection just made, and gives it back as one that can be cut.
func (l *Lines) Add(c net.Conn) net.Conn {
	added := &line{c, l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		l.open = map[*line]struct{}{}
	}
	l.open[added] = struct{}{}
	return added
}

// Cut closes all connections. Whoever uses one gets an error.
func (l *Lines) Cut() {
	l.mu.Lock()
	open := l.open
	l.open = nil
	l.mu.Unlock()
	for c := range open {
		c.Conn.Close()
	}
}

// Close implements net.Conn.
func (c *line) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}
