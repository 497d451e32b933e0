package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/lab"
	"flanneld/pkg/netlink"
)

// An object is the key of a route, a neighbour or an FDB entry of an overlay.
type object struct {
	kind dataplane.Kind
	addr netip.Addr    // of the subnet, the gateway in it, the host
	mac  dataplane.MAC // of an FDB entry
}

// objects are keys with what stands there, the MAC of a neighbour.
type objects map[object]dataplane.MAC

// A ledger holds what a kernel holds for an overlay, by its notifications (rtnetlink(7)), beside what is wanted there. So
// it knows since when the two are the same, without the cost of a listing. A nexthop object has no entry: none of its routes
// is there without it.
type ledger struct {
	network netip.Prefix
	link    string // device of the objects
	conn    *netlink.Conn

	mu         sync.Mutex
	index      int // of the device; 0 while there is none
	have, want objects
	off        int           // objects that differ
	since      time.Time     // when the last of them stopped to
	heard      int           // notifications about objects
	gather     time.Duration // let come together before they are read, to leave the processors to others
	failed     error
}

// ledgerBuffer takes the notifications of a hundred thousand changes (bytes).
const ledgerBuffer = 256 << 20

// openLedger begins an account of an overlay's objects by a link of a host, which has none yet; close it.
func openLedger(h *lab.Host, network netip.Prefix, link string) (*ledger, error) {
	l := &ledger{network: network, link: link, have: objects{}, want: objects{}}
	err := h.Do(func() error {
		if d, err := net.InterfaceByName(link); err == nil {
			l.index = d.Index
		}
		ns, err := netlink.CurrentNamespace()
		if err != nil {
			return err
		}
		defer ns.Close()
		if l.conn, err = ns.Dial(unix.NETLINK_ROUTE, ledgerBuffer); err != nil {
			return err
		}
		return errors.Join(l.conn.Join(unix.RTNLGRP_LINK), l.conn.Join(unix.RTNLGRP_NEIGH), l.conn.Join(unix.RTNLGRP_IPV4_ROUTE))
	})
	if err != nil {
		if l.conn != nil {
			l.conn.Close()
		}
		return nil, fmt.Errorf("follow the kernel of %s: %w", h.Name, err)
	}
	go l.run()
	return l, nil
}

func (l *ledger) close() { l.conn.Close() }

// run reads until the socket is closed or fails.
func (l *ledger) run() {
	for {
		b, err := l.conn.Receive()
		for ; err == nil && b != nil; b, err = l.conn.Pending() {
			l.take(b)
		}
		if err != nil {
			l.mu.Lock()
			l.failed = err
			l.mu.Unlock()
			return
		}
		l.pause()
	}
}

func (l *ledger) pause() {
	l.mu.Lock()
	d := l.gather
	l.mu.Unlock()
	if d > 0 {
		<-time.After(d)
	}
}

// take reads the messages of a datagram.
func (l *ledger) take(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for h, body := range netlink.Messages(b) {
		switch h.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			l.takeLink(h.Type, body)
		case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
			l.takeNeigh(h.Type, body)
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			l.takeRoute(h.Type, body)
		}
	}
}

// takeLink follows the device. With it go the routes, of which the kernel says nothing.
func (l *ledger) takeLink(kind uint16, b []byte) {
	if len(b) < unix.SizeofIfInfomsg || b[0] == unix.AF_BRIDGE {
		return
	}
	index := int(binary.NativeEndian.Uint32(b[4:]))
	for a, v := range netlink.After(b, unix.SizeofIfInfomsg).All() {
		if a == unix.IFLA_IFNAME && v.Text() == l.link && kind == unix.RTM_NEWLINK {
			l.index = index
		}
	}
	if kind == unix.RTM_DELLINK && index == l.index {
		l.index = 0
		for o := range maps.Clone(l.have) {
			l.note(o, dataplane.MAC{}, false)
		}
	}
}

func (l *ledger) takeNeigh(kind uint16, b []byte) {
	if len(b) < unix.SizeofNdMsg || int(binary.NativeEndian.Uint32(b[4:])) != l.index {
		return
	}
	o, mac := object{kind: dataplane.KindNeigh}, dataplane.MAC{}
	if b[0] == unix.AF_BRIDGE {
		o.kind = dataplane.KindFDB
	}
	for a, v := range netlink.After(b, unix.SizeofNdMsg).All() {
		switch a {
		case unix.NDA_DST:
			o.addr = v.Addr()
		case unix.NDA_LLADDR:
			mac = v.MAC()
		}
	}
	if !o.addr.Is4() || o.addr.IsMulticast() {
		return
	}
	if o.kind == dataplane.KindFDB {
		o.mac, mac = mac, o.mac
	}
	permanent := binary.NativeEndian.Uint16(b[8:])&unix.NUD_PERMANENT != 0
	l.note(o, mac, kind == unix.RTM_NEWNEIGH && permanent)
}

func (l *ledger) takeRoute(kind uint16, b []byte) {
	if len(b) < unix.SizeofRtMsg || b[4] != unix.RT_TABLE_MAIN || b[7] != unix.RTN_UNICAST {
		return
	}
	o := object{kind: dataplane.KindRoute}
	index := 0
	for a, v := range netlink.After(b, unix.SizeofRtMsg).All() {
		switch a {
		case unix.RTA_DST:
			o.addr = v.Addr()
		case unix.RTA_OIF:
			index = v.Number()
		}
	}
	// A route by a nexthop object that is just being deleted has no link any more.
	if l.network.Contains(o.addr) && (index == l.index || kind == unix.RTM_DELROUTE) {
		l.note(o, dataplane.MAC{}, kind == unix.RTM_NEWROUTE)
	}
}

// note takes it that an object is there, or is not.
func (l *ledger) note(o object, mac dataplane.MAC, there bool) {
	l.heard++
	before := l.differs(o)
	if there {
		l.have[o] = mac
	} else {
		delete(l.have, o)
	}
	l.settle(before, l.differs(o))
}

// expect has objects of a peer wanted, or wanted no more.
func (l *ledger) expect(there bool, some objects) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for o, mac := range some {
		before := l.differs(o)
		if there {
			l.want[o] = mac
		} else {
			delete(l.want, o)
		}
		l.settle(before, l.differs(o))
	}
}

func (l *ledger) differs(o object) bool {
	have, is := l.have[o]
	want, ought := l.want[o]
	return is != ought || have != want
}

func (l *ledger) settle(before, now bool) {
	switch {
	case before && !now:
		if l.off--; l.off == 0 {
			l.since = time.Now()
		}
	case now && !before:
		l.off++
	}
}

// collect sets how long notifications gather before they are read, which is as late as a time may be.
func (l *ledger) collect(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gather = d
}

// await waits until the kernel holds what is wanted, and has since a time after another, and says when that was.
func (l *ledger) await(ctx context.Context, after time.Time, limit time.Duration) (at time.Time, err error) {
	off := 0
	err = await(ctx, "the kernel to hold what is wanted", limit, func() (bool, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		at, off = l.since, l.off
		return off == 0 && at.After(after), l.failed
	})
	if err != nil {
		err = fmt.Errorf("%w: %d of %d objects differ", err, off, len(l.want))
	}
	return at, err
}

// events is the number of notifications about objects so far.
func (l *ledger) events() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.heard
}

// wanted is a copy of what is wanted.
func (l *ledger) wanted() objects {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.want)
}
