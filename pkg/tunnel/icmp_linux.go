package tunnel

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// An ICMP sends complete IPv4 packets on a raw socket (raw(7)). ICMP errors cannot be written to
// the TUN device: they would arrive from outside with a source address of this host, which the
// kernel drops as spoofed (RFC 1812, section 5.3.8).
type ICMP struct{ fd int }

// OpenICMP opens the socket in the network namespace of the calling thread. It does not receive.
func OpenICMP() (*ICMP, error) {
	const kind = unix.SOCK_RAW | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	fd, err := unix.Socket(unix.AF_INET, kind, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("open raw socket: %w", err)
	}
	return &ICMP{fd}, nil
}

// Write sends a packet to its destination.
func (c *ICMP) Write(packet []byte) (int, error) {
	to := unix.SockaddrInet4{Addr: [4]byte(packet[offDestination:])}
	if err := unix.Sendto(c.fd, packet, unix.MSG_DONTWAIT, &to); err != nil {
		return 0, fmt.Errorf("send icmp error: %w", err)
	}
	return len(packet), nil
}

// Close closes the socket. No Write may be running.
func (c *ICMP) Close() error { return unix.Close(c.fd) }
