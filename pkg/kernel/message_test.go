package kernel

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/netlink"
)

func TestRequestsReadBack(t *testing.T) {
	via6 := netip.MustParseAddr("fd00::1")
	for _, c := range []struct {
		dst   string
		route dataplane.Route
	}{
		{"10.5.2.0/24", dataplane.Route{Via: netip.MustParseAddr("10.5.2.0"), OnLink: true, Proto: 3}},
		{"10.5.2.0/24", dataplane.Route{Proto: 70}},
		{"10.5.2.0/24", dataplane.Route{Via: via6, Proto: 70}},
		{"fd00:5::/48", dataplane.Route{Via: via6, Proto: 70}},
		{"10.5.2.0/24", dataplane.Route{Via: netip.MustParseAddr("10.5.2.0"), OnLink: true, Proto: 70, NextHop: 0x8a050200}},
	} {
		key := dataplane.RouteKey{Dst: netip.MustParsePrefix(c.dst), Metric: 7}
		b := body(func(r *requests) { r.route(dataplane.KindRoute.Put(key, c.route), 42) })
		e, ok := parseRoute(key.Dst, b)
		if dst, main := mainRoute(b); dst != key.Dst || !main {
			t.Errorf("%s: read back %v %v", c.dst, dst, main)
		}
		want, wantIndex := c.route, 42
		if want.NextHop != 0 { // says the rest
			want.Via, want.OnLink, wantIndex = netip.Addr{}, false, 0
		}
		if !ok || e.key != key || e.route != want || e.index != wantIndex {
			t.Errorf("%s: read back %+v %v", c.dst, e, ok)
		}
	}
	prefix := netip.MustParsePrefix("10.5.1.0/32")
	prefixed := body(func(r *requests) { r.addr(dataplane.KindAddr.Put(dataplane.Addr{Prefix: prefix}, struct{}{}), 42) })
	if a, ok := parseAddr(prefixed); !ok || a.prefix != prefix || a.index != 42 {
		t.Errorf("read back %+v %v", a, ok)
	}
	f := dataplane.FDB{MAC: dataplane.MAC{2, 0, 0, 0, 0, 1}, Dst: via6}
	if n, ok := parseNeighbor(body(func(r *requests) { r.fdb(dataplane.KindFDB.Put(f, struct{}{}), 42) })); !ok || n.mac != f.MAC || n.dst != f.Dst || !n.forwards() || n.index != 42 {
		t.Errorf("read back %+v %v", n, ok)
	}
	for _, via := range []netip.Addr{netip.MustParseAddr("10.5.2.0"), via6} {
		want := dataplane.NextHop{Via: via, OnLink: via.Is4(), Proto: 70}
		id, h, index, ok := parseNextHop(body(func(r *requests) { r.nextHop(dataplane.KindNextHop.Put(0x8a050200, want), 42) }))
		if !ok || id != 0x8a050200 || h != want || index != 42 {
			t.Errorf("read back %d %+v %d %v", id, h, index, ok)
		}
	}
}

// body is the message of one request behind its header.
func body(write func(*requests)) []byte {
	var r requests
	write(&r)
	return r.Datagram(0, 1, 1)[unix.SizeofNlMsghdr:]
}

// Byte by byte, in network order: what the kernel's headers call struct rtmsg and
// struct nhmsg, and their attributes.
func TestRequestsAsBytes(t *testing.T) {
	key := dataplane.RouteKey{Dst: netip.MustParsePrefix("10.5.2.0/24"), Metric: 7}
	via := netip.MustParseAddr("10.5.2.0")
	plain := dataplane.Route{Via: via, OnLink: true, Proto: 70}
	through := plain
	through.NextHop = 0x0a050200
	hop := dataplane.NextHop{Via: via, OnLink: true, Proto: 70}
	for _, c := range []struct {
		name  string
		write func(*requests)
		kind  uint16
		flags uint16
		body  []any
	}{
		{"put a route", func(r *requests) { r.route(dataplane.KindRoute.Put(key, plain), 42) }, unix.RTM_NEWROUTE, replace,
			[]any{uint8(2), uint8(24), uint16(0), uint8(254), uint8(70), uint8(0), uint8(1), uint32(4), 1, via, 6, uint32(7), 4, uint32(42), 5, via}},
		{"put a route through a nexthop", func(r *requests) { r.route(dataplane.KindRoute.Put(key, through), 42) }, unix.RTM_NEWROUTE, replace,
			[]any{uint8(2), uint8(24), uint16(0), uint8(254), uint8(70), uint8(0), uint8(1), uint32(0), 1, via, 6, uint32(7), 30, uint32(0x0a050200)}},
		{"delete it", func(r *requests) { r.route(dataplane.KindRoute.Del(key, through), 42) }, unix.RTM_DELROUTE, 0,
			[]any{uint8(2), uint8(24), uint16(0), uint8(254), uint8(70), uint8(255), uint8(1), uint32(0), 1, via, 6, uint32(7), 30, uint32(0x0a050200)}},
		{"put a nexthop", func(r *requests) { r.nextHop(dataplane.KindNextHop.Put(0x0a050200, hop), 42) }, 104, replace,
			[]any{uint8(2), uint8(0), uint8(70), uint8(0), uint32(4), 1, uint32(0x0a050200), 5, uint32(42), 6, via}},
		{"delete it", func(r *requests) { r.nextHop(dataplane.KindNextHop.Del(0x0a050200, hop), 42) }, 105, 0,
			[]any{uint32(0), uint32(0), 1, uint32(0x0a050200)}},
	} {
		want := binary.NativeEndian.AppendUint32(nil, 0)
		want = binary.NativeEndian.AppendUint16(want, c.kind)
		want = binary.NativeEndian.AppendUint16(want, c.flags|unix.NLM_F_REQUEST)
		want = binary.NativeEndian.AppendUint64(want, 0)
		for _, v := range c.body {
			switch v := v.(type) {
			case uint8:
				want = append(want, v)
			case uint16:
				want = binary.NativeEndian.AppendUint16(want, v)
			case uint32:
				want = binary.NativeEndian.AppendUint32(want, v)
			case int: // an attribute with a value of four bytes
				want = binary.NativeEndian.AppendUint16(want, 8)
				want = binary.NativeEndian.AppendUint16(want, uint16(v))
			case netip.Addr:
				want = append(want, v.AsSlice()...)
			}
		}
		binary.NativeEndian.PutUint32(want, uint32(len(want)))
		binary.NativeEndian.PutUint32(want[8:], 9)
		var r requests
		c.write(&r)
		if got := r.Datagram(0, 1, 9); !bytes.Equal(got, want) {
			t.Errorf("%s:\n got % x\nwant % x", c.name, got, want)
		}
	}
}

