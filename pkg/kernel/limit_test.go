package kernel

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
)

func TestLimitsAreNamed(t *testing.T) {
	four, six := netip.MustParseAddr("10.5.2.0"), netip.MustParseAddr("fd00:5::")
	neigh := func(a netip.Addr) dataplane.Op {
		return dataplane.KindNeigh.Put(dataplane.NeighKey{IP: a}, dataplane.MAC{})
	}
	route := func(a netip.Addr) dataplane.Op {
		return dataplane.KindRoute.Put(dataplane.RouteKey{Dst: netip.PrefixFrom(a, 64/8)}, dataplane.Route{})
	}
	deleted := neigh(four)
	deleted.Verb = dataplane.Del
	for _, c := range []struct {
		op    dataplane.Op
		errno unix.Errno
		text  string
	}{
		{neigh(four), unix.ENOBUFS, "net.ipv4.neigh.default.gc_thresh3"},
		{neigh(six), unix.ENOBUFS, "net.ipv6.neigh.default.gc_thresh3"},
		{neigh(four), unix.EINVAL, ""},
		{deleted, unix.ENOBUFS, ""},
		{dataplane.KindFDB.Put(dataplane.FDB{}, struct{}{}), unix.ENOSPC, "maxaddress"},
		{route(six), unix.ENOMEM, "net.ipv6.route.max_size"},
		{route(four), unix.ENOMEM, ""},
		{dataplane.KindNextHop.Put(0, dataplane.NextHop{}), unix.ENOMEM, ""},
	} {
		err := explain(c.op, c.errno)
		if named := err.Error() != c.errno.Error(); !errors.Is(err, c.errno) || named != (c.text != "") || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: got %v, want a word about %q", c.op.Object(), err, c.text)
		}
	}
}

// A link that was created with a limit of ten addresses takes ten, reports that, and does not
// affect other operations.
func TestLinkWithALimit(t *testing.T) {
	b := newBed(t)
	r := chance(t)
	link := vxlanLink(r)
	b.addVXLAN(link, 10)
	want := wantPeers(r, link, 0)
	for i := range byte(20) {
		mac, gw := dataplane.MAC{2, 5: i}, netip.AddrFrom4([4]byte{10, 5, 2 + i, 0})
		want.FDB[dataplane.FDB{Link: overlay, MAC: mac, Dst: netip.AddrFrom4([4]byte{198, 51, 100, i})}] = struct{}{}
		want.Neighs[dataplane.NeighKey{Link: overlay, IP: gw}] = mac
		want.Routes[dataplane.RouteKey{Dst: netip.PrefixFrom(gw, 24), Link: overlay}] = dataplane.Route{Via: gw, OnLink: true, Proto: dataplane.ProtoBoot}
	}
	ops := slices.Collect(b.diff(want).Ops())
	failed := 0
	for i, err := range b.k.Apply(ops) {
		switch {
		case err == nil:
		case ops[i].Kind == dataplane.KindFDB && errors.Is(err, unix.ENOSPC) && strings.Contains(err.Error(), "maxaddress"):
			failed++
		default:
			t.Errorf("%s: %v", ops[i], err)
		}
	}
	have := b.snapshot(want.ScopeOf(b.networks))
	if failed != 10 || len(have.FDB) != 10 || len(have.Neighs) != 20 || len(have.Routes) < 20 {
		t.Errorf("%d failed, %d are in the FDB, with %d neighbours and %d routes", failed, len(have.FDB), len(have.Neighs), len(have.Routes))
	}
}
