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
	stuck    chan struct{} // closed when a stuck door moves again; nil: it is not stuck
}

// stick has the door accept connections and take bytes, and pass nothing on.
func (d *door) stick() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stuck == nil {
		d.stuck = make(chan struct{})
	}
}

func (d *door) unstick() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stuck != nil {
		close(d.stuck)
		d.stuck = nil
	}
}

// moving waits while the door is stuck.
func (d *door) moving() {
	d.mu.Lock()
	stuck := d.stuck
	d.mu.Unlock()
	if stuck != nil {
		<-stuck
	}
}

// through is a writer behind the door.
type through struct {
	net.Conn
	door *door
}

func (t through) Write(p []byte) (int, error) {
	t.door.moving()
	return t.Conn.Write(p)
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
	d.unstick()
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
		io.Copy(through{in, d}, out)
	}()
	io.Copy(through{out, d}, in)
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
