package etcd

import (
	"net"
	"sync"
)

// ConnTracker has the open connections, so that all can be closed: when the host has lost a local
// address, its connections are dead, and TCP takes long to notice. The zero value has none. Methods
// may be called by several goroutines.
type ConnTracker struct {
	mu   sync.Mutex
	open map[*trackedConn]struct{}
}

type trackedConn struct {
	net.Conn
	of *ConnTracker
}

// Add adds a new connection and returns it in a form that removes itself when it is closed.
func (t *ConnTracker) Add(c net.Conn) net.Conn {
	added := &trackedConn{c, t}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		t.open = map[*trackedConn]struct{}{}
	}
	t.open[added] = struct{}{}
	return added
}

// CloseAll closes all connections. Their users get an error.
func (t *ConnTracker) CloseAll() {
	t.mu.Lock()
	open := t.open
	t.open = nil
	t.mu.Unlock()
	for c := range open {
		c.Conn.Close()
	}
}

// Close implements net.Conn.
func (c *trackedConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}
