package etcdtest

import (
	"net"
	"sync"
	"testing"

	"flanneld/pkg/lab/relay"
)

// A front is the address of an etcd for its clients. While it is open, it forwards connections to
// the server. An etcd that is stopped within its process leaves connections open; closing the front
// closes them, as the kernel does for a killed process.
type front struct {
	address string // address for clients
	server  string // address of etcd

	mu       sync.Mutex
	listener net.Listener // nil: closed
	conns    map[net.Conn]bool
	stalled  chan struct{} // closed at the end of a stall; nil: not stalled
}

func (f *front) open(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp", f.address)
	if err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.listener, f.conns = l, map[net.Conn]bool{}
	go relay.Serve(frontListener{l, f}, func() (net.Conn, error) {
		c, err := net.Dial("tcp", f.server)
		return conn{c, f}, err
	})
}

func (f *front) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stalled != nil {
		close(f.stalled)
		f.stalled = nil
	}
	if f.listener == nil {
		return
	}
	f.listener.Close()
	f.listener = nil
	for c := range f.conns {
		c.Close()
	}
}

// stall makes the front accept connections and data, and forward nothing until it is closed.
func (f *front) stall() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stalled == nil {
		f.stalled = make(chan struct{})
	}
}

// wait waits while the front is stalled.
func (f *front) wait() {
	f.mu.Lock()
	stalled := f.stalled
	f.mu.Unlock()
	if stalled != nil {
		<-stalled
	}
}

// A frontListener returns connections that end with the front.
type frontListener struct {
	net.Listener
	front *front
}

func (l frontListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.front.mu.Lock()
	defer l.front.mu.Unlock()
	if l.front.listener != l.Listener { // closed in the meantime
		c.Close()
		return nil, net.ErrClosed
	}
	l.front.conns[c] = true
	return conn{c, l.front}, nil
}

// A conn is a connection at either side of a front.
type conn struct {
	net.Conn
	front *front
}

func (c conn) Write(p []byte) (int, error) {
	c.front.wait()
	return c.Conn.Write(p)
}

func (c conn) Close() error {
	c.front.mu.Lock()
	delete(c.front.conns, c.Conn)
	c.front.mu.Unlock()
	return c.Conn.Close()
}
