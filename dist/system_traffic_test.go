//go:build system

package dist_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"
)

// gigabyte is the size of a transfer during an event.
const gigabyte = 1 << 30

// traffic is the traffic of containers without events.
func (s *system) traffic() {
	s.scenario("ping across hosts", s.ping)
	s.scenario("TCP across hosts", func() string { return s.transfer(100 << 20).wait() })
	s.scenario("published port from the other host", s.published)
	s.scenario("container to the outside", s.toOutside)
}

// ping checks that each container reaches the other.
func (s *system) ping() string {
	s.Helper()
	for i, h := range s.hosts {
		other := s.hosts[1-i].docker
		ctx, cancel := context.WithTimeout(s.Context(), soon)
		defer cancel()
		if out, err := h.docker.exec(ctx, "ping -c 1 -W 5 "+other.addr); err != nil {
			s.Fatalf("%v\n%s", err, out)
		}
	}
	return ""
}

// A transfer is a running transfer of random bytes from a container to one on the other host.
type transfer struct {
	s      *system
	n      int64
	begun  time.Time
	result chan []string // SHA-256 of the data sent and received; then errors
}

// transfer starts a transfer.
func (s *system) transfer(n int64) *transfer {
	s.Helper()
	from, to := s.hosts[0].docker, s.hosts[1].docker
	ctx, cancel := context.WithTimeout(s.Context(), 2*soon)
	received, sent := make(chan []string, 1), make(chan []string, 1)
	run := func(c container, script string, result chan []string) {
		if out, err := c.exec(ctx, script); err != nil {
			result <- []string{"", err.Error()}
		} else {
			result <- []string{strings.TrimSpace(out)}
		}
	}
	go run(to, "/bin/transfer "+toolArg+" receive :5001", received)
	s.hosts[1].eventually("nsenter -n -t " + to.pid + " ss -Hltn sport = 5001 | grep -q .")
	t := &transfer{s: s, n: n, begun: time.Now(), result: make(chan []string, 1)}
	go run(from, fmt.Sprintf("/bin/transfer %s send %s:5001 %d", toolArg, to.addr, n), sent)
	go func() {
		defer cancel()
		a := <-sent
		if len(a) > 1 {
			cancel() // else the receiver would wait forever
		}
		b := <-received
		t.result <- append([]string{a[0], b[0]}, append(a[1:], b[1:]...)...)
	}()
	return t
}

// running fails the test unless the transfer is still running.
func (t *transfer) running() {
	t.s.Helper()
	select {
	case r := <-t.result:
		t.s.Fatalf("the transfer had ended before: %q", r)
	default:
	}
}

// wait waits for the end and fails the test unless the data are the same on both sides.
func (t *transfer) wait() string {
	t.s.Helper()
	r := <-t.result
	if len(r) > 2 || r[0] != r[1] || len(r[0]) < 64 {
		t.s.Fatalf("transfer: %q", r)
	}
	return fmt.Sprintf("%d MB, %.0f MB/s, SHA-256 equal", t.n>>20, float64(t.n)/1e6/time.Since(t.begun).Seconds())
}

// published checks that a container is reached at its host's address.
func (s *system) published() string {
	s.Helper()
	for i, h := range s.hosts {
		other := s.hosts[1-i]
		if name := h.eventually(fmt.Sprintf("timeout 5 busybox wget -qO- http://%s:8080/name", other.Addr.Addr())); name != other.Name {
			s.Errorf("%s answered %q", other.Name, name)
		}
	}
	return ""
}

// toOutside checks the address with which a container reaches the outside.
func (s *system) toOutside() string {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), soon)
	defer cancel()
	l, err := s.outside.NS.Listen(ctx, "tcp", net.JoinHostPort(s.outside.Addr.String(), "7000"))
	if err != nil {
		s.Fatal(err)
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var seen []string
	for _, h := range s.hosts {
		done := make(chan error, 1)
		go func() {
			_, err := h.docker.exec(ctx, fmt.Sprintf("nc -w 5 %s 7000 </dev/null", s.outside.Addr))
			done <- err
		}()
		conn, err := l.Accept()
		if err != nil {
			s.Fatal(err)
		}
		peer := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
		conn.Close()
		if err := <-done; err != nil {
			s.Fatal(err)
		}
		if peer.Addr().Unmap() != h.Addr.Addr() {
			s.Errorf("%s is seen as %s", h.Name, peer.Addr())
		}
		seen = append(seen, peer.Addr().Unmap().String())
	}
	return "seen as " + strings.Join(seen, ", ")
}