// filtered returns a function that reports whether a filter passes a datagram. The kernel runs it,
// on an unprivileged socket.
func filtered(t *testing.T, f *netlink.Filter) func(datagram []byte) bool {
	t.Helper()
	program, err := f.Assemble()
	if err != nil {
		t.Fatal(err)
	}
	var code []unix.SockFilter
	for _, i := range program {
		code = append(code, unix.SockFilter{Code: i.Op, Jt: i.Jt, Jf: i.Jf, K: i.K})
	}
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(ends[0]); unix.Close(ends[1]) })
	if err := unix.SetsockoptSockFprog(ends[1], unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}); err != nil {
		t.Fatal(err)
	}
	return func(datagram []byte) bool {
		if _, err := unix.Write(ends[0], datagram); err != nil {
			t.Fatal(err)
		}
		_, err := unix.Read(ends[1], make([]byte, len(datagram)))
		return err == nil
	}
}

// TestEventFilter: notifications of interest pass, from any cause.
func TestEventFilter(t *testing.T) {
	const self, other = 0x01020304, 0x04030201
	notification := func(kind uint16, port uint32, write func(*requests)) []byte {
		r := one(kind, 0)
		write(r)
		b := r.Datagram(0, 1, 0)
		binary.NativeEndian.PutUint32(b[12:], port)
		return b
	}
	neigh := func(index int) func(*requests) {
		return func(r *requests) { r.neighHeader(unix.NdMsg{Family: unix.AF_BRIDGE, Ifindex: int32(index)}) }
	}
	route := func(table uint8, dst string) func(*requests) {
		return func(r *requests) {
			p := netip.MustParsePrefix(dst)
			r.routeHeader(unix.RtMsg{Family: family(p.Addr()), Dst_len: uint8(p.Bits()), Table: table, Type: unix.RTN_UNICAST})
			r.Uint32(unix.RTA_TABLE, uint32(table)) // as the kernel has it, before the destination
			if p.Bits() > 0 {
				r.Addr(unix.RTA_DST, p.Addr())
			}
		}
	}
	link := func(r *requests) { r.linkHeader(5, 0, 0) }
	const main, local = unix.RT_TABLE_MAIN, unix.RT_TABLE_LOCAL
	for _, c := range []struct {
		name    string
		kind    uint16
		port    uint32
		write   func(*requests)
		inside  bool // passes with a network of IPv4
		without bool // and without one
	}{
		{"a link", unix.RTM_NEWLINK, other, link, true, true},
		{"a link of our own making", unix.RTM_NEWLINK, self, link, true, true},
		{"one that we deleted", unix.RTM_DELLINK, self, link, true, true},
		{"an address", unix.RTM_NEWADDR, other, func(r *requests) { r.addrHeader(unix.AF_INET, 24, 5) }, true, true},
		{"our own", unix.RTM_NEWADDR, self, func(r *requests) { r.addrHeader(unix.AF_INET, 24, 5) }, false, false},
		{"a neighbour of our link", unix.RTM_NEWNEIGH, other, neigh(5), true, true},
		{"one that goes", unix.RTM_DELNEIGH, other, neigh(0x0506), true, true},
		{"one of another link", unix.RTM_NEWNEIGH, other, neigh(6), false, false},
		{"one of our own making", unix.RTM_NEWNEIGH, self, neigh(5), false, false},
		{"one to be resolved", unix.RTM_GETNEIGH, other, neigh(5), false, false},
		{"a route into the network", unix.RTM_NEWROUTE, other, route(main, "10.5.7.0/24"), true, true},
		{"one that goes", unix.RTM_DELROUTE, other, route(main, "10.5.255.255/32"), true, true},
		{"one to all of it", unix.RTM_NEWROUTE, other, route(main, "10.5.0.0/16"), true, true},
		{"one to more", unix.RTM_NEWROUTE, other, route(main, "10.4.0.0/15"), false, true},
		{"one beside it", unix.RTM_NEWROUTE, other, route(main, "10.6.0.0/24"), false, true},
		{"a default route", unix.RTM_NEWROUTE, other, route(main, "0.0.0.0/0"), true, true},
		{"half of one", unix.RTM_NEWROUTE, other, route(main, "128.0.0.0/1"), false, true},
		{"one of IPv6", unix.RTM_NEWROUTE, other, route(main, "2001:db8::/32"), false, true},
		{"one of another table", unix.RTM_NEWROUTE, other, route(local, "10.5.7.0/24"), false, false},
		{"a nexthop", unix.RTM_NEWNEXTHOP, other, func(r *requests) { r.nextHopHeader(unix.Nhmsg{}) }, true, true},
	} {
		b := notification(c.kind, c.port, c.write)
		network6 := netip.MustParsePrefix("fd00:5::/48")
		for _, in := range []struct {
			networks []netip.Prefix
			want     bool
		}{{[]netip.Prefix{network}, c.inside}, {nil, c.without}, {[]netip.Prefix{network6}, c.without}, {[]netip.Prefix{network, network6}, c.without}} {
			if got := filtered(t, eventFilter(self, []int{5, 0x0506}, in.networks))(b); got != in.want {
				t.Errorf("%s, in the networks %v: passes %v, want %v", c.name, in.networks, got, in.want)
			}
		}
	}
	if _, err := eventFilter(self, make([]int, 200), []netip.Prefix{network}).Assemble(); err != nil {
		t.Errorf("two hundred links: %v", err)
	}
}

