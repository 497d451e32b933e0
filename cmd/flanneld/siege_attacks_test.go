package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab/etcdkeys"
)

// siegeAttacks are attacks on a cluster that run at the same time. Each runs until ctx ends and
// counts its actions.
var siegeAttacks = []struct {
	name string
	run  func(*siege, context.Context, *atomic.Int64) error
}{
	{"inject from a peer's other port", (*siege).injectFromPeer},
	{"inject from a container", (*siege).injectFromContainer},
	{"inject from a stranger", (*siege).injectFromStranger},
	{"garbage to the tunnel's port", (*siege).garbage},
	{"fragments to the tunnel's port", (*siege).fragments},
	{"stop and end the log's reader", (*siege).stopReaders},
	{"write bad values", (*siege).badValues},
	{"write huge values", (*siege).hugeValues},
	{"slow connections to the health port", (*siege).slowConnections},
	{"answer nonsense in etcd's place", (*siege).evilProxy},
	{"restart a daemon", (*siege).restart},
}

// paced calls f about so many times a second until ctx ends or f fails.
func paced(ctx context.Context, perSecond int, f func() error) error {
	const tick = 20 * time.Millisecond
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	owed := 0.0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		for owed += float64(perSecond) * tick.Seconds(); owed >= 1 && ctx.Err() == nil; owed-- {
			if err := f(); err != nil {
				return err
			}
		}
	}
}

// openPipe connects a daemon's log to a small pipe that is read here.
func (s *siege) openPipe(b *besieged) {
	s.t.Helper()
	s.must(os.MkdirAll(s.Dir+"/"+b.Name, 0o755))
	s.must(unix.Mkfifo(b.log, 0o600))
	f, err := os.OpenFile(b.log, os.O_RDONLY|unix.O_NONBLOCK, 0)
	s.must(err)
	s.t.Cleanup(func() { f.Close() })
	raw, err := f.SyscallConn()
	s.must(err)
	s.must(raw.Control(func(fd uintptr) { _, err = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, 4096) }))
	s.must(err)
	b.open = f
}

// stopReaders reads the logs of two daemons for a while. Then one of the readers stops,
// and the other one ends.
func (s *siege) stopReaders(ctx context.Context, n *atomic.Int64) error {
	err := sideBySide(2, func(i int) error {
		b := s.daemons[i]
		b.open.SetReadDeadline(time.Now().Add(3 * time.Second))
		text, err := io.ReadAll(b.open)
		b.lines = strings.Count(string(text), "\n")
		n.Add(int64(b.lines))
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("the log of %s ends with %v", b.Name, err)
		}
		return nil
	})
	err = errors.Join(err, s.daemons[1].open.Close())
	<-ctx.Done()
	return err
}

// badValues writes invalid values below the prefix, a thousand per second. It does not claim the
// subnet of the host whose own lease is overwritten: with v2 that makes it the newer lease, and any
// client with write access is trusted.
func (s *siege) badValues(ctx context.Context, n *atomic.Int64) error {
	own, peer, third := s.daemons[0], s.daemons[1], s.daemons[2]
	ownKey := strings.Replace(own.subnet.String(), "/", "-", 1)
	good := fmt.Sprintf(`{"PublicIP":"203.0.113.1","BackendType":%q,"BackendData":{"VtepMAC":"0a:00:00:00:00:01"}}`, s.backend)
	bad := []etcdkeys.Entry{
		{Key: "nonsense", Value: good}, {Key: "10.42.300.0-24", Value: good}, {Key: "10.42.100.0-33", Value: good}, {Key: "0.0.0.0-0", Value: good},
		{Key: "10.42.101.0-24", Value: "{"}, {Key: "10.42.102.0-24", Value: ""}, {Key: "10.42.103.0-24", Value: `"text"`},
		{Key: "10.42.104.0-24", Value: `{"PublicIP":"no address"}`}, {Key: "10.42.105.0-24", Value: strings.Repeat("x", 10000)},
		{Key: "10.43.1.0-24", Value: good}, {Key: "10.42.0.0-16", Value: good}, {Key: "172.31.200.0-22", Value: good},
		{Key: third.subnet.Addr().String() + "-25", Value: good},
		{Key: "10.42.107.0-24", Value: strings.Replace(good, s.backend, "pigeon", 1)},
		{Key: "10.42.108.0-24", Value: strings.Replace(good, "203.0.113.1", third.addr.String(), 1)},
		{Key: "10.42.109.0-24", Value: strings.Replace(good, "203.0.113.1", peer.addr.String(), 1)},
		{Key: peer.subnet.Addr().String() + "-26", Value: good},
		{Key: "10.42.110.0-24", Value: strings.Replace(good, "203.0.113.1", "255.255.255.255", 1)},
		{Key: "10.42.111.0-24", Value: good}, {Key: "10.42.111.0-24", Value: "{"}, // good and bad in turn
		{Key: ownKey, Value: "{"}, // a host's own, at first
	}
	begun := time.Now()
	keys := s.keys
	if s.api == "v3" {
		kept, err := s.Etcd.V3().Keep(ctx)
		if err != nil {
			return err
		}
		keys = kept
	}
	const writers = 4
	err := sideBySide(writers, func(i int) error {
		return paced(ctx, 1000/writers, func() error {
			e := bad[i%len(bad)]
			if e.Key == ownKey && time.Since(begun) > s.total/6 {
				e = bad[0]
			}
			e.Key = s.prefix + "/subnets/" + e.Key
			if i/len(bad)%2 == 1 {
				e.Value += fmt.Sprint(" ", i) // bad in always another way
			}
			i += writers
			n.Add(1)
			return keys.Put(ctx, e.Key, e.Value, 0)
		})
	})
	return errors.Join(err, s.keys.Delete(s.ctx, s.prefix+"/subnets/10.42.111.0-24"))
}

