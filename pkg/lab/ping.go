package lab

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"flanneld/pkg/lab/wait"
)

// Sizes in an echo packet, in bytes: the ICMP header, and the data by which the lab recognises its
// packets.
const (
	icmpHeader = 8
	echoToken  = 16
	minPing    = ipv4.HeaderLen + icmpHeader + echoToken
)

// PingOptions describes an echo request. The zero value is the default of ping(8).
type PingOptions struct {
	Size    int           // of the whole IP packet in bytes, 44 to 65535; default 84
	DF      bool          // don't fragment, and ignore the path MTU cache
	Timeout time.Duration // for the reply; default 1 s
}

// Ping sends one echo request and returns the round-trip time. If the packet is too large for the
// device, or with DF for a link on the path, the error is unix.EMSGSIZE. Without a reply, it is
// os.ErrDeadlineExceeded.
func (e *Endpoint) Ping(ctx context.Context, to netip.Addr, o PingOptions) (time.Duration, error) {
	if o.Timeout == 0 {
		o.Timeout = time.Second
	}
	s, err := e.openEcho(ctx, to, o)
	if err != nil {
		return 0, err
	}
	defer s.conn.Close()
	defer context.AfterFunc(ctx, func() { s.conn.Close() })()
	start := time.Now()
	s.conn.SetReadDeadline(start.Add(o.Timeout))
	if err = s.send(1); err == nil {
		_, err = s.receive()
	}
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return 0, fmt.Errorf("ping %s from %s: %w", to, e.Name, err)
	}
	return time.Since(start), nil
}

// WaitPing pings until it gets a reply or the context ends.
func (e *Endpoint) WaitPing(ctx context.Context, to netip.Addr) (rtt time.Duration, err error) {
	err = wait.Until(ctx, func() error {
		rtt, err = e.Ping(ctx, to, PingOptions{Timeout: 250 * time.Millisecond})
		return err
	})
	return rtt, err
}

// An echoSocket sends echo requests to one address and receives the replies. It marks its requests
// with a random token, because a raw socket receives the replies to all requests of the host.
type echoSocket struct {
	conn    net.Conn
	id      int
	payload []byte // token, sequence number, zeros
}

func (e *Endpoint) openEcho(ctx context.Context, to netip.Addr, o PingOptions) (*echoSocket, error) {
	if o.Size == 0 {
		o.Size = 84
	}
	if o.Size < minPing || o.Size > 1<<16-1 {
		return nil, fmt.Errorf("ping %s: size %d is not in %d..65535", to, o.Size, minPing)
	}
	// Connected, because the kernel reports ICMP errors to connected raw sockets only.
	conn, err := e.NS.DialContext(ctx, "ip4:1", to.String())
	if err != nil {
		return nil, fmt.Errorf("ping %s from %s: %w", to, e.Name, err)
	}
	if o.DF {
		if err := setDF(conn.(*net.IPConn)); err != nil {
			conn.Close()
			return nil, err
		}
	}
	s := &echoSocket{conn: conn, payload: make([]byte, o.Size-ipv4.HeaderLen-icmpHeader)}
	rand.Read(s.payload[:8])
	s.id = int(binary.BigEndian.Uint16(s.payload))
	return s, nil
}

func (s *echoSocket) send(seq uint64) error {
	binary.BigEndian.PutUint64(s.payload[8:], seq)
	message := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: s.id, Seq: int(seq & 0xffff), Data: s.payload}}
	packet, err := message.Marshal(nil)
	if err != nil {
		return fmt.Errorf("encode echo request: %w", err)
	}
	_, err = s.conn.Write(packet)
	return err
}

// receive returns the sequence number of the next reply to a request of this socket.
func (s *echoSocket) receive() (uint64, error) {
	buf := make([]byte, 1<<16)
	for {
		n, err := s.conn.Read(buf)
		if err != nil {
			return 0, err
		}
		packet := buf[:n]
		// A raw socket returns the IP header too; an ICMP echo reply starts with 0.
		if n > 0 && packet[0]>>4 == ipv4.Version {
			packet = packet[min(n, int(packet[0]&15)*4):]
		}
		if len(packet) < icmpHeader+echoToken || packet[0] != byte(ipv4.ICMPTypeEchoReply) {
			continue
		}
		if data := packet[icmpHeader:]; string(data[:8]) == string(s.payload[:8]) {
			return binary.BigEndian.Uint64(data[8:]), nil
		}
	}
}

// setDF forbids fragmentation, by this host and on the path. PROBE is like DO but ignores the path
// MTU cache.
func setDF(conn *net.IPConn) error {
	if err := setOption(conn, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE); err != nil {
		return fmt.Errorf("set don't fragment: %w", err)
	}
	return nil
}
