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
	addr netip.Addr    // of the subnet, of its gateway, or of the host
	mac  dataplane.MAC // of an FDB entry
}

// objects are objects by key; the value is the MAC of a neighbour, else zero.
type objects map[object]dataplane.MAC

// A monitor follows the objects of an overlay in a kernel by its notifications (rtnetlink(7)) and
// compares them with the wanted ones. So it knows since when both are equal, without listing them.
// Nexthop objects are not followed: none of their routes exists without them.
type monitor struct {
	network netip.Prefix
	link    string // name of the device of the objects
	conn    *netlink.Conn

	mu         sync.Mutex
	index      int // index of the device; 0 if there is none
	have, want objects
	differing  int           // number of objects that differ
	since      time.Time     // time since which none differs
	received   int           // number of notifications about objects
	delay      time.Duration // time between two readings; leaves the processors to others
	failed     error
}

// monitorBuffer is a socket buffer for the notifications of a hundred thousand changes, in bytes.
const monitorBuffer = 256 << 20

// openMonitor opens a monitor of an overlay's objects on a link of a host, which must have none
// yet. The caller closes it.
func openMonitor(h *lab.Host, network netip.Prefix, link string) (*monitor, error) {
	m := &monitor{network: network, link: link, have: objects{}, want: objects{}}
	err := h.Do(func() error {
		if d, err := net.InterfaceByName(link); err == nil {
			m.index = d.Index
		}
		ns, err := netlink.CurrentNamespace()
		if err != nil {
			return err
		}
		defer ns.Close()
		if m.conn, err = ns.Dial(unix.NETLINK_ROUTE, monitorBuffer); err != nil {
			return err
		}
		return errors.Join(m.conn.Join(unix.RTNLGRP_LINK), m.conn.Join(unix.RTNLGRP_NEIGH), m.conn.Join(unix.RTNLGRP_IPV4_ROUTE))
	})
	if err != nil {
		if m.conn != nil {
			m.conn.Close()
		}
		return nil, fmt.Errorf("follow the kernel of %s: %w", h.Name, err)
	}
	go m.run()
	return m, nil
}

func (m *monitor) close() { m.conn.Close() }

// run reads until the socket is closed or fails.
func (m *monitor) run() {
	for {
		b, err := m.conn.Receive()
		for ; err == nil && b != nil; b, err = m.conn.Pending() {
			m.handle(b)
		}
		if err != nil {
			m.mu.Lock()
			m.failed = err
			m.mu.Unlock()
			return
		}
		m.pause()
	}
}

func (m *monitor) pause() {
	m.mu.Lock()
	d := m.delay
	m.mu.Unlock()
	if d > 0 {
		<-time.After(d)
	}
}

// handle handles the messages of a datagram.
func (m *monitor) handle(b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for h, body := range netlink.Messages(b) {
		switch h.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			m.handleLink(h.Type, body)
		case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
			m.handleNeigh(h.Type, body)
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			m.handleRoute(h.Type, body)
		}
	}
}

// handleLink follows the device. Its routes are removed with it, without notifications from the
// kernel.
func (m *monitor) handleLink(kind uint16, b []byte) {
	if len(b) < unix.SizeofIfInfomsg || b[0] == unix.AF_BRIDGE {
		return
	}
	index := int(binary.NativeEndian.Uint32(b[4:]))
	for a, v := range netlink.After(b, unix.SizeofIfInfomsg).All() {
		if a == unix.IFLA_IFNAME && v.Text() == m.link && kind == unix.RTM_NEWLINK {
			m.index = index
		}
	}
	if kind == unix.RTM_DELLINK && index == m.index {
		m.index = 0
		for o := range maps.Clone(m.have) {
			m.record(o, dataplane.MAC{}, false)
		}
	}
}

func (m *monitor) handleNeigh(kind uint16, b []byte) {
	if len(b) < unix.SizeofNdMsg || int(binary.NativeEndian.Uint32(b[4:])) != m.index {
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
	m.record(o, mac, kind == unix.RTM_NEWNEIGH && permanent)
}

func (m *monitor) handleRoute(kind uint16, b []byte) {
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
	// A route with a nexthop object that is being deleted has no link any more.
	if m.network.Contains(o.addr) && (index == m.index || kind == unix.RTM_DELROUTE) {
		m.record(o, dataplane.MAC{}, kind == unix.RTM_NEWROUTE)
	}
}

// record records that an object exists, or that it does not.
func (m *monitor) record(o object, mac dataplane.MAC, there bool) {
	m.received++
	before := m.differs(o)
	if there {
		m.have[o] = mac
	} else {
		delete(m.have, o)
	}
	m.count(before, m.differs(o))
}

// expect adds objects to the wanted ones, or removes them.
func (m *monitor) expect(there bool, some objects) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for o, mac := range some {
		before := m.differs(o)
		if there {
			m.want[o] = mac
		} else {
			delete(m.want, o)
		}
		m.count(before, m.differs(o))
	}
}

func (m *monitor) differs(o object) bool {
	have, is := m.have[o]
	want, ought := m.want[o]
	return is != ought || have != want
}

func (m *monitor) count(before, now bool) {
	switch {
	case before && !now:
		if m.differing--; m.differing == 0 {
			m.since = time.Now()
		}
	case now && !before:
		m.differing++
	}
}

// setDelay sets the time between two readings of notifications. A measured time can be too late by
// this much.
func (m *monitor) setDelay(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.delay = d
}

// await waits until the kernel has the wanted objects, since a time later than after, and returns
// that time.
func (m *monitor) await(ctx context.Context, after time.Time, limit time.Duration) (at time.Time, err error) {
	off := 0
	err = await(ctx, "the kernel to hold what is wanted", limit, func() (bool, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		at, off = m.since, m.differing
		return off == 0 && at.After(after), m.failed
	})
	if err != nil {
		err = fmt.Errorf("%w: %d of %d objects differ", err, off, len(m.want))
	}
	return at, err
}

// events returns the number of notifications about objects so far.
func (m *monitor) events() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.received
}

// wanted returns a copy of the wanted objects.
func (m *monitor) wanted() objects {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.want)
}
