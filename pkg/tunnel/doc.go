// Package tunnel carries the IPv4 packets of an overlay between a TUN device and a UDP socket: a
// userspace VXLAN without its header, wire-compatible with the udp backend of every flannel
// release. It configures nothing (addresses, routes, MTU and state of the device are its owner's),
// encrypts nothing and authenticates nobody; it only lets in what a known peer may send.
// Invariants: a packet comes out as it went in, but for the TTL of a router's hop at each end, or
// it is dropped and counted; packets of one flow keep their order; there is no waiting for more
// packets, and no allocation for any.
//
// Driver is how the reconciler sees it: it opens devices and sockets, which outlive the process if
// somebody keeps their descriptors, and has the peers' entries.
//
//	tun, err := tunnel.OpenTUN("flannel0", tunnel.AllOffloads())
//	udp, err := tunnel.ListenUDP(addr, tunnel.AllOffloads())
//	icmp, err := tunnel.OpenICMP()
//	t := tunnel.New(table)                          // and t.Swap(table) whenever the peers change
//	err = t.Run(ctx, tunnel.Ends{Device: tun, Socket: udp, ICMP: icmp})
//
// # Wire format
//
// The payload of a UDP datagram is exactly one IPv4 packet (RFC 791), without any header before it
// or anything after it. Each end takes one from its TTL.
//
// # Offloads and batches
//
// A read from the device gives a packet, or a super-packet of up to 64 KiB (tuntap.rst,
// segmentation-offloads.rst in the kernel's documentation). It is cut once: new headers with
// finished checksums are written beside it, and the payload goes to the socket from where it lies.
// What follows each other to one peer with one size, up to 64 packets or 65,507 bytes, is one
// message with UDP_SEGMENT, and up to 64 messages are one sendmmsg(2). A batch is what is there, up
// to 256 packets or 256 KiB. The other way recvmmsg(2) takes up to 16 messages that UDP_GRO has put
// together; packets of one flow that continue each other are written as one super-packet with
// writev(2), again from where they lie.
//
// Every offload is probed when its end is opened, and can be turned off. A message that the kernel
// refuses to segment (EMSGSIZE, EINVAL: the path has a smaller MTU; EIO: before Linux 6.11, the
// device has no checksum offload) is sent again packet by packet, and its peer gets no such message
// for half a minute.
//
// Two goroutines do the work, one each way. They wait by poll(2) instead of the runtime's poller,
// so that a packet wakes the thread that handles it. Measured and rejected: yielding the processor
// before waiting, which makes bigger batches and 6 % more throughput, but beside a program that
// uses much processor time a round trip of 240 µs instead of 34.
//
// # MTU
//
// The device's MTU is to be the uplink's less 28 bytes: an IPv4 and a UDP header. The outer packets
// may be fragmented (IP_PMTUDISC_DONT), so that a smaller MTU on the way costs speed and no
// packets. A packet that comes in and is longer than the device's MTU is dropped, and its sender
// told by ICMP fragmentation needed (RFC 1191).
//
// # Sources
//
// RFC 768 (UDP), 791 (IPv4), 792 and 1122 and 1812 (ICMP errors, routers), 1071 and 1624
// (checksums), 6864 (IPv4 ID), 9293 (TCP); Virtual I/O Device 1.2, section 5.1.6 (the header before
// a packet of the device).
package tunnel
