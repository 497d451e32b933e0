package page

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	neturl "net/url"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	"flanneld/pkg/api"
	"flanneld/pkg/condition"
	"flanneld/pkg/lab/wait"
	"flanneld/pkg/page"
	"flanneld/pkg/status"
)

// source is a daemon that answers what a test wants.
type source struct {
	mu       sync.Mutex
	document status.Document
	counters page.Counters
	rate     func() (received, sent uint64) // bytes in the time between two samples
}

func pointer[T any](v T) *T { return &v }

// subnet returns the subnet of a host.
func subnet(i int) netip.Prefix {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], 10<<24+42<<16+uint32(i)<<8)
	return netip.PrefixFrom(netip.AddrFrom4(a), 24)
}

// healthy returns a source in whose network there are peers without faults.
func healthy(peers int) *source {
	now := time.Now()
	d := status.NotRunning(now, "", "")
	d.Daemon = status.Daemon{Version: "1.0.0", PID: 812, Started: now.Add(-76 * time.Hour), Ready: true}
	d.Store = status.Store{API: "v3", Prefix: "/coreos.com/network", Endpoints: []string{"http://192.0.2.10:2379"}, Up: pointer(true), ViewAge: pointer(0.4)}
	d.Network = status.Network{CIDR: netip.MustParsePrefix("10.42.0.0/16"), SubnetLen: 24}
	d.Lease = status.Lease{Subnet: subnet(0), Expires: pointer(now.Add(23 * time.Hour)), Remaining: pointer(82800.0)}
	addr := netip.MustParseAddr("192.0.2.11")
	d.Uplink = status.Uplink{Interface: "eth0", Address: addr, PublicIP: addr, MTU: 1500}
	d.Backend = status.Backend{Type: "vxlan", Device: "flannel.1", MTU: 1450}
	d.Filter = status.Filter{Keeper: "nftables", Forward: true, Masquerade: true}
	d.Drift = pointer(0)
	for i := range peers {
		ip := netip.AddrFrom4([4]byte{192, 0, byte(2 + (i+12)/250), byte((i+12)%250 + 1)})
		p := status.Peer{Subnet: subnet(i + 1), PublicIP: ip, State: status.OK, Programmed: "fdb, neighbour, route on flannel.1"}
		p.SetProbe(status.Probe{State: status.ProbeOK, RTT: time.Duration(180+i%97*7) * time.Microsecond, Answered: now})
		d.Peers = append(d.Peers, p)
	}
	s := &source{document: d, rate: func() (uint64, uint64) { return 0, 0 }}
	s.set(func(*status.Document) {})
	return s
}

// set changes the document.
func (s *source) set(f func(d *status.Document)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.document
	d.Peers = slices.Clone(d.Peers)
	f(&d)
	d.Judge()
	s.document = d
}

// fault returns what a fault has on a peer.
func fault(p *status.Peer, state string) {
	switch state {
	case "failing":
		p.SetProbe(status.Probe{State: status.ProbeFailing, Loss: 1, Answered: time.Now(), Fault: "does not answer probes since 2026-08-01 11:00:00"})
	case "lossy":
		p.SetProbe(status.Probe{State: status.ProbeLossy, RTT: 9 * time.Millisecond, Loss: 0.25, Answered: time.Now(), Fault: "25 % of the probes are lost"})
	case "skipped":
		p.State, p.Reason, p.Programmed, p.Probe, p.RTT, p.Loss = status.Skipped, "public IP belongs to an older lease: 192.0.2.19, 10.42.8.0/24", "", status.ProbeUnknown, nil, nil
		p.Changed = pointer(time.Now().Add(-4 * time.Minute))
	case "unprogrammed":
		p.State, p.Reason, p.Programmed = status.Unprogrammed, "route 10.42.4.0/24: file exists", "fdb, neighbour on flannel.1"
	case "unprobed":
		p.Probe, p.RTT, p.Loss = status.ProbeUnknown, nil, nil
	case "unknown":
		p.State, p.Reason = status.Unknown, "the kernel was not read yet"
	}
}

// status returns the document as of now.
func (s *source) status() status.Document {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.document
	d.Now = time.Now()
	return d
}

// device returns the counters, a sample later.
func (s *source) device() (string, page.Counters) {
	s.mu.Lock()
	defer s.mu.Unlock()
	received, sent := s.rate()
	s.counters.Received += received
	s.counters.Sent += sent
	return s.document.Backend.Device, s.counters
}

// waves is traffic that rises and falls, and has peaks.
func waves() func() (uint64, uint64) {
	random := rand.New(rand.NewPCG(1, 2))
	level, n := 8e6, 0
	return func() (uint64, uint64) {
		n++
		level = max(1e5, level*(0.9+0.2*random.Float64()))
		peak := 1.0
		if n%60 > 50 {
			peak = 4
		}
		return uint64(level * peak), uint64(level * (0.3 + 0.3*random.Float64()))
	}
}

// serve serves the page of a source as the daemon does, until the test ends or stop is called.
func (s *source) serve(t testing.TB) (url string, stop func()) {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	return fmt.Sprintf("http://%s/", free.Addr()), s.serveAt(t, free.Addr().String())
}

// serveAt does so at an address.
func (s *source) serveAt(t testing.TB, addr string) (stop func()) {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	p := page.New(page.Config{Status: s.status, Device: s.device})
	sources := api.Sources{State: api.NewState(condition.NewList(quiet)), Status: s.status, Page: p, Events: p.Events()}
	ctx, cancel := context.WithCancel(context.Background()) // that of the test ends before its tabs
	var tasks sync.WaitGroup
	tasks.Go(func() {
		sources.ServeTCP(ctx, netip.MustParseAddrPort(addr), func(err error) error { return err }, condition.NewList(quiet), quiet)
	})
	wait.For(t, timeout, "the server", func() error {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err
	})
	stop = func() {
		cancel()
		tasks.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// rewrite returns the URL of a page whose lines of events are changed by a function on their way.
func rewrite(t *testing.T, url string, change func(line []byte) []byte) string {
	t.Helper()
	target, err := neturl.Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.FlushInterval = -1
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	proxy.ModifyResponse = func(r *http.Response) error {
		if r.Request.URL.Path != "/events" {
			return nil
		}
		body, lines := r.Body, bufio.NewReader(r.Body)
		read, written := io.Pipe()
		r.Body = struct {
			io.Reader
			io.Closer
		}{read, body}
		go func() {
			for {
				line, err := lines.ReadBytes('\n')
				if err != nil {
					written.CloseWithError(err)
					return
				}
				written.Write(change(line))
			}
		}()
		return nil
	}
	server := httptest.NewServer(proxy)
	t.Cleanup(server.CloseClientConnections)
	return server.URL
}

// record returns the URL of a page whose events have traffic of five minutes, recorded before.
func record(t *testing.T, url string) string {
	t.Helper()
	next := waves()
	var rates []*[2]uint64
	for i := range 150 {
		received, sent := next()
		if rates = append(rates, &[2]uint64{received, sent}); i == 30 || i == 31 {
			rates[i] = nil
		}
	}
	recorded, err := json.Marshal(page.Traffic{Device: "flannel.1", Interval: 2, Rates: rates})
	if err != nil {
		t.Fatal(err)
	}
	traffic := regexp.MustCompile(`"traffic":\{[^}]*\}`)
	return rewrite(t, url, func(line []byte) []byte {
		return traffic.ReplaceAllLiteral(line, append([]byte(`"traffic":`), recorded...))
	})
}
