package kernel

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/netlink"
)

// skipStats is RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h. Counters are most of the kernel's data
// about a link.
const skipStats = 1 << 3

func init() {
	register(dataplane.KindLink, &handler{
		read:  (*reader).ourLinks,
		apply: (*Kernel).applyLink,

		groups:   []int{unix.RTNLGRP_LINK},
		messages: []uint16{unix.RTM_NEWLINK, unix.RTM_DELLINK},
		event:    (*Watch).linkEvent,
	})
}

// device is a link as the kernel reports it.
type device struct {
	name   string
	index  int
	parent int // index of the underlay device, whose name is in link
	master int // index of the bridge that it is a port of; 0 if none
	tun    TUN
	// carrier is IFF_RUNNING and IFF_LOWER_UP of netdevice(7). If both are clear, the kernel
	// removes the link's nexthops and the routes through them without an event of their own, while
	// other routes stay (net/ipv4/nexthop.c, nh_netdev_event).
	carrier uint32
	link    dataplane.Link
}

func parseDevice(b []byte) (d device, ok bool) {
	if len(b) < unix.SizeofIfInfomsg {
		return d, false
	}
	m := nl.DeserializeIfInfomsg(b)
	d.index = int(m.Index)
	d.link.Up = m.Flags&unix.IFF_UP != 0
	d.carrier = m.Flags & (unix.IFF_RUNNING | unix.IFF_LOWER_UP)
	d.link.Kind = "device"
	for kind, v := range netlink.After(b, unix.SizeofIfInfomsg).All() {
		switch kind {
		case unix.IFLA_IFNAME:
			d.name = v.Text()
		case unix.IFLA_MTU:
			d.link.MTU = v.Number()
		case unix.IFLA_ADDRESS:
			d.link.MAC = v.MAC()
		case unix.IFLA_MASTER:
			d.master = v.Number()
		case unix.IFLA_LINKINFO:
			d.parseInfo(v)
		}
	}
	return d, d.name != ""
}

func (d *device) parseInfo(b netlink.Value) {
	info := b.Map()
	if kind, ok := info[unix.IFLA_INFO_KIND]; ok {
		d.link.Kind = kind.Text()
	}
	switch data := info[unix.IFLA_INFO_DATA]; d.link.Kind {
	case dataplane.KindVXLAN:
		d.parseVXLAN(data)
	case dataplane.KindTUN:
		values := data.Map()
		d.tun.TAP = values[unix.IFLA_TUN_TYPE].Number() == unix.IFF_TAP
		d.tun.MultiQueue = values[unix.IFLA_TUN_MULTI_QUEUE].Number() != 0
	}
}

func (d *device) parseVXLAN(data netlink.Value) {
	for kind, v := range data.All() {
		switch kind {
		case unix.IFLA_VXLAN_ID:
			d.link.VNI = v.Number()
		case unix.IFLA_VXLAN_LINK:
			d.parent = v.Number()
		case unix.IFLA_VXLAN_LOCAL, unix.IFLA_VXLAN_LOCAL6:
			d.link.Local = v.Addr()
		case unix.IFLA_VXLAN_LEARNING:
			d.link.Learning = v.Number() != 0
		case unix.IFLA_VXLAN_PORT:
			d.link.Port = int(v.Uint16BE())
		case unix.IFLA_VXLAN_GBP:
			d.link.GBP = true
		}
	}
}

// byName reads a link. It returns unix.ENODEV if there is none.
func (k *Kernel) byName(name string) (device, error) {
	r := linkRequest(0)
	r.Text(unix.IFLA_IFNAME, name)
	return k.device(r)
}

func (k *Kernel) byIndex(index int) (device, error) {
	return k.device(linkRequest(index))
}

func linkRequest(index int) *requests {
	r := one(unix.RTM_GETLINK, 0)
	r.linkHeader(index, 0, 0)
	r.Uint32(unix.IFLA_EXT_MASK, skipStats)
	return r
}

// linkHeader writes struct ifinfomsg.
func (r *requests) linkHeader(index int, flags, change uint32) {
	r.Put8(unix.AF_UNSPEC, 0)
	r.Put16(0)
	r.Put32(uint32(index))
	r.Put32(flags)
	r.Put32(change)
}

