package netlink

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func TestAnswer(t *testing.T) {
	const text = "Nexthop has invalid gateway"
	message := nl.NewRtAttr(unix.NLMSGERR_ATTR_MSG, nl.ZeroTerminated(text)).Serialize()
	request := append(binary.NativeEndian.AppendUint32(nil, 20), make([]byte, 16)...)
	invalid := errorBody(unix.EINVAL)
	const why = "invalid argument: " + text
	const tlvs, capped = unix.NLM_F_ACK_TLVS, unix.NLM_F_CAPPED | unix.NLM_F_ACK_TLVS
	for _, c := range []struct {
		name  string
		kind  uint16
		flags uint16
		body  []byte
		want  string
	}{
		{"success", unix.NLMSG_ERROR, 0, errorBody(0), ""},
		{"end of a list", unix.NLMSG_DONE, 0, errorBody(0), ""},
		{"end of a list, old kernel", unix.NLMSG_DONE, 0, nil, ""},
		{"plain", unix.NLMSG_ERROR, 0, slices.Concat(invalid, request), "invalid argument"},
		{"capped", unix.NLMSG_ERROR, capped, slices.Concat(invalid, request[:16], message), why},
		{"whole", unix.NLMSG_ERROR, tlvs, slices.Concat(invalid, request, message), why},
		{"in a list", unix.NLMSG_DONE, tlvs, slices.Concat(invalid, message), why},
		{"cut short", unix.NLMSG_ERROR, tlvs, invalid, "invalid argument"},
	} {
		err := Answer(unix.NlMsghdr{Type: c.kind, Flags: c.flags}, c.body)
		if c.want == "" && err == nil {
			continue
		}
		if err == nil || err.Error() != c.want || !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
	if err := Answer(unix.NlMsghdr{Type: unix.NLMSG_ERROR}, []byte{0}); !errors.Is(err, unix.EBADMSG) {
		t.Errorf("damaged: got %v", err)
	}
}

// TestDatagrams: requests are sent in batches, and a batch whose answers were lost in halves.
func TestDatagrams(t *testing.T) {
	r := numbered(5)
	for _, part := range [][2]int{{0, 5}, {0, 2}, {2, 5}, {4, 5}} {
		seq, n := uint32(70), part[0]
		for h, body := range Messages(r.Datagram(part[0], part[1], seq)) {
			if h.Seq != seq || h.Flags != unix.NLM_F_REQUEST || binary.NativeEndian.Uint32(body) != uint32(n+1) {
				t.Errorf("%v: request %d has number %d and flags %#x", part, n, h.Seq, h.Flags)
			}
			seq, n = seq+1, n+1
		}
		if n != part[1] {
			t.Errorf("%v: ends before %d", part, n)
		}
	}
	r.Reset()
	r.Begin(17, unix.NLM_F_ACK)
	b := r.Datagram(0, 1, 1)
	for h := range Messages(b) {
		if h.Flags != unix.NLM_F_REQUEST|unix.NLM_F_ACK || len(b) != unix.SizeofNlMsghdr {
			t.Errorf("after a reset: %x", b)
		}
	}
}

// TestAttrsAsBytes writes each form of attribute, and reads it back.
func TestAttrsAsBytes(t *testing.T) {
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	host32 := binary.NativeEndian.AppendUint32(nil, 0x01020304)
	var r Requests
	r.Begin(1, 0)
	r.Bytes(1, []byte{9})
	r.Uint32(2, 0x01020304)
	r.Text(3, "eth0")
	r.Addr(4, four)
	r.Addr(5, six)
	nest := r.Open(6)
	r.Bytes(1, []byte{1, 2})
	r.Close(nest)
	r.Attrs(Attrs{}.Uint32BE(7, 0x01020304).Uint64BE(8, 0x0102030405060708).Nest(9, Attrs{}.Bytes(1, nil)))
	got := Attrs(r.Datagram(0, 1, 1)[unix.SizeofNlMsghdr:])
	var want []byte
	for _, a := range []struct {
		kind  int
		value []byte
	}{
		{1, []byte{9}}, {2, host32}, {3, []byte("eth0\x00")}, {4, four.AsSlice()}, {5, six.AsSlice()},
		{6, nl.NewRtAttr(1, []byte{1, 2}).Serialize()}, {7, []byte{1, 2, 3, 4}}, {8, []byte{1, 2, 3, 4, 5, 6, 7, 8}},
		{9 | unix.NLA_F_NESTED, nl.NewRtAttr(1, nil).Serialize()},
	} {
		want = append(want, nl.NewRtAttr(a.kind, a.value).Serialize()...)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("\n got % x\nwant % x", got, want)
	}
	m := got.Map()
	for kind, read := range map[uint16]bool{
		1: m[1].Number() == 9, 2: m[2].Number() == 0x01020304, 3: m[3].Text() == "eth0",
		4: m[4].Addr() == four, 5: m[5].Addr() == six, 6: bytes.Equal(m[6].Map()[1], []byte{1, 2}),
		7: m[7].Uint32BE() == 0x01020304, 8: m[8].Uint64BE() == 0x0102030405060708, 9: m[9].Map()[1] != nil,
	} {
		if !read {
			t.Errorf("attribute %d is read back as % x", kind, []byte(m[kind]))
		}
	}
	var kinds []uint16
	for kind := range After(append([]byte{1, 2, 3, 4, 5, 0, 0, 0}, got...), 5).All() {
		kinds = append(kinds, kind)
	}
	if !slices.Equal(kinds, []uint16{1, 2, 3, 4, 5, 6, 7, 8, 9}) {
		t.Errorf("kinds behind a header: %v", kinds)
	}
}

// TestValues: a value of another length is zero.
func TestValues(t *testing.T) {
	mac := Value{2, 0, 0, 0, 0, 1}
	if mac.MAC() != [6]byte{2, 0, 0, 0, 0, 1} || mac[1:].MAC() != [6]byte{} {
		t.Errorf("MACs %x, %x", mac.MAC(), mac[1:].MAC())
	}
	two := Value(binary.NativeEndian.AppendUint16(nil, 0x0102))
	if two.Number() != 0x0102 || Value(nil).Number() != 0 || (Value{0x12, 0x34}).Uint16BE() != 0x1234 {
		t.Errorf("numbers %x, %x", two.Number(), (Value{0x12, 0x34}).Uint16BE())
	}
	if mac.Uint16BE() != 0 || mac.Uint32BE() != 0 || mac.Uint64BE() != 0 || mac.Addr().IsValid() {
		t.Errorf("%x is a number or an address", mac)
	}
	if Value("ab").Text() != "ab" || Value("a\x00b").Text() != "a" || Value(nil).Text() != "" {
		t.Error("texts")
	}
}

// FuzzMessages: parsing any datagram ends and stays within its bounds.
func FuzzMessages(f *testing.F) {
	f.Add(numbered(3).Datagram(0, 3, 1))
	f.Add(reply(unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS, 1, append(errorBody(unix.EINVAL), make([]byte, 16)...)))
	f.Add([]byte(strings.Repeat("\x10\x00\x00\x00", 8)))
	f.Fuzz(func(t *testing.T, b []byte) {
		read := 0
		for h, body := range Messages(b) {
			if read += unix.SizeofNlMsghdr + len(body); read > len(b) {
				t.Fatalf("read %d of %d bytes", read, len(b))
			}
			for _, kind := range []uint16{h.Type, unix.NLMSG_ERROR, unix.NLMSG_DONE} {
				h.Type = kind
				if err := Answer(h, body); err != nil && err.Error() == "" {
					t.Errorf("an error without a text: %#v", err)
				}
			}
			for header := range 20 {
				within := 0
				for _, v := range After(body, header).All() {
					within += unix.SizeofNlAttr + len(v)
					v.Number()
					v.Text()
					v.Addr()
					v.Map()
				}
				if within > len(body) {
					t.Fatalf("attributes of %d bytes in %d", within, len(body))
				}
			}
		}
	})
}

// FuzzAttrs: attributes that were read and are written again are the same.
func FuzzAttrs(f *testing.F) {
	f.Add([]byte(Attrs{}.Text(1, "a").Uint32(2, 7).Nest(3, Attrs{}.Bytes(4, []byte{1}))))
	f.Fuzz(func(t *testing.T, b []byte) {
		var again Attrs
		var before, after string
		for kind, v := range Attrs(b).All() {
			again, before = again.Bytes(kind, v), before+fmt.Sprintf("%d % x; ", kind, []byte(v))
		}
		for kind, v := range again.All() {
			after += fmt.Sprintf("%d % x; ", kind, []byte(v))
		}
		if before != after {
			t.Errorf("%s became %s", before, after)
		}
	})
}
