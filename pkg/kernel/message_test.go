package kernel

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
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
	} {
		key := dataplane.RouteKey{Dst: netip.MustParsePrefix(c.dst), Metric: 7}
		body := routeRequest(dataplane.Put, key, c.route, 42).Serialize()[unix.SizeofNlMsghdr:]
		k, r, index, ok := parseRoute(body)
		if !ok || k != key || r != c.route || index != 42 {
			t.Errorf("%s: read back %v %v %d %v", c.dst, k, r, index, ok)
		}
	}
	prefix := netip.MustParsePrefix("10.5.1.0/32")
	body := addrRequest(dataplane.Put, dataplane.Addr{Prefix: prefix}, 42).Serialize()[unix.SizeofNlMsghdr:]
	if p, index, _, ok := parseAddr(body); !ok || p != prefix || index != 42 {
		t.Errorf("read back %s %d %v", p, index, ok)
	}
	f := dataplane.FDB{MAC: dataplane.MAC{2, 0, 0, 0, 0, 1}, Dst: via6}
	body = fdbRequest(dataplane.Put, f, 42).Serialize()[unix.SizeofNlMsghdr:]
	if n, ok := parseNeighbor(body); !ok || n.mac != f.MAC || n.dst != f.Dst || !n.self || !n.permanent() || n.index != 42 {
		t.Errorf("read back %+v %v", n, ok)
	}
}

func TestAnswer(t *testing.T) {
	errno := func(e unix.Errno) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(-int32(e))) }
	message := nl.NewRtAttr(unix.NLMSGERR_ATTR_MSG, nl.ZeroTerminated("Nexthop has invalid gateway")).Serialize()
	header := binary.NativeEndian.AppendUint32(nil, 20)
	header = append(header, make([]byte, 12)...)
	for _, c := range []struct {
		name  string
		kind  uint16
		flags uint16
		body  []byte
		want  string
	}{
		{"success", unix.NLMSG_ERROR, 0, errno(0), ""},
		{"end of a list", unix.NLMSG_DONE, 0, errno(0), ""},
		{"end of a list, old kernel", unix.NLMSG_DONE, 0, nil, ""},
		{"plain", unix.NLMSG_ERROR, 0, append(errno(unix.EINVAL), header...), "invalid argument"},
		{"capped", unix.NLMSG_ERROR, unix.NLM_F_CAPPED | unix.NLM_F_ACK_TLVS, append(append(errno(unix.EINVAL), header...), message...), "invalid argument: Nexthop has invalid gateway"},
		{"whole", unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS, append(append(append(errno(unix.EINVAL), header...), 0, 0, 0, 0), message...), "invalid argument: Nexthop has invalid gateway"},
		{"in a list", unix.NLMSG_DONE, unix.NLM_F_ACK_TLVS, append(errno(unix.EINVAL), message...), "invalid argument: Nexthop has invalid gateway"},
		{"cut short", unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS, errno(unix.EINVAL), "invalid argument"},
	} {
		err := answer(unix.NlMsghdr{Type: c.kind, Flags: c.flags}, c.body)
		if c.want == "" && err == nil {
			continue
		}
		if err == nil || err.Error() != c.want || !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

// Whatever a datagram holds, reading it ends and stays within it.
func FuzzMessages(f *testing.F) {
	f.Add(routeRequest(dataplane.Put, dataplane.RouteKey{Dst: netip.MustParsePrefix("10.5.2.0/24")}, dataplane.Route{Proto: 3}, 1).Serialize())
	f.Add(fdbRequest(dataplane.Put, dataplane.FDB{Dst: netip.MustParseAddr("192.0.2.1")}, 1).Serialize())
	f.Add(nextHopRequest(dataplane.Put, 7, dataplane.NextHop{Via: netip.MustParseAddr("192.0.2.1"), Proto: 70}, 1).Serialize())
	f.Add(linkRequest(3).Serialize())
	f.Add([]byte(strings.Repeat("\x10\x00\x00\x00", 8)))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := &Watch{k: &Kernel{conn: &conn{}}, links: map[int]device{}, passing: []int{}}
		for h, body := range messages(b) {
			answer(h, body)
			for kind := range uint16(unix.RTM_GETNEXTHOP) {
				w.event(kind, body)
			}
			parseRoute(body)
			parseDevice(body)
		}
	})
}