func (k *Kernel) device(r *requests) (device, error) {
	b, err := k.conn.Get(&r.Requests)
	if err != nil {
		return device{}, err
	}
	d, ok := parseDevice(b)
	if !ok {
		return device{}, unix.EPROTO
	}
	return d, nil
}

// isNoLink reports whether an error means that there is no such link. Invalid names cause other
// errors.
func isNoLink(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE)
}

// existing reads those of the named links that exist.
func (k *Kernel) existing(names []string) (all []device, err error) {
	for _, name := range names {
		switch d, err := k.byName(name); {
		case err == nil:
			all = append(all, d)
		case !isNoLink(err):
			return nil, fmt.Errorf("read link %s: %w", name, err)
		}
	}
	return all, nil
}

// maxSingleReads is the number of links up to which single reads cost less than a list of all
// links.
const maxSingleReads = 256

// find adds the existing links of the wanted indexes.
func (k *Kernel) find(links map[int]device, wanted map[int]bool) error {
	if len(wanted) > maxSingleReads {
		all, err := k.devices()
		if err != nil {
			return err
		}
		for _, d := range all {
			if wanted[d.index] {
				links[d.index] = d
			}
		}
	}
	for index := range wanted {
		if _, known := links[index]; known || index == 0 {
			continue
		}
		switch d, err := k.byIndex(index); {
		case err == nil:
			links[index] = d
		case !errors.Is(err, unix.ENODEV):
			return fmt.Errorf("read link %d: %w", index, err)
		}
	}
	return nil
}

// LinkNames returns the names of all links. It may miss one while links come and go.
func (k *Kernel) LinkNames() ([]string, error) {
	all, err := k.devices()
	names := make([]string, 0, len(all))
	for _, d := range all {
		names = append(names, d.name)
	}
	return names, err
}

