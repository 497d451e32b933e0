package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
)

// TestFullConnectionTable: when the kernel can track no more connections, and so drops packets of new
// ones, that is named with the command. What runs goes on.
func TestFullConnectionTable(t *testing.T) {
	c := newCluster(t, lab.Options{Hosts: 2})
	h := c.Hosts[0]
	c.put("config", vxlanConfig)
	c.must(c.StartAll(c.ctx, "-ip-masq=true"))
	c.addContainers()
	c.waitAllPairs()
	const said = "table of tracked connections is nearly full"
	if n := logged(h, said); n > 0 {
		t.Errorf("said %d times before:\n%s", n, h.Flanneld().Logs())
	}
	pinger, err := c.containers[0].StartPinger(c.containers[1].Addr, 10*time.Millisecond)
	c.must(err)
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
	c.within(10*time.Second, "it is named", func() error {
		if n := logged(h, "level=WARN", said, command); n != 1 {
			return fmt.Errorf("said %d times:\n%s", n, h.Flanneld().Logs())
		}
		return nil
	})
	before := pinger.Stats().Sent
	c.within(5*time.Second, "pings", func() error {
		if pinger.Stats().Sent < before+100 {
			return errors.New("too few")
		}
		return nil
	})
	if s := pinger.Stop(); s.Lost > 0 {
		t.Errorf("lost %d of %d pings", s.Lost, s.Sent)
	}
	c.must(h.Do(flushConnectionTable))
	c.sh(h, look)
	c.within(10*time.Second, "it is over", func() error {
		if n := logged(h, "no longer: ", said); n != 1 {
			return fmt.Errorf("over %d times:\n%s", n, h.Flanneld().Logs())
		}
		return nil
	})
}

// fillConnectionTable adds connections that have seen packets in both directions, which the kernel
// does not give up for new ones, until no more fit.
func fillConnectionTable(most int) error {
	const batch = 200
	return withNetfilterSocket(func(send func([]byte) error) error {
		for from := 0; from < most; from += batch {
			var b []byte
			for i := from; i < from+batch; i++ {
				b = append(b, newConnection(uint32(i))...)
			}
			if err := send(b); err != nil {
				return err
			}
		}
		return nil
	})
}

// flushConnectionTable removes all connections.
func flushConnectionTable() error {
	return withNetfilterSocket(func(send func([]byte) error) error {
		return send(conntrackMessage(nl.IPCTNL_MSG_CT_DELETE, 0))
	})
}

// withNetfilterSocket opens a socket in the namespace of the calling thread. The kernel has done what
// it was sent when send returns; errors, as of a full table, are not read.
func withNetfilterSocket(do func(send func([]byte) error) error) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return do(func(b []byte) error { return unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) })
}

func newConnection(i uint32) []byte {
	here, there := net.IPv4(198, 18, byte(i>>24), byte(i>>16)).To4(), net.IPv4(198, 19, 0, 1).To4()
	port := uint16(i)
	const assured = 1<<1 | 1<<2 | 1<<3 // IPS_SEEN_REPLY, IPS_ASSURED, IPS_CONFIRMED
	be32 := func(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
	return conntrackMessage(nl.IPCTNL_MSG_CT_NEW, unix.NLM_F_CREATE,
		tuple(nl.CTA_TUPLE_ORIG, here, there, port, 9), tuple(nl.CTA_TUPLE_REPLY, there, here, 9, port),
		nl.NewRtAttr(nl.CTA_TIMEOUT, be32(600)), nl.NewRtAttr(nl.CTA_STATUS, be32(assured)))
}

func tuple(kind int, src, dst net.IP, from, to uint16) *nl.RtAttr {
	be16 := func(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
	a := nl.NewRtAttr(kind|unix.NLA_F_NESTED, nil)
	ip := a.AddRtAttr(nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, nil)
	ip.AddRtAttr(nl.CTA_IP_V4_SRC, src)
	ip.AddRtAttr(nl.CTA_IP_V4_DST, dst)
	proto := a.AddRtAttr(nl.CTA_TUPLE_PROTO|unix.NLA_F_NESTED, nil)
	proto.AddRtAttr(nl.CTA_PROTO_NUM, []byte{unix.IPPROTO_UDP})
	proto.AddRtAttr(nl.CTA_PROTO_SRC_PORT, be16(from))
	proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, be16(to))
	return a
}

func conntrackMessage(kind, flags int, attrs ...*nl.RtAttr) []byte {
	r := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|kind, flags|unix.NLM_F_REQUEST)
	r.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0})
	for _, a := range attrs {
		r.AddData(a)
	}
	return r.Serialize()
}
