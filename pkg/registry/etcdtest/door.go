package etcdtest

import (
	"io"
	"net"
	"sync"
	"testing"
)

// door is the address of an etcd for its clients: connections are passed on
// to the server while it is open. An etcd that is closed in its own process
// leaves connections open, as one that is killed does not; closing the door
// does what the kernel would.
type door struct {
	address string // of clients
	server  string // etcd's own

	mu       sync.Mutex
	listener net.Listener // nil: closed
	conns    map[net.Conn]bool
}

func (d *door) open(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp", d.address)
	if err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.listener, d.conns = l, map[net.Conn]bool{}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go d.pass(in)
		}
	}()
}

func (d *door) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.listener == nil {
		return
	}
	d.listener.Close()
	d.listener = nil
	for c := range d.conns {
		c.Close()
	}
}

// pass serves one connection.
func (d *door) pass(in net.Conn) {
	defer in.Close()
	if !d.enter(in) {
		return
	}
	defer d.leave(in)
	out, err := net.Dial("tcp", d.server)
	if err != nil {
		return
	}
	defer out.Close()
	go func() {
		defer in.Close()
		io.Copy(in, out)
	}()
	io.Copy(out, in)
}

func (d *door) enter(c net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.listener == nil {
		return false
	}
	d.conns[c] = true
	return true
}

func (d *door) leave(c net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.conns, c)
}