// hugeValues writes eight values of 9 MB by v2 or of 1.4 MB by v3, which stay, and one
// of them again from time to time.
func (s *siege) hugeValues(ctx context.Context, n *atomic.Int64) error {
	size := map[string]int{"v2": 9 << 20, "v3": 1400 << 10}[s.api]
	value := strings.Repeat("x", size)
	for i := 0; ; i++ {
		key := fmt.Sprintf("%s/subnets/10.42.%d.0-24", s.prefix, 64+i%8)
		if err := s.keys.Put(ctx, key, value, 0); err != nil {
			return err
		}
		n.Add(1)
		if i < 8 {
			continue
		}
		if pauseFor(ctx, 10*time.Second) {
			return nil
		}
	}
}

// slowConnections keeps as many connections to the health port of the third host as are allowed,
// each of which sends a little at times and never completes its request.
func (s *siege) slowConnections(ctx context.Context, n *atomic.Int64) error {
	const most, perSecond = 3000, 300
	var open sync.WaitGroup
	defer open.Wait()
	room := make(chan struct{}, most)
	to := netip.AddrPortFrom(s.daemons[2].addr, 8080).String()
	return paced(ctx, perSecond, func() error {
		select {
		case room <- struct{}{}:
		default:
			return nil
		}
		open.Go(func() {
			defer func() { <-room }()
			dial, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			conn, err := s.stranger.NS.DialContext(dial, "tcp", to)
			if err != nil {
				return
			}
			n.Add(1)
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			defer conn.Close()
			fmt.Fprintf(conn, "GET /healthz HTTP/1.1\r\n")
			for i := 0; err == nil; i++ {
				conn.SetReadDeadline(time.Now().Add(2 * time.Second))
				if _, err = conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
					_, err = fmt.Fprintf(conn, "X-%d: y\r\n", i)
				}
			}
		})
		return nil
	})
}

// restart kills the daemon of the fourth host again and again, and starts it like systemd. It
// begins when all hosts have restored their own leases, which may take a while after a loss: a
// daemon that starts knows its peers only from the registry.
func (s *siege) restart(ctx context.Context, n *atomic.Int64) error {
	b := s.daemons[3]
	if pauseFor(ctx, s.total/2) {
		return nil
	}
	for {
		if pauseFor(ctx, 5*time.Second) {
			return nil
		}
		if err := s.again(b); err != nil {
			return err
		}
		n.Add(1)
	}
}

func (s *siege) again(b *besieged) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	u, err := b.daemon.Usage()
	if err != nil {
		return err
	}
	b.spent += u.CPU
	if err := b.daemon.Kill(s.ctx); err != nil {
		return err
	}
	if err := s.start(b, b.daemon.Stored()); err != nil {
		return err
	}
	ready, cancel := context.WithTimeout(s.ctx, slow(20*time.Second))
	defer cancel()
	if err := b.daemon.WaitReady(ready); err != nil {
		return err
	}
	b.slowest = max(b.slowest, b.daemon.ReadyAfter())
	return nil
}
