package main

import (
	"context"
	"flanneld/pkg/lab/relay"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// evilFor is how long the proxy before etcd lets everything pass, and how long it then
	// answers itself.
	evilFor = 3 * time.Second
	// evilPerSecond is how often a second all daemons together may ask and connect
	// while nonsense is answered.
	evilPerSecond = 20
)

// An answer is sent for all requests during a period, or for watches only, while the config can be
// read, there are no leases, and everything else is refused.
type answer struct {
	status      int
	media, body string
	watches     bool
	grpc        string // status in the trailer
}

const (
	asJSON = "application/json"
	asGRPC = "application/grpc"
)

// falseAnswers are answers of another server in etcd's place, one kind at a time. The first ones
// are the most similar to etcd's.
var falseAnswers = []answer{
	{200, asJSON, `{"action":"set","node":{"key":"/coreos.com/network/subnets/10.42.99.0-24","value":"x","modifiedIndex":9000000,"createdIndex":9}}`, true, ""},
	{200, asGRPC, "\x00\x00\x00\x00\x00", false, "0"},
	{400, asJSON, `{"errorCode":401,"message":"The event in requested index is outdated and cleared","cause":"x","index":9000000}`, true, ""},
	{200, asGRPC, "", false, "11"},
	{200, asJSON, ``, false, ""},
	{200, asGRPC, "\x00\x00\x00\x00\x02xx", false, "14"},
	{200, asJSON, `{`, false, ""},
	{200, asJSON, `{"action":"get","node":null}`, false, ""},
	{200, "text/html", `<html>please log in</html>`, false, ""},
	{404, "text/plain", `404 page not found`, false, ""},
	{401, asJSON, `{"message":"Insufficient credentials"}`, false, ""},
	{500, asJSON, `{"errorCode":300,"message":"Raft Internal Error","index":1}`, false, ""},
	{503, "text/plain", `no leader`, false, ""},
	{307, "text/plain", ``, false, ""},
}

// A proxy stands before etcd: one among the endpoints of most hosts, and the only one of
// the last. It is a net.Listener for the connections that it answers itself.
type proxy struct {
	net.Listener
	etcd  func(context.Context) (net.Conn, error)
	evil  atomic.Bool
	kind  atomic.Int64 // of nonsense
	asked atomic.Int64 // requests and connections while evil
	taken chan net.Conn

	mu   sync.Mutex
	open map[net.Conn]bool
}

func (s *siege) startProxy() *proxy {
	s.t.Helper()
	l, err := s.stranger.NS.Listen(s.ctx, "tcp", netip.AddrPortFrom(s.stranger.Addr, 2379).String())
	s.must(err)
	p := &proxy{Listener: l, taken: make(chan net.Conn), open: map[net.Conn]bool{}}
	p.etcd = func(ctx context.Context) (net.Conn, error) {
		return s.Fabric.DialContext(ctx, "tcp", s.Etcd.Endpoint()[len("http://"):])
	}
	server := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(p.answer)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	go p.accept(s.ctx)
	go server.Serve(p)
	s.t.Cleanup(func() {
		l.Close()
		server.Close()
		p.cut()
	})
	return p
}

// accept takes connections from the daemons until the listener is closed.
func (p *proxy) accept(ctx context.Context) {
	defer close(p.taken)
	for {
		conn, err := p.Listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		p.open[conn] = true
		p.mu.Unlock()
		if p.evil.Load() {
			p.asked.Add(1)
			p.taken <- conn
		} else {
			go p.pass(ctx, conn)
		}
	}
}

// Accept implements net.Listener: it returns the connections that the proxy answers itself.
func (p *proxy) Accept() (net.Conn, error) {
	if conn, ok := <-p.taken; ok {
		return conn, nil
	}
	return nil, net.ErrClosed
}

func (p *proxy) pass(ctx context.Context, near net.Conn) {
	defer near.Close()
	far, err := p.etcd(ctx)
	if err != nil {
		return
	}
	relay.Copy(near, far)
}

// cut ends all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.open {
		conn.Close()
	}
	clear(p.open)
}

func (p *proxy) answer(w http.ResponseWriter, r *http.Request) {
	p.asked.Add(1)
	a := falseAnswers[int(p.kind.Load())%len(falseAnswers)]
	switch {
	case !a.watches || r.URL.Query().Get("wait") == "true":
	case strings.HasSuffix(r.URL.Path, "/config"):
		a.status, a.body = 200, `{"action":"get","node":{"key":"/coreos.com/network/config","value":"{}","modifiedIndex":1,"createdIndex":1}}`
	case strings.HasSuffix(r.URL.Path, "/subnets"):
		a.status, a.body = 200, `{"action":"get","node":{"key":"/coreos.com/network/subnets","dir":true}}`
	default:
		a.status, a.body = 500, `{"errorCode":300,"message":"Raft Internal Error","index":1}`
	}
	w.Header().Set("Content-Type", a.media)
	w.Header().Set("X-Etcd-Index", "9000000")
	w.Header().Set("Location", r.URL.String())
	if a.grpc != "" {
		w.Header().Set("Trailer", "Grpc-Status")
	}
	w.WriteHeader(a.status)
	w.Write([]byte(a.body))
	if a.grpc != "" {
		w.Header().Set("Grpc-Status", a.grpc)
	}
}

// evilProxy has the proxy answer nonsense, as fast as it is asked, half of the time.
func (s *siege) evilProxy(ctx context.Context, n *atomic.Int64) error {
	defer func() {
		s.proxy.evil.Store(false)
		s.proxy.cut()
	}()
	for {
		s.proxy.evil.Store(true)
		s.proxy.cut()
		before, begun := s.proxy.asked.Load(), time.Now()
		stopped := pauseFor(ctx, evilFor)
		asked := s.proxy.asked.Load() - before
		n.Add(asked)
		if rate := float64(asked) / time.Since(begun).Seconds(); !stopped && rate > evilPerSecond {
			return fmt.Errorf("asked %.1f times a second for %+v", rate, falseAnswers[int(s.proxy.kind.Load())%len(falseAnswers)])
		}
		s.proxy.evil.Store(false)
		s.proxy.cut()
		if stopped || pauseFor(ctx, evilFor) {
			return nil
		}
		s.proxy.kind.Add(1)
	}
}

// pauseFor waits, and reports whether ctx has ended.
func pauseFor(ctx context.Context, d time.Duration) (ended bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return true
	case <-timer.C:
		return false
	}
}
