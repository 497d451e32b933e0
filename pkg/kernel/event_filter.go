package kernel

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"flanneld/pkg/netlink"
)

// setFilter makes the kernel drop notifications of no interest before they wake up the process:
// neighbour events of other links, of which a host with many containers has thousands, and routes
// of other tables or outside the network, of which a routing daemon changes hundreds of thousands
// at a time. Events are checked again after the filter, so a missing filter only costs time.
func (w *Watch) setFilter() {
	var indexes []int
	for i, l := range w.links {
		if w.interest.OwnsLink(l.name) {
			indexes = append(indexes, i)
		}
	}
	slices.Sort(indexes)
	networks := w.interest.Networks
	if w.filterLinks != nil && slices.Equal(indexes, w.filterLinks) && slices.Equal(networks, w.filterNetworks) {
		return
	}
	w.filterLinks, w.filterNetworks = append([]int{}, indexes...), networks
	// Without a filter all notifications pass.
	_ = w.conn.SetFilter(eventFilter(w.k.conn.Port(), indexes, networks))
}

// eventFilter returns a filter for struct nlmsghdr followed by struct ndmsg or rtmsg. Of the
// changes that the socket at port requested, it passes link events only. Of all others, it drops
// neighbour events of links that are not given, and, if there is one network and it is IPv4,
// routes of the main table other than default routes and those inside the network.
func eventFilter(port uint32, links []int, networks []netip.Prefix) *netlink.Filter {
	const (
		header   = unix.SizeofNlMsghdr
		familyAt = header + uint32(unsafe.Offsetof(unix.RtMsg{}.Family))
		lengthAt = header + uint32(unsafe.Offsetof(unix.RtMsg{}.Dst_len))
		tableAt  = header + uint32(unsafe.Offsetof(unix.RtMsg{}.Table))
		attrsAt  = header + unix.SizeofRtMsg
		indexAt  = header + uint32(unsafe.Offsetof(unix.NdMsg{}.Ifindex))
	)
	var f netlink.Filter
	f.LoadPort()
	f.Equal32(port, "own", "others")
	f.Label("own")
	f.LoadType()
	f.Equal16(unix.RTM_NEWLINK, netlink.Pass, "")
	f.Equal16(unix.RTM_DELLINK, netlink.Pass, netlink.Drop)
	f.Label("others")
	f.LoadType()
	f.Equal16(unix.RTM_NEWNEIGH, "neigh", "")
	f.Equal16(unix.RTM_DELNEIGH, "neigh", "")
	f.Equal16(unix.RTM_GETNEIGH, netlink.Drop, "") // a request to user space to resolve an address
	f.Equal16(unix.RTM_NEWROUTE, "route", "")
	f.Equal16(unix.RTM_DELROUTE, "route", netlink.Pass)
	f.Label("route")
	f.Load(tableAt, 1)
	if len(networks) == 1 && networks[0].Addr().Is4() {
		network := networks[0]
		f.JumpIf(bpf.JumpEqual, unix.RT_TABLE_MAIN, "", netlink.Drop)
		f.Load(familyAt, 1)
		f.JumpIf(bpf.JumpEqual, unix.AF_INET, "", netlink.Drop)
		f.Load(lengthAt, 1)
		f.JumpIf(bpf.JumpEqual, 0, netlink.Pass, "")
		f.JumpIf(bpf.JumpGreaterOrEqual, uint32(network.Bits()), "", netlink.Drop)
		// The destination: the extension returns the offset of the attribute whose kind is in X,
		// searching from the offset in A.
		f.Add(bpf.LoadConstant{Dst: bpf.RegA, Val: attrsAt})
		f.Add(bpf.LoadConstant{Dst: bpf.RegX, Val: unix.RTA_DST})
		f.Add(bpf.LoadExtension{Num: bpf.ExtNetlinkAttr})
		f.JumpIf(bpf.JumpEqual, 0, netlink.Pass, "") // there is none
		f.Add(bpf.TAX{})
		f.Add(bpf.LoadIndirect{Off: unix.SizeofRtAttr, Size: 4})
		f.Add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: uint32(^uint64(0) << (32 - network.Bits()))})
		first := network.Masked().Addr().As4()
		f.JumpIf(bpf.JumpEqual, binary.BigEndian.Uint32(first[:]), netlink.Pass, netlink.Drop)
	} else {
		f.JumpIf(bpf.JumpEqual, unix.RT_TABLE_MAIN, netlink.Pass, netlink.Drop)
	}
	f.Label("neigh")
	f.Load(indexAt, 4)
	for _, index := range links {
		f.Equal32(uint32(index), netlink.Pass, "")
	}
	return &f
}
