package kernel

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// maxFiltered keeps the jumps of the socket filter within their eight bits.
const maxFiltered = 200

// filter lets the kernel drop what is of no interest before it wakes us: the
// neighbour events of other links, of which a host with many containers has
// thousands, and routes of other tables. Whatever passes is looked at again, so
// that a missing filter costs time only.
func (w *Watch) filter() {
	var indexes []int
	for i, l := range w.links {
		if w.interest.Scope.OwnsLink(l.name) {
			indexes = append(indexes, i)
		}
	}
	slices.Sort(indexes)
	if w.passing != nil && slices.Equal(indexes, w.passing) {
		return
	}
	w.passing = append([]int{}, indexes...)
	// It fails only on a closed socket, of which nothing is expected.
	_ = w.conn.raw.Control(func(fd uintptr) {
		if len(indexes) <= maxFiltered {
			p := eventFilter(w.k.conn.port, indexes)
			prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
			if unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog) == nil {
				return
			}
		}
		// No filter at all, rather than the one before, which drops too much.
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	})
}

// eventFilter is a classic BPF program (kernel documentation, "Linux Socket
// Filtering aka Berkeley Packet Filter") over one notification: struct nlmsghdr,
// then struct ndmsg or rtmsg. Of what the socket at port asked for itself it passes
// the events of links only; of all else, neighbour events of the given links only,
// and routes of the main table only.
func eventFilter(port uint32, links []int) []unix.SockFilter {
	const (
		typeAt  = 4
		portAt  = 12
		indexAt = unix.SizeofNlMsghdr + 4 // ndm_ifindex
		tableAt = unix.SizeofNlMsghdr + 4 // rtm_table
	)
	const others, route, neigh = 5, 11, 13 // places in the program
	drop := neigh + 1 + len(links)
	pass := drop + 1

	var p []unix.SockFilter
	load := func(size uint16, at uint32) {
		p = append(p, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_ABS | size, K: at})
	}
	branch := func(value uint32, equal, other int) {
		next := len(p) + 1
		p = append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jt: uint8(equal - next), Jf: uint8(other - next)})
	}
	result := func(bytes uint32) {
		p = append(p, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: bytes})
	}
	load(unix.BPF_W, portAt)
	branch(order32(port), 2, others)
	load(unix.BPF_H, typeAt)
	branch(order16(unix.RTM_NEWLINK), pass, 4)
	branch(order16(unix.RTM_DELLINK), pass, drop)
	load(unix.BPF_H, typeAt)
	branch(order16(unix.RTM_NEWNEIGH), neigh, 7)
	branch(order16(unix.RTM_DELNEIGH), neigh, 8)
	branch(order16(unix.RTM_GETNEIGH), drop, 9) // asks user space to resolve
	branch(order16(unix.RTM_NEWROUTE), route, 10)
	branch(order16(unix.RTM_DELROUTE), route, pass)
	load(unix.BPF_B, tableAt)
	branch(unix.RT_TABLE_MAIN, pass, drop)
	load(unix.BPF_W, indexAt)
	for _, index := range links {
		branch(order32(uint32(index)), pass, len(p)+1)
	}
	result(0)
	result(1 << 30)
	return p
}

// order16 and order32 give a number of host order as BPF loads it: it takes
// everything for network order.
func order16(v uint16) uint32 {
	return uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v)))
}

func order32(v uint32) uint32 {
	return binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, v))
}
