package e2e_test

import (
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/tunnel"
)

// TestThroughput logs a table: the tunnel with and without offloads, beside the bare link and the
// kernel's vxlan. It asserts nothing, since other programs may
// be using the machine. TUNNEL_BENCH=tcp measures one stream only, TUNNEL_ONLY=udp one variant.
func TestThroughput(t *testing.T) {
	if os.Getenv("TUNNEL_BENCH") == "" {
		t.Skip("SKIPPED: set TUNNEL_BENCH=1 to measure")
	}
	variants := []struct {
		name  string
		mtu   int
		setup func(p *pair)
	}{
		{"bare", 1500, func(p *pair) { p.direct(t) }},
		{"vxlan", 1450, func(p *pair) { p.vxlan(t) }},
		{"udp", 1472, func(p *pair) { p.start(t, tunnel.AllOffloads(), tunnel.AllOffloads()) }},
		{"udp off", 1472, func(p *pair) { p.start(t, tunnel.Offloads{}, tunnel.Offloads{}) }},
	}
	rounds := 3
	if only := os.Getenv("TUNNEL_ONLY"); only != "" {
		for i := range variants {
			if variants[i].name == only {
				variants = variants[i : i+1]
				rounds = 5
				break
			}
		}
	}
	ctx, l := newLab(t, len(variants), 10*time.Minute)
	rows := make([]row, len(variants))
	for i, v := range variants {
		p := newPair(t, l, i, v.mtu)
		v.setup(p)
		p.wait(t, ctx)
		rows[i].pair = p
	}
	// Rounds over all variants, so that other load of the machine affects all of them.
	for range rounds {
		for i := range rows {
			rows[i].measure(t, ctx)
		}
	}
	for _, r := range rows {
		for _, proc := range []*lab.Process{r.pair.procA, r.pair.procB} {
			if proc == nil {
				continue
			}
			if _, err := proc.Stop(ctx); err != nil {
				t.Error(err)
			}
			t.Log(proc.Logs())
		}
	}
	t.Logf("%-8s %8s %8s %10s %10s %9s %9s %8s", "", "1 TCP", "4 TCP", "1400B kpps", "64B kpps", "p50 us", "p99 us", "CPU s/GB")
	for i, r := range rows {
		t.Logf("%-8s %8.2f %8.2f %10.1f %10.1f %9.1f %9.1f %8.2f", variants[i].name, median(r.one), median(r.four),
			median(r.large), median(r.small), median(r.p50), median(r.p99), median(r.cpu))
	}
}

// A row is the measurements of a variant, one number per round.
type row struct {
	pair                                   *pair
	one, four, cpu, large, small, p50, p99 []float64
}

func (r *row) measure(t *testing.T, ctx context.Context) {
	p := r.pair
	add := func(s *[]float64, v float64) { *s = append(*s, v) }
	if os.Getenv("TUNNEL_BENCH") == "rtt" {
		p50, p99 := roundTrips(t, p, 5000)
		add(&r.p50, float64(p50.Nanoseconds())/1000)
		add(&r.p99, float64(p99.Nanoseconds())/1000)
		return
	}
	gbps, seconds := streams(t, ctx, p, 1)
	add(&r.one, gbps)
	add(&r.cpu, seconds)
	if os.Getenv("TUNNEL_BENCH") == "tcp" {
		return
	}
	gbps, _ = streams(t, ctx, p, 4)
	add(&r.four, gbps)
	add(&r.large, packetRate(t, ctx, p, 1400))
	add(&r.small, packetRate(t, ctx, p, 64))
	p50, p99 := roundTrips(t, p, 3000)
	add(&r.p50, float64(p50.Nanoseconds())/1000)
	add(&r.p99, float64(p99.Nanoseconds())/1000)
}

func median(s []float64) float64 {
	if len(s) == 0 {
		return 0
	}
	slices.Sort(s)
	return s[len(s)/2]
}

// streams measures n TCP streams at once, in Gb/s, and the CPU seconds for one GB.
func streams(t *testing.T, ctx context.Context, p *pair, n int) (gbps, seconds float64) {
	var all sync.WaitGroup
	var mu sync.Mutex
	var octets float64
	before := cpu(t, p)
	for range n {
		all.Go(func() {
			s, err := p.ca.Throughput(ctx, &p.cb.Endpoint, 2*time.Second)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			gbps += s.BitsPerSecond() / 1e9
			octets += float64(s.Bytes)
		})
	}
	all.Wait()
	return gbps, (cpu(t, p) - before) / (octets / 1e9)
}

// cpu is the processor time that this process and the pair's have used, in seconds.
func cpu(t *testing.T, p *pair) float64 {
	var self syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &self); err != nil {
		t.Fatal(err)
	}
	total := time.Duration(self.Utime.Nano() + self.Stime.Nano())
	for _, proc := range []*lab.Process{p.procA, p.procB} {
		if proc == nil {
			continue
		}
		u, err := proc.Usage()
		if err != nil {
			t.Fatal(err)
		}
		total += u.CPU
	}
	return total.Seconds()
}

// packetRate offers datagrams without limit and counts those that come, in thousands a second.
func packetRate(t *testing.T, ctx context.Context, p *pair, size int) float64 {
	var receiver *net.UDPConn
	err := p.cb.Do(func() (err error) {
		receiver, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.cb.Addr, 9999)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer receiver.Close()
	receiver.SetReadBuffer(4 << 20)
	conn, err := p.ca.NS.DialContext(ctx, "udp4", netip.AddrPortFrom(p.cb.Addr, 9999).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const length = 2 * time.Second
	end := time.Now().Add(length)
	go func() {
		b := make([]byte, size)
		for time.Now().Before(end) {
			for range 32 {
				conn.Write(b)
			}
		}
	}()
	receiver.SetReadDeadline(end)
	n, b := 0, make([]byte, 2048)
	for {
		if _, _, err := receiver.ReadFromUDPAddrPort(b); err != nil {
			return float64(n) / length.Seconds() / 1000
		}
		n++
	}
}

// roundTrips measures datagrams of 64 bytes that are sent back, one after another.
func roundTrips(t *testing.T, p *pair, n int) (p50, p99 time.Duration) {
	var server, client net.PacketConn
	err := p.cb.Do(func() (err error) {
		server, err = net.ListenPacket("udp4", netip.AddrPortFrom(p.cb.Addr, 9998).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if err := p.ca.Do(func() (err error) { client, err = net.ListenPacket("udp4", ":0"); return err }); err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := server.ReadFrom(b)
			if err != nil {
				return
			}
			server.WriteTo(b[:n], from)
		}
	}()
	rtts, b := make([]time.Duration, 0, n), make([]byte, 64)
	for range n {
		start := time.Now()
		client.WriteTo(b, server.LocalAddr())
		client.SetReadDeadline(start.Add(time.Second))
		if _, _, err := client.ReadFrom(b); err != nil {
			continue
		}
		rtts = append(rtts, time.Since(start))
	}
	slices.Sort(rtts)
	if len(rtts) == 0 {
		return 0, 0
	}
	return rtts[len(rtts)/2], rtts[len(rtts)*99/100]
}
