package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"flanneld/pkg/netlink"
)

// TestFullConnectionTable: when the connection tracking table is full, so that packets of new
// connections are dropped, a condition names the command. Established connections continue.
func TestFullConnectionTable(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 2, vxlanConfig, "-ip-masq=true")
	h := c.Hosts[0]
	const said = "conntrack table is nearly full"
	c.said(h.Flanneld(), 0, said)
	pinger := c.pinger(c.containers[0], c.containers[1])
	c.within(5*time.Second, "pings", func() error {
		if pinger.Stats().Received < 10 {
			return errors.New("too few")
		}
		return nil
	})
	most, err := strconv.Atoi(strings.TrimSpace(c.sh(h, "cat /proc/sys/net/netfilter/nf_conntrack_max")))
	c.must(err)
	begun := time.Now()
	c.must(h.Do(func() error { return fillConnectionTable(most) }))
	t.Logf("%s of %d entries after %v", strings.TrimSpace(c.sh(h, "cat /proc/sys/net/netfilter/nf_conntrack_count")), most, time.Since(begun).Round(time.Millisecond))
	look := "ip link add sign type bridge; ip link set sign up; ip addr add 192.0.2.1/24 dev sign; ip link del sign" // what it looks at all for
	c.sh(h, look)
	command := fmt.Sprintf(`command="sysctl -w net.netfilter.nf_conntrack_max=%d"`, 2*most)
	c.saysTimes(h.Flanneld(), 1, "level=WARN", said, command)
	before := pinger.Stats().Sent
	c.within(5*time.Second, "pings", func() error {
		if pinger.Stats().Sent < before+100 {
			return errors.New("too few")
		}
		return nil
	})
	c.lossless(pinger)
	c.must(h.Do(flushConnectionTable))
	c.sh(h, look)
	c.saysTimes(h.Flanneld(), 1, "no longer: ", said)
}

// fillConnectionTable adds connections with packets in both directions, which the kernel does not
// evict, until the table is full.
func fillConnectionTable(most int) error {
	var r netlink.Requests
	for i := range most {
		addConnection(&r, uint32(i))
	}
	return tellConnectionTable(&r)
}

// flushConnectionTable removes all connections.
func flushConnectionTable() error {
	var r netlink.Requests
	beginConnection(&r, nl.IPCTNL_MSG_CT_DELETE, 0)
	return tellConnectionTable(&r)
}

// tellConnectionTable sends requests in the namespace of the calling thread. What the kernel
// rejects, for example when the table is full, is not an error.
func tellConnectionTable(r *netlink.Requests) error {
	ns, err := netlink.CurrentNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	c, err := ns.Dial(unix.NETLINK_NETFILTER, netlink.RequestBuffer)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, err := range c.Batch(r) {
		if refusal := (*netlink.Error)(nil); err != nil && !errors.As(err, &refusal) {
			return err
		}
	}
	return nil
}

func addConnection(r *netlink.Requests, i uint32) {
	here, there := netip.AddrFrom4([4]byte{198, 18, byte(i >> 24), byte(i >> 16)}), netip.MustParseAddr("198.19.0.1")
	port := uint16(i)
	const assured = 1<<1 | 1<<2 | 1<<3 // IPS_SEEN_REPLY, IPS_ASSURED, IPS_CONFIRMED
	beginConnection(r, nl.IPCTNL_MSG_CT_NEW, unix.NLM_F_CREATE)
	r.Attrs(netlink.Attrs{}.
		Nest(nl.CTA_TUPLE_ORIG, tuple(here, there, port, 9)).Nest(nl.CTA_TUPLE_REPLY, tuple(there, here, 9, port)).
		Uint32BE(nl.CTA_TIMEOUT, 600).Uint32BE(nl.CTA_STATUS, assured))
}

func tuple(src, dst netip.Addr, from, to uint16) netlink.Attrs {
	be16 := func(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
	return netlink.Attrs{}.
		Nest(nl.CTA_TUPLE_IP, netlink.Attrs{}.Addr(nl.CTA_IP_V4_SRC, src).Addr(nl.CTA_IP_V4_DST, dst)).
		Nest(nl.CTA_TUPLE_PROTO, netlink.Attrs{}.Bytes(nl.CTA_PROTO_NUM, []byte{unix.IPPROTO_UDP}).
			Bytes(nl.CTA_PROTO_SRC_PORT, be16(from)).Bytes(nl.CTA_PROTO_DST_PORT, be16(to)))
}

func beginConnection(r *netlink.Requests, kind, flags uint16) {
	r.Begin(unix.NFNL_SUBSYS_CTNETLINK<<8|kind, flags)
	r.Put8(unix.AF_INET, unix.NFNETLINK_V0, 0, 0)
}
