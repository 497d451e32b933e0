package kernel

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"unsafe"

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
		if w.interest.Scope.OwnsLink(l.name) {
			indexes = append(indexes, i)
		}
	}
	slices.Sort(indexes)
	networks := w.interest.Scope.Networks
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
		// SKF_AD_OFF + SKF_AD_NLATTR, the offset of an extension (linux/filter.h).
		netlinkAttr = 1<<32 - 0x1000 + 12
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
	f.Load(tableAt, unix.BPF_B)
	if len(networks) == 1 && networks[0].Addr().Is4() {
		network := networks[0]
		f.JumpIf(unix.BPF_JEQ, unix.RT_TABLE_MAIN, "", netlink.Drop)
		f.Load(familyAt, unix.BPF_B)
		f.JumpIf(unix.BPF_JEQ, unix.AF_INET, "", netlink.Drop)
		f.Load(lengthAt, unix.BPF_B)
		f.JumpIf(unix.BPF_JEQ, 0, netlink.Pass, "")
		f.JumpIf(unix.BPF_JGE, uint32(network.Bits()), "", netlink.Drop)
		// The destination: the extension returns the offset of the attribute whose kind is in X,
		// searching from the offset in A.
		f.Add(unix.BPF_LD|unix.BPF_IMM, attrsAt)
		f.Add(unix.BPF_LDX|unix.BPF_IMM, unix.RTA_DST)
		f.Load(netlinkAttr, unix.BPF_W)
		f.JumpIf(unix.BPF_JEQ, 0, netlink.Pass, "") // there is none
		f.Add(unix.BPF_MISC|unix.BPF_TAX, 0)
		f.Add(unix.BPF_LD|unix.BPF_IND|unix.BPF_W, unix.SizeofRtAttr)
		f.Add(unix.BPF_ALU|unix.BPF_AND, uint32(^uint64(0)<<(32-network.Bits())))
		first := network.Masked().Addr().As4()
		f.JumpIf(unix.BPF_JEQ, binary.BigEndian.Uint32(first[:]), netlink.Pass, netlink.Drop)
	} else {
		f.JumpIf(unix.BPF_JEQ, unix.RT_TABLE_MAIN, netlink.Pass, netlink.Drop)
	}
	f.Label("neigh")
	f.Load(indexAt, unix.BPF_W)
	for _, index := range links {
		f.Equal32(uint32(index), netlink.Pass, "")
	}
	return &f
}
