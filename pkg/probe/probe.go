// Package probe finds out whether an IPv4 address is in use: by ARP (RFC 826) if the address is on
// the link, and by ICMP echo (RFC 792) in any case.
//
// It does not know the purpose, nor how the kernel resolves addresses on a link. Invariant: the
// result is "no reply" only if a request could be sent.
package probe

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// Link resolves addresses on an interface.
type Link interface {
	// Solicit sends a request for an address.
	Solicit(iface string, ip netip.Addr) error
	// Answered reports whether there was a reply since.
	Answered(iface string, ip netip.Addr) (bool, error)
}

const (
	// requestInterval is the time between two requests, in case that one is lost.
	requestInterval = 300 * time.Millisecond
	// pollInterval is the time between two checks whether the kernel has resolved the address.
	pollInterval = 20 * time.Millisecond
)

// Probe sends requests to an address until there is a reply or ctx ends, and returns which protocol
// was answered, "ARP" or "ICMP", or "" if there was no reply. iface is the interface on whose link
// the address is, or "" if it is behind a gateway. An error means that no request could be sent.
// The socket belongs to the network namespace of the calling thread.
func Probe(ctx context.Context, addr netip.Addr, iface string, link Link) (answered string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ways := map[string]func() error{}
	if c, to, err := listen(addr); err != nil {
		ways["ICMP"] = func() error { return err }
	} else {
		defer c.Close()
		ways["ICMP"] = func() error { return echo(ctx, c, to) }
	}
	if iface != "" {
		ways["ARP"] = func() error { return resolve(ctx, addr, iface, link) }
	}
	type outcome struct {
		way string
		err error
	}
	outcomes := make(chan outcome, len(ways))
	for way, ask := range ways {
		go func() { outcomes <- outcome{way, ask()} }()
	}
	var failures []error
	for range ways {
		o := <-outcomes
		if o.err == nil {
			return o.way, nil
		}
		if !errors.Is(o.err, errNoReply) {
			failures = append(failures, fmt.Errorf("%s: %w", o.way, o.err))
		}
	}
	if len(failures) == len(ways) {
		return "", errors.Join(failures...)
	}
	return "", nil
}

// errNoReply is the error if requests were sent without a reply.
var errNoReply = errors.New("no reply")

// resolve sends ARP requests.
func resolve(ctx context.Context, addr netip.Addr, iface string, link Link) error {
	asks, looks := time.NewTicker(requestInterval), time.NewTicker(pollInterval)
	defer asks.Stop()
	defer looks.Stop()
	if err := link.Solicit(iface, addr); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return errNoReply
		case <-asks.C:
			if err := link.Solicit(iface, addr); err != nil {
				return err
			}
		case <-looks.C:
			if there, err := link.Answered(iface, addr); there || err != nil {
				return err
			}
		}
	}
}

// echo sends ICMP echo requests. An address without a route counts as one without a reply.
func echo(ctx context.Context, c *icmp.PacketConn, to net.Addr) error {
	// The kernel sets the identifier of a datagram socket, so replies are matched by the payload.
	payload := fmt.Appendf(nil, "flanneld probe %016x", rand.Uint64())
	request, err := (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: int(rand.Uint32() & 0xffff), Seq: 1, Data: payload}}).Marshal(nil)
	if err != nil {
		return err
	}
	replied := make(chan error, 1)
	go func() { replied <- awaitReply(c, to, payload) }()
	asks := time.NewTicker(requestInterval)
	defer asks.Stop()
	for {
		if _, err := c.WriteTo(request, to); err != nil && !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) {
			return err
		}
		select {
		case <-ctx.Done():
			return errNoReply
		case err := <-replied:
			return err
		case <-asks.C:
		}
	}
}

// listen opens a socket for ICMP: a raw one (CAP_NET_RAW), or else an unprivileged one, which
// net.ipv4.ping_group_range permits.
func listen(addr netip.Addr) (*icmp.PacketConn, net.Addr, error) {
	c, err := icmp.ListenPacket("ip4:icmp", "0.0.0.0")
	if err == nil {
		return c, &net.IPAddr{IP: addr.AsSlice()}, nil
	}
	if c, err := icmp.ListenPacket("udp4", "0.0.0.0"); err == nil {
		return c, &net.UDPAddr{IP: addr.AsSlice()}, nil
	}
	return nil, nil, err
}

// awaitReply reads until the reply arrives.
func awaitReply(c *icmp.PacketConn, to net.Addr, payload []byte) error {
	b := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return err
		}
		m, err := icmp.ParseMessage(1, b[:n]) // 1: ICMP for IPv4
		if err != nil || m.Type != ipv4.ICMPTypeEchoReply || from.String() != to.String() {
			continue
		}
		if e, ok := m.Body.(*icmp.Echo); ok && string(e.Data) == string(payload) {
			return nil
		}
	}
}