// devices lists all links. It may miss one while links come and go.
func (k *Kernel) devices() ([]device, error) {
	var all []device
	err := k.conn.Dump(&linkRequest(0).Requests, func() { all = nil }, func(b []byte) {
		if d, ok := parseDevice(b); ok {
			all = append(all, d)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return all, nil
}

// nameOf returns the name of a link, or "" if the link is gone, because then the objects that refer
// to it are being removed, too.
func (g *reader) nameOf(index int) (string, error) {
	if name, ok := g.names[index]; ok {
		return name, nil
	}
	d, err := g.k.byIndex(index)
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return "", fmt.Errorf("read link %d: %w", index, err)
	}
	g.names[index] = d.name
	return d.name, nil
}

// createLink creates a link in one request: it exists with address, MTU and state, or not at all.
func (k *Kernel) createLink(name string, l dataplane.Link) error {
	if l.Kind != dataplane.KindVXLAN {
		return fmt.Errorf("type %q: %w", l.Kind, unix.EOPNOTSUPP)
	}
	parent, err := k.byName(l.Parent)
	if err != nil {
		return fmt.Errorf("find parent %s: %w", l.Parent, err)
	}
	r := one(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	// udev does not change an address that was set at creation (systemd.link(5), MACAddressPolicy=).
	r.linkAttrs(0, l, dataplane.Link{})
	r.Text(unix.IFLA_IFNAME, name)
	info := r.Open(unix.IFLA_LINKINFO)
	r.Bytes(unix.IFLA_INFO_KIND, []byte(l.Kind))
	r.vxlanData(l, parent.index)
	r.Close(info)
	return k.conn.Do(&r.Requests)
}

// linkAttrs writes the header of a link, and those of the common attributes that differ from have.
func (r *requests) linkAttrs(index int, l, have dataplane.Link) {
	flags := uint32(0)
	if l.Up {
		flags = unix.IFF_UP
	}
	r.linkHeader(index, flags, unix.IFF_UP)
	// Even setting the same MAC flushes the neighbour table.
	if l.MAC != (dataplane.MAC{}) && l.MAC != have.MAC {
		r.Bytes(unix.IFLA_ADDRESS, l.MAC[:])
	}
	if l.MTU != 0 && l.MTU != have.MTU {
		r.Uint32(unix.IFLA_MTU, uint32(l.MTU))
	}
}

func (r *requests) vxlanData(l dataplane.Link, parent int) {
	data := r.Open(unix.IFLA_INFO_DATA)
	r.Uint32(unix.IFLA_VXLAN_ID, uint32(l.VNI))
	r.Uint32(unix.IFLA_VXLAN_LINK, uint32(parent))
	if l.Local.IsValid() {
		kind := uint16(unix.IFLA_VXLAN_LOCAL)
		if l.Local.Is6() {
			kind = unix.IFLA_VXLAN_LOCAL6
		}
		r.Addr(kind, l.Local)
	}
	r.Bytes(unix.IFLA_VXLAN_LEARNING, flag(l.Learning))
	if l.Port != 0 {
		r.Bytes(unix.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, uint16(l.Port)))
	}
	if l.GBP {
		r.Bytes(unix.IFLA_VXLAN_GBP, nil)
	}
	r.Close(data)
}

func flag(on bool) []byte {
	if on {
		return []byte{1}
	}
	return []byte{0}
}

// changeLink changes the attributes of a link that can be changed.
func (k *Kernel) changeLink(name string, l dataplane.Link) error {
	d, err := k.byName(name)
	if err != nil {
		return err
	}
	r := one(unix.RTM_NEWLINK, 0)
	r.linkAttrs(d.index, l, d.link)
	if l.Learning != d.link.Learning {
		info := r.Open(unix.IFLA_LINKINFO)
		r.Bytes(unix.IFLA_INFO_KIND, []byte(l.Kind))
		data := r.Open(unix.IFLA_INFO_DATA)
		r.Bytes(unix.IFLA_VXLAN_LEARNING, flag(l.Learning))
		r.Close(data)
		r.Close(info)
	}
	return k.conn.Do(&r.Requests)
}

// verify reads a link again: a program that renames new devices or changes their address may have
// intervened.
func (k *Kernel) verify(name string, l dataplane.Link) (device, error) {
	d, err := k.byName(name)
	switch {
	case err != nil:
	case l.MAC != (dataplane.MAC{}) && d.link.MAC != l.MAC:
		err = fmt.Errorf("address is %s instead of %s, another program has changed it: %w", d.link.MAC, l.MAC, unix.EBUSY)
	case l.MTU != 0 && d.link.MTU != l.MTU:
		// The kernel lowers an MTU that exceeds that of the parent.
		err = fmt.Errorf("mtu is %d instead of %d: %w", d.link.MTU, l.MTU, unix.ERANGE)
	}
	return d, err
}

func (k *Kernel) deleteLink(name string) error {
	// By index, because another device may have the name by now.
	d, err := k.byName(name)
	if err != nil {
		return err
	}
	r := one(unix.RTM_DELLINK, 0)
	r.linkHeader(d.index, 0, 0)
	return k.conn.Do(&r.Requests)
}

// ourLinks reads the links of the scope, and the names of the links that they depend on.
func (g *reader) ourLinks() error {
	underlay, err := g.k.existing(g.scope.Underlay)
	if err != nil {
		return err
	}
	for _, d := range underlay {
		g.names[d.index] = d.name
	}
	ours, err := g.k.existing(g.scope.Links)
	for _, d := range ours {
		if d.parent != 0 {
			if d.link.Parent, err = g.nameOf(d.parent); err != nil {
				return err
			}
			d.link.Parent = cmp.Or(d.link.Parent, "if"+strconv.Itoa(d.parent)) // in another namespace
		}
		g.names[d.index], g.links[d.index] = d.name, d.name
		g.s.Links[d.name] = d.link
	}
	return err
}

func (k *Kernel) applyLink(op dataplane.Op) error {
	name, link := dataplane.KindLink.Of(op)
	var err error
	switch op.Verb {
	case dataplane.Del:
		return k.deleteLink(name)
	case dataplane.Set:
		err = k.changeLink(name, link)
	default:
		err = k.createLink(name, link)
	}
	if err != nil {
		return err
	}
	d, err := k.verify(name, link)
	if err == nil && op.Verb == dataplane.Put { // the FDB of a new link is empty
		k.fdbCache.mu.Lock()
		defer k.fdbCache.mu.Unlock()
		k.fdbCache.links[d.index] = map[dataplane.MAC]netip.Addr{}
	}
	return err
}
