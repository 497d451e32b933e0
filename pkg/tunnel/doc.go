// Package tunnel carries the IPv4 packets of an overlay between a TUN device and a UDP socket: a
// userspace VXLAN without its header, wire-compatible with the udp backend of every flannel
// release. It does not configure anything (addresses, routes, MTU and state of the device belong to
// its owner), it does not encrypt, and it authenticates only by source address and port.
// Invariants: a packet is delivered unchanged, except that the TTL is decremented once at each end,
// or it is dropped and counted; packets of one flow keep their order; the tunnel does not wait for
// more packets, and does not allocate memory per packet.
//
// Driver is its interface to the reconciler: it opens devices and sockets, which outlive the
// process if their descriptors are kept elsewhere, and manages the entries of the peers.
//
//	tun, err := tunnel.OpenTUN("flannel0", tunnel.AllOffloads())
//	udp, err := tunnel.ListenUDP(addr, tunnel.AllOffloads())
//	icmp, err := tunnel.OpenICMP()
//	t := tunnel.New(table)                          // and t.Swap(table) whenever the peers change
//	err = t.Run(ctx, tunnel.Endpoints{Device: tun, Socket: udp, ICMP: icmp})
//
// # Wire format
//
// The payload of a UDP datagram is exactly one IPv4 packet (RFC 791), without a header before it or
// padding after it. Each end decrements the TTL.
//
// # Offloads and batches
//
// A read from the device returns a packet, or a super-packet of up to 64 KiB (tuntap.rst,
// segmentation-offloads.rst in the kernel's documentation). It is segmented once: new headers with
// complete checksums are written to another buffer, and the payload is sent from the buffer it was
// read into. Consecutive packets of one size to one peer, up to 64 packets or 65,507 bytes, are one
// message with UDP_SEGMENT, and up to 64 messages are one sendmmsg(2). A batch consists of the
// available packets, up to 256 packets or 256 KiB. In the other direction recvmmsg(2) returns up to
// 16 messages that UDP_GRO has merged; consecutive packets of one flow are written as one
// super-packet with writev(2), again without copying the payload.
//
// Every offload is probed when its device or socket is opened, and can be turned off. A message
// that the kernel refuses to segment (EMSGSIZE, EINVAL: the path has a smaller MTU; EIO: before
// Linux 6.11, the device has no checksum offload) is sent again packet by packet, and its peer gets
// no such message for half a minute.
//
// Two goroutines do the work, one per direction. They wait with poll(2) instead of the runtime's
// poller, so that a packet wakes up the thread that handles it. Measured and rejected: yielding the
// processor before waiting, which makes bigger batches and 6 % more throughput, but beside a
// program that uses much processor time a round trip takes 240 µs instead of 34.
//
// # MTU
//
// The device's MTU should be the uplink's minus 28 bytes: an IPv4 and a UDP header. The outer
// packets may be fragmented (IP_PMTUDISC_DONT), so that a smaller MTU on the path costs speed and
// no packets. A received packet that is longer than the device's MTU is dropped, and the sender
// gets ICMP fragmentation needed (RFC 1191).
//
// # Sources
//
// RFC 768 (UDP), 791 (IPv4), 792 and 1122 and 1812 (ICMP errors, routers), 1071 and 1624
// (checksums), 6864 (IPv4 ID), 9293 (TCP); Virtual I/O Device 1.2, section 5.1.6 (the header before
// a packet of the device).
package tunnel
