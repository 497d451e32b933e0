package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSlowConnectionsToTheHealthPort: a client holds thousands of connections, each with half a
// request, and replaces those that are closed. Health checks are answered, memory and descriptors
// are limited, and packet filter rules, whose repair needs descriptors, are repaired.
func TestSlowConnectionsToTheHealthPort(t *testing.T) {
	t.Parallel()
	const attackers, descriptors, mostMemory = 2000, 1024, 16 << 20
	c, h := oneHost(t, vxlanConfig)
	c.must(c.StartAll(c.ctx, "-healthz-port=8080"))
	p := h.Flanneld()
	limit := unix.Rlimit{Cur: descriptors, Max: descriptors}
	c.must(unix.Prlimit(p.PID(), unix.RLIMIT_NOFILE, &limit, nil))
	before := c.usage(p)

	addr := net.JoinHostPort(h.Addr.String(), "8080") // the probes come from 127.0.0.1
	dial := func() net.Conn {
		conn, err := h.NS.DialContext(c.ctx, "tcp", addr)
		if err != nil {
			return nil // the daemon may be busy
		}
		io.WriteString(conn, "GET /healthz HTTP/1.1\r\nX: ")
		return conn
	}
	held := make(chan net.Conn, attackers)
	for range attackers {
		held <- dial()
	}
	var all sync.WaitGroup
	ctx, stop := context.WithCancel(c.ctx)
	defer func() {
		stop()
		all.Wait()
		close(held)
		for conn := range held {
			if conn != nil {
				conn.Close()
			}
		}
	}()
	for range 4 {
		all.Go(func() { // the oldest make room for new ones
			for ctx.Err() == nil {
				if conn := <-held; conn != nil {
					conn.Close()
				}
				held <- dial()
			}
		})
	}

	client := &http.Client{Transport: &http.Transport{DialContext: h.NS.DialContext, DisableKeepAlives: true}, Timeout: slow(3 * time.Second)}
	for range 20 {
		r, err := client.Get("http://127.0.0.1:8080/readyz")
		if err != nil {
			t.Errorf("a probe: %v", err)
			continue
		}
		if r.Body.Close(); r.StatusCode != http.StatusOK {
			t.Errorf("a probe: %s", r.Status)
		}
	}
	rules := c.sh(h, "iptables -S FLANNEL-FWD")
	c.sh(h, "iptables -F FLANNEL-FWD")
	c.within(8*time.Second, "the rules are repaired", func() error {
		if now := c.sh(h, "iptables -S FLANNEL-FWD"); now != rules {
			return fmt.Errorf("%s", now)
		}
		return nil
	})
	after := c.usage(p)
	t.Logf("%d KiB more, %d descriptors", (after.HWM-before.RSS)>>10, after.Files)
	if after.HWM-before.RSS > mostMemory || after.Files > 200 {
		t.Errorf("it takes %d bytes more, and %d descriptors", after.HWM-before.RSS, after.Files)
	}
	if n := lines(p, "health server"); n > 20 {
		t.Errorf("%d lines about it", n)
	}
}
