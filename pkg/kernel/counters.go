package kernel

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"flanneld/pkg/netlink"
)

// Counters are what a link has received and transmitted since it was created.
type Counters struct{ Receive, Transmit Traffic }

// Traffic is what a link has carried in one direction.
type Traffic struct{ Bytes, Packets, Dropped uint64 }

// Counters reads the counters of a link. It returns unix.ENODEV if there is none.
func (k *Kernel) Counters(name string) (Counters, error) {
	r := one(unix.RTM_GETLINK, 0)
	r.linkHeader(0, 0, 0)
	r.Text(unix.IFLA_IFNAME, name)
	b, err := k.conn.Get(&r.Requests)
	if err != nil {
		return Counters{}, err
	}
	if len(b) < unix.SizeofIfInfomsg {
		return Counters{}, unix.EPROTO
	}
	for kind, v := range netlink.After(b, unix.SizeofIfInfomsg).All() {
		if kind == unix.IFLA_STATS64 {
			return parseCounters(v)
		}
	}
	return Counters{}, unix.EPROTO
}

// parseCounters parses struct rtnl_link_stats64 of linux/if_link.h, which newer kernels extend at
// its end.
func parseCounters(b []byte) (c Counters, err error) {
	if len(b) < 8*8 {
		return c, unix.EPROTO
	}
	at := func(i int) uint64 { return binary.NativeEndian.Uint64(b[8*i:]) }
	c.Receive = Traffic{Packets: at(0), Bytes: at(2), Dropped: at(6)}
	c.Transmit = Traffic{Packets: at(1), Bytes: at(3), Dropped: at(7)}
	return c, nil
}