// Parsing any datagram ends and stays within its bounds.
func FuzzMessages(f *testing.F) {
	var r requests
	r.route(dataplane.KindRoute.Put(dataplane.RouteKey{Dst: netip.MustParsePrefix("10.5.2.0/24")}, dataplane.Route{Proto: 3}), 1)
	r.fdb(dataplane.KindFDB.Put(dataplane.FDB{Dst: netip.MustParseAddr("192.0.2.1")}, struct{}{}), 1)
	r.nextHop(dataplane.KindNextHop.Put(0x0a050200, dataplane.NextHop{Via: netip.MustParseAddr("192.0.2.1")}), 1)
	f.Add(r.Datagram(0, 3, 1))
	f.Add(linkRequest(3).Datagram(0, 1, 1))
	f.Add([]byte(strings.Repeat("\x10\x00\x00\x00", 8)))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := &Watch{k: &Kernel{conn: &netlink.Conn{}}, hasAddr: map[int]bool{}, links: map[int]device{}, filterLinks: []int{}}
		for h, body := range netlink.Messages(b) {
			netlink.Answer(h, body)
			for kind := range uint16(unix.RTM_GETNEXTHOP) {
				h.Type = kind
				w.event(h, body)
			}
			if dst, ok := mainRoute(body); ok {
				parseRoute(dst, body)
			}
			parseDevice(body)
			if dst, ok := mainRoute(body); ok && dst.Addr().Is4() {
				parsePath(body, dst)
			}
		}
	})
}

// What is read of a nexthop is either a gateway on a link, or bears no stamp of ours.
func FuzzNextHop(f *testing.F) {
	f.Add(body(func(r *requests) {
		r.nextHop(dataplane.KindNextHop.Put(0x0a050200, dataplane.NextHop{Via: netip.MustParseAddr("10.5.2.0"), OnLink: true, Proto: 70}), 42)
	}))
	f.Add(body(func(r *requests) {
		r.nextHop(dataplane.KindNextHop.Put(7, dataplane.NextHop{Via: netip.MustParseAddr("fd00::1"), Proto: 70}), 42)
		r.Bytes(unix.NHA_BLACKHOLE, nil)
	}))
	f.Add(body(func(r *requests) { r.nextHop(dataplane.KindNextHop.Del(7, dataplane.NextHop{}), 0) }))
	f.Fuzz(func(t *testing.T, b []byte) {
		id, h, index, ok := parseNextHop(b)
		whole := index != 0 && h.Via.IsValid()
		if ok != (id != 0) || h.Link != "" || !whole && (h != dataplane.NextHop{Proto: h.Proto} || h.Proto == dataplane.ProtoFlannel) {
			t.Errorf("% x: read as %d %+v %d %v", b, id, h, index, ok)
		}
	})
}
