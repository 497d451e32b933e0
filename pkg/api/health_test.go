package api

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/condition"
)

// startHealth has the health port answer at an address, and returns its port.
func startHealth(t *testing.T, ip string) (port string) {
	t.Helper()
	return listen(t, NewState(condition.NewList(slog.New(slog.DiscardHandler))), ip)
}

func listen(t *testing.T, s *State, ip string) (port string) {
	t.Helper()
	free, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	addr := free.Addr().(*net.TCPAddr).AddrPort()
	server, err := s.ListenHealth(netip.AddrPortFrom(netip.MustParseAddr(ip), addr.Port()), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return fmt.Sprint(addr.Port())
}

func TestHealthPortBindsWhereTold(t *testing.T) {
	for _, f := range []struct {
		ip, reached, refused string
	}{
		{"0.0.0.0", "127.0.0.1", "::1"},
		{"127.0.0.1", "127.0.0.1", "127.0.0.2"},
		{"::1", "::1", "127.0.0.1"},
		{"::", "127.0.0.1", ""},
	} {
		port := startHealth(t, f.ip)
		c, err := net.Dial("tcp", net.JoinHostPort(f.reached, port))
		if err != nil {
			t.Errorf("%s: %v", f.ip, err)
			continue
		}
		c.Close()
		if f.refused == "" {
			continue
		}
		if c, err := net.Dial("tcp", net.JoinHostPort(f.refused, port)); err == nil {
			c.Close()
			t.Errorf("%s: %s is answered, too", f.ip, f.refused)
		}
	}
}

// Requests that no probe sends, and what becomes of them.
func TestHealthPortBoundsRequests(t *testing.T) {
	t.Parallel()
	port := startHealth(t, "127.0.0.1")
	for _, f := range []struct {
		name, request string
		status        int // 0: the connection ends without an answer
	}{
		{"probe", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200},
		{"long header", "GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", 431},
		{"many headers", "GET /healthz HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X: y\r\n", 1<<17) + "\r\n", 431},
		{"nonsense", "\x16\x03\x01 is TLS\r\n\r\n", 400},
		{"header that does not end", "GET /healthz HTTP/1.1\r\nX: ", 0},
		{"body that does not come", "POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", 200},
		{"nothing", "", 0},
		{"second request", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", port))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(4 * requestTimeout))
			go io.WriteString(c, f.request) // may be refused halfway
			r := bufio.NewReader(c)
			resp, err := http.ReadResponse(r, nil)
			if err == nil {
				io.Copy(io.Discard, resp.Body) // which may be broken off, with the request
			}
			switch {
			case f.status == 0 && err == nil, f.status != 0 && (err != nil || resp.StatusCode != f.status):
				t.Errorf("answer %v, %v", resp, err)
			}
			if _, err := r.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("after the answer: %v", err)
			}
		})
	}
}

// A client with all connections does not lock out others, and loses its oldest one, while others
// keep theirs.
func TestHealthPortDropsTheOldestConnection(t *testing.T) {
	port := startHealth(t, "127.0.0.1")
	dial := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("tcp", net.JoinHostPort("127.0.0.1", port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		io.WriteString(c, "GET /healthz HTTP/1.1\r\nX: ")
		return c
	}
	other := dial("127.0.0.2")
	var held []net.Conn
	for range 3 * maxConns {
		held = append(held, dial("127.0.0.1"))
	}
	resp, err := (&http.Client{Timeout: time.Second}).Get("http://127.0.0.1:" + port + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	for i, c := range append(held, other) {
		gone := i <= 2*maxConns+1 // for the probe and the other one
		c.SetReadDeadline(time.Now().Add(map[bool]time.Duration{true: time.Second, false: time.Millisecond}[gone]))
		_, err := c.Read(make([]byte, 1))
		if waits := errors.Is(err, os.ErrDeadlineExceeded); waits == gone {
			t.Errorf("connection %d of %d: %v", i, len(held), err)
		}
	}
}

// TestReadyzSaysWhatIsMissing: the host waits for a subnet, has one, etcd is unreachable, another
// host takes the subnet, and there is a new one.
func TestReadyzSaysWhatIsMissing(t *testing.T) {
	wrong := condition.NewList(slog.New(slog.DiscardHandler))
	p := NewState(wrong)
	port := listen(t, p, "127.0.0.1")
	config := condition.Condition{ID: "config", Text: "network config is missing", Fields: []any{"err", "no key", "command", "etcdctl put"}}
	full := condition.Condition{ID: "no-subnet", Severity: condition.Severe, Text: "cannot lease a subnet", Fields: []any{"err", errors.New(`no "free" one`), "count", 3}}
	const fullLine = "\ncannot lease a subnet (count 3): no \"free\" one"
	const awayLine = "etcd does not answer since 1970-01-01T00:00:00Z"
	for _, step := range []struct {
		change func()
		status int
		body   string
	}{
		{func() {}, 503, "flanneld is not ready yet"},
		{func() { wrong.Set(config) }, 503, "flanneld is not ready yet\nnetwork config is missing: no key"},
		{func() { wrong.End("config"); wrong.Set(full) }, 503, "flanneld is not ready yet" + fullLine},
		{func() { wrong.End("no-subnet"); p.SetReady() }, 200, "flanneld is ready"},
		{func() { p.SetEtcdDown(time.Unix(0, 0).UTC()) }, 200, "flanneld is ready, degraded: " + awayLine},
		{func() { p.SetSubnetLost(true) }, 503, "flanneld is not ready: another host has the subnet of this one\n" + awayLine},
		{func() { p.SetEtcdDown(time.Time{}); wrong.Set(full) }, 503, "flanneld is not ready: another host has the subnet of this one" + fullLine},
		{func() { p.SetSubnetLost(false); wrong.End("no-subnet") }, 200, "flanneld is ready"},
	} {
		step.change()
		resp, err := (&http.Client{Timeout: time.Second}).Get("http://127.0.0.1:" + port + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if resp.Body.Close(); err != nil || resp.StatusCode != step.status || string(body) != step.body {
			t.Errorf("%d %q, %v; want %d %q", resp.StatusCode, body, err, step.status, step.body)
		}
	}
}
