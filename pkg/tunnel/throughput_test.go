package tunnel_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/tunnel"
)

// TestThroughput logs a table of the tunnel beside the bare link and the kernel's vxlan. It fails only when the tunnel
// is slow out of all proportion: other programs may be using the machine.
func TestThroughput(t *testing.T) {
	if os.Getenv("TUNNEL_BENCH") == "" {
		t.Skip("SKIPPED: set TUNNEL_BENCH=1 to measure")
	}
	variants := []struct {
		name  string
		mtu   int
		setup func(ctx context.Context, p *pair)
	}{
		{"bare", 1500, func(ctx context.Context, p *pair) { p.direct(t) }},
		{"vxlan", 1450, func(ctx context.Context, p *pair) { p.vxlan(t) }},
		{"udp", 1472, func(ctx context.Context, p *pair) { p.tunnel(t, ctx, tunnel.AllOffloads(), false) }},
		{"udp off", 1472, func(ctx context.Context, p *pair) { p.tunnel(t, ctx, tunnel.Offloads{}, false) }},
		{"1 by 1", 1472, func(ctx context.Context, p *pair) { p.tunnel(t, ctx, tunnel.Offloads{}, true) }},
	}
	only := os.Getenv("TUNNEL_ONLY")
	ctx, l := newLab(t, len(variants), 5*time.Minute)
	t.Logf("%-8s %8s %8s %10s %10s %9s %9s %8s", "", "1 TCP", "4 TCP", "1400B kpps", "64B kpps", "RTT p50", "RTT p99", "CPU s/GB")
	for i, v := range variants {
		if only != "" && !strings.Contains(only, v.name) {
			continue
		}
		p := newPair(t, l, i, v.mtu)
		v.setup(ctx, p)
		p.wait(t, ctx)
		one, cpu := medianStream(t, ctx, p, 1, 3)
		four, _ := medianStream(t, ctx, p, 4, 1)
		large, small := packetRate(t, ctx, p, 1400), packetRate(t, ctx, p, 64)
		p50, p99 := roundTrips(t, p, 5000)
		t.Logf("%-8s %8.2f %8.2f %10.1f %10.1f %9s %9s %8.2f", v.name, one, four, large, small, p50, p99, cpu)
		for _, proc := range []*lab.Process{p.procA, p.procB} {
			if proc != nil {
				proc.Stop(ctx)
				if os.Getenv("TUNNEL_BENCH") == "2" {
					t.Log(proc.Logs())
				}
			}
		}
	}
}

// medianStream measures n TCP streams at once, in Gb/s, and the machine's CPU seconds for one GB.
func medianStream(t *testing.T, ctx context.Context, p *pair, n, times int) (gbps, cpu float64) {
	var rates, costs []float64
	for range times {
		var streams sync.WaitGroup
		var mu sync.Mutex
		var total, octets float64
		before := busy(t)
		for range n {
			streams.Go(func() {
				s, err := p.ca.Throughput(ctx, &p.cb.Endpoint, 2*time.Second)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				total += s.BitsPerSecond() / 1e9
				octets += float64(s.Bytes)
			})
		}
		streams.Wait()
		rates, costs = append(rates, total), append(costs, (busy(t)-before)/(octets/1e9))
	}
	slices.Sort(rates)
	slices.Sort(costs)
	return rates[len(rates)/2], costs[len(costs)/2]
}

// busy is the time that the machine's processors were not idle, in seconds.
func busy(t *testing.T) float64 {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		t.Fatal(err)
	}
	var user, nice, system, idle, iowait, irq, softirq float64
	fmt.Sscanf(string(text), "cpu %f %f %f %f %f %f %f", &user, &nice, &system, &idle, &iowait, &irq, &softirq)
	return (user + nice + system + irq + softirq) / 100
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
