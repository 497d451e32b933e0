package kernel

import (
	"maps"
	"net/netip"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
)

func init() {
	register(dataplane.KindFDB, &handler{
		read: func(g *reader) error {
			g.k.fdbCache.retain(g.links)
			return g.onLinks("fdb", g.fdb)
		},
		request: (*requests).fdb,
		applied: func(k *Kernel, op dataplane.Op, index int) { k.fdbCache.update(op, index) },
		limit:   limitOfFDB,
	})
}

// limitOfFDB explains that addrcnt has reached addrmax, which vxlan_nl2conf does not allow to change
// (drivers/net/vxlan/vxlan_core.c, vxlan_fdb_create).
func limitOfFDB(dataplane.Op) (unix.Errno, string) {
	return unix.ENOSPC, "the link was created with a limit, maxaddress in ip-link(8), and must be created again without it"
}

func (r *requests) fdb(op dataplane.Op, index int) {
	f, _ := dataplane.KindFDB.Of(op)
	r.verb(op.Verb, unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH)
	r.neighHeader(unix.NdMsg{Family: unix.AF_BRIDGE, Ifindex: int32(index), State: unix.NUD_PERMANENT, Flags: unix.NTF_SELF})
	r.Bytes(unix.NDA_LLADDR, f.MAC[:])
	r.Addr(unix.NDA_DST, f.Dst)
}

func (g *reader) fdb(name string, index int) error {
	k := g.k
	var known map[dataplane.MAC]netip.Addr
	reset := func() {
		known = make(map[dataplane.MAC]netip.Addr, len(k.fdbCache.links[index]))
		maps.DeleteFunc(g.s.FDB, func(f dataplane.FDB, _ struct{}) bool { return f.Link == name })
	}
	k.fdbCache.mu.Lock()
	defer k.fdbCache.mu.Unlock()
	err := k.neighbors(unix.AF_BRIDGE, index, reset, func(n neighbor) {
		if n.family != unix.AF_BRIDGE || !n.self {
			return
		}
		addRemote(known, n)
		if n.forwards() {
			g.s.FDB[dataplane.FDB{Link: name, MAC: n.mac, Dst: n.dst}] = struct{}{}
		}
	})
	if err == nil {
		k.fdbCache.links[index] = known
	}
	return err
}

// forwards reports whether n has the form of a dataplane.FDB. An entry with its own port or VNI
// does not; it is omitted from a reading, and replaced if an entry is wanted in its place.
func (n neighbor) forwards() bool {
	return n.family == unix.AF_BRIDGE && n.permanent() && n.self && n.dst.IsValid() && !n.other
}
