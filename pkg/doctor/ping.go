package doctor

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

const (
	// pingRounds is how often an address without an answer is asked.
	pingRounds = 3
	// pingRound is the time from one round to the next, and lastPingRound that for the answers to
	// all of them after the last.
	pingRound, lastPingRound = 300 * time.Millisecond, 900 * time.Millisecond
	// maxPings limits the addresses that are asked.
	maxPings = 256
	// ipICMPHeader is the length of the IPv4 and the ICMP header.
	ipICMPHeader = 28
)

// target is an address to ping.
type target struct {
	addr   netip.Addr
	device string     // by which the packet must leave; empty for any
	source netip.Addr // invalid if the kernel chooses it
	size   int        // of the packet in bytes; 0 for a small one
}

// ping sends echo requests that must not be fragmented, to all targets at the same time, and returns
// which were answered.
func ping(ctx context.Context, targets []target) (map[target]bool, error) {
	if len(targets) > 2*maxPings {
		targets = targets[:2*maxPings]
	}
	answers := make(map[target]bool, len(targets))
	if len(targets) == 0 {
		return answers, nil
	}
	packets, err := net.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		return nil, fmt.Errorf("cannot send pings: %w", err)
	}
	c := packets.(*net.IPConn)
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		})
	}
	if err != nil {
		return nil, err
	}
	id := int(rand.Uint32() & 0xffff)
	p := ipv4.NewPacketConn(c)
	for round := range pingRounds {
		for i, t := range targets {
			if !answers[t] {
				t.send(p, id, i, round) // a failure counts as no answer
			}
		}
		until := time.Now().Add(pingRound)
		if round == pingRounds-1 {
			until = time.Now().Add(lastPingRound)
		}
		if err := receive(c, id, targets, answers, until); err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if len(answers) == len(targets) {
			break
		}
	}
	return answers, nil
}

// send sends one echo request. The sequence number is the target's place.
func (t target) send(p *ipv4.PacketConn, id, seq, round int) {
	data := make([]byte, max(0, t.size-ipICMPHeader))
	m, err := (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: id, Seq: seq, Data: data}}).Marshal(nil)
	if err != nil {
		return
	}
	var control *ipv4.ControlMessage
	if t.device != "" {
		i, err := net.InterfaceByName(t.device)
		if err != nil {
			return
		}
		control = &ipv4.ControlMessage{IfIndex: i.Index}
	}
	if t.source.IsValid() {
		control = &ipv4.ControlMessage{Src: t.source.AsSlice()}
	}
	p.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	p.WriteTo(m, control, &net.IPAddr{IP: t.addr.AsSlice()})
}

// receive reads answers until all are there, or until a time.
func receive(c *net.IPConn, id int, targets []target, answers map[target]bool, until time.Time) error {
	b := make([]byte, 1<<16)
	c.SetReadDeadline(until)
	for len(answers) < len(targets) {
		n, from, err := c.ReadFrom(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot read answers to pings: %w", err)
		}
		ip, _ := from.(*net.IPAddr)
		if t, ok := parseAnswer(b[:n], ip, id, targets); ok {
			answers[t] = true
		}
	}
	return nil
}

// parseAnswer returns the target that has sent an answer.
func parseAnswer(b []byte, from *net.IPAddr, id int, targets []target) (t target, ok bool) {
	m, err := icmp.ParseMessage(1, b) // 1: ICMP for IPv4
	if err != nil || m.Type != ipv4.ICMPTypeEchoReply || from == nil {
		return t, false
	}
	e, ok := m.Body.(*icmp.Echo)
	if !ok || e.ID != id || e.Seq >= len(targets) {
		return t, false
	}
	addr, _ := netip.AddrFromSlice(from.IP)
	t = targets[e.Seq]
	return t, addr.Unmap() == t.addr && (t.size == 0 || len(e.Data) >= t.size-ipICMPHeader)
}
