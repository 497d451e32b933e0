package kernel

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// maxFiltered keeps the jumps of the socket filter within their eight bits.
const maxFiltered = 200

// filter lets the kernel drop what is of no interest before it wakes us: the
// neighbour events of other links, of which a host with many containers has
// thousands, and routes of other tables or to elsewhere, of which a routing daemon makes
// hundreds of thousands at a time. Whatever passes is looked at again, so
// that a missing filter costs time only.
func (w *Watch) filter() {
	var indexes []int
	for i, l := range w.links {
		if w.interest.Scope.OwnsLink(l.name) {
			indexes = append(indexes, i)
		}
	}
	slices.Sort(indexes)
	network := w.interest.Scope.Network
	if w.passing != nil && slices.Equal(indexes, w.passing) && network == w.leading {
		return
	}
	w.passing, w.leading = append([]int{}, indexes...), network
	// It fails only on a closed socket, of which nothing is expected.
	_ = w.conn.raw.Control(func(fd uintptr) {
		if len(indexes) <= maxFiltered {
			p := eventFilter(w.k.conn.port, indexes, network)
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
// and of the main table's routes, where the network is one of IPv4, default routes and those
// into the network only.
func eventFilter(port uint32, links []int, network netip.Prefix) []unix.SockFilter {
	const (
		typeAt   = 4
		portAt   = 12
		familyAt = unix.SizeofNlMsghdr     // rtm_family
		lengthAt = unix.SizeofNlMsghdr + 1 // rtm_dst_len
		indexAt  = unix.SizeofNlMsghdr + 4 // ndm_ifindex
		tableAt  = unix.SizeofNlMsghdr + 4 // rtm_table
		attrsAt  = unix.SizeofNlMsghdr + unix.SizeofRtMsg
		findAttr = 12 // SKF_AD_NLATTR of linux/filter.h: of the kind in X, from A on
	)
	var p bpf
	p.load(unix.BPF_W, portAt)
	p.branch(unix.BPF_JEQ, order32(port), "own", "others")
	p.label("own")
	p.load(unix.BPF_H, typeAt)
	p.branch(unix.BPF_JEQ, order16(unix.RTM_NEWLINK), "pass", "")
	p.branch(unix.BPF_JEQ, order16(unix.RTM_DELLINK), "pass", "drop")
	p.label("others")
	p.load(unix.BPF_H, typeAt)
	p.branch(unix.BPF_JEQ, order16(unix.RTM_NEWNEIGH), "neigh", "")
	p.branch(unix.BPF_JEQ, order16(unix.RTM_DELNEIGH), "neigh", "")
	p.branch(unix.BPF_JEQ, order16(unix.RTM_GETNEIGH), "drop", "") // asks user space to resolve
	p.branch(unix.BPF_JEQ, order16(unix.RTM_NEWROUTE), "route", "")
	p.branch(unix.BPF_JEQ, order16(unix.RTM_DELROUTE), "route", "pass")
	p.label("route")
	p.load(unix.BPF_B, tableAt)
	if network.IsValid() && network.Addr().Is4() {
		p.branch(unix.BPF_JEQ, unix.RT_TABLE_MAIN, "", "drop")
		p.load(unix.BPF_B, familyAt)
		p.branch(unix.BPF_JEQ, unix.AF_INET, "", "drop")
		p.load(unix.BPF_B, lengthAt)
		p.branch(unix.BPF_JEQ, 0, "pass", "")
		p.branch(unix.BPF_JGE, uint32(network.Bits()), "", "drop")
		p.add(unix.BPF_LD|unix.BPF_IMM, attrsAt)
		p.add(unix.BPF_LDX|unix.BPF_IMM, unix.RTA_DST)
		p.add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, skfAdOff+findAttr)
		p.branch(unix.BPF_JEQ, 0, "pass", "") // there is none
		p.add(unix.BPF_MISC|unix.BPF_TAX, 0)
		p.add(unix.BPF_LD|unix.BPF_W|unix.BPF_IND, unix.SizeofRtAttr)
		first := network.Masked().Addr().As4()
		p.add(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, uint32(^uint64(0)<<(32-network.Bits())))
		p.branch(unix.BPF_JEQ, binary.BigEndian.Uint32(first[:]), "pass", "drop")
	} else {
		p.branch(unix.BPF_JEQ, unix.RT_TABLE_MAIN, "pass", "drop")
	}
	p.label("neigh")
	p.load(unix.BPF_W, indexAt)
	for _, index := range links {
		p.branch(unix.BPF_JEQ, order32(uint32(index)), "pass", "")
	}
	p.label("drop")
	p.add(unix.BPF_RET|unix.BPF_K, 0)
	p.label("pass")
	p.add(unix.BPF_RET|unix.BPF_K, 1<<30)
	return p.link()
}

// skfAdOff is SKF_AD_OFF of linux/filter.h, -0x1000: above it are no bytes of the message.
const skfAdOff = 0xfffff000

// bpf is a BPF program in the making, with labels to jump to.
type bpf struct {
	code   []unix.SockFilter
	labels map[string]int
	jumps  []jump
}

type jump struct {
	at             int
	whenSo, orElse string // empty: the next instruction
}

func (p *bpf) add(code uint16, k uint32) {
	p.code = append(p.code, unix.SockFilter{Code: code, K: k})
}

func (p *bpf) load(size uint16, at uint32) { p.add(unix.BPF_LD|unix.BPF_ABS|size, at) }

func (p *bpf) branch(test uint16, value uint32, whenSo, orElse string) {
	p.jumps = append(p.jumps, jump{len(p.code), whenSo, orElse})
	p.add(unix.BPF_JMP|unix.BPF_K|test, value)
}

func (p *bpf) label(name string) {
	if p.labels == nil {
		p.labels = map[string]int{}
	}
	p.labels[name] = len(p.code)
}

// link fills in the jumps, all of which go forward.
func (p *bpf) link() []unix.SockFilter {
	for _, j := range p.jumps {
		distance := func(label string) uint8 {
			if label == "" {
				return 0
			}
			return uint8(p.labels[label] - j.at - 1)
		}
		p.code[j.at].Jt, p.code[j.at].Jf = distance(j.whenSo), distance(j.orElse)
	}
	return p.code
}

// order16 and order32 give a number of host order as BPF loads it: it takes
// everything for network order.
func order16(v uint16) uint32 {
	return uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v)))
}

func order32(v uint32) uint32 {
	return binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, v))
}
