package prober

import (
	"bytes"
	"net/netip"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

func request1450() echo {
	return echo{addr: netip.MustParseAddr("10.42.9.0"), seq: 513, token: [tokenSize]byte{1, 2, 3, 15: 4}, size: 1450}
}

// reply returns the kernel's reply to a request.
func reply(t testing.TB, request []byte) []byte {
	t.Helper()
	m, err := icmp.ParseMessage(1, request)
	if err != nil || m.Type != ipv4.ICMPTypeEcho {
		t.Fatalf("request %v, %v", m, err)
	}
	m.Type = ipv4.ICMPTypeEchoReply
	b, err := m.Marshal(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRequestAndReply(t *testing.T) {
	for _, size := range []int{smallSize, 1450, 9000, maxSize} {
		want := request1450()
		want.size = size
		b, err := want.encode(77)
		if err != nil || len(b) != size-ipv4.HeaderLen || !bytes.Contains(b, []byte("flanneld probe")) {
			t.Fatalf("size %d: %d bytes, %v", size, len(b), err)
		}
		if _, ok := decode(want.addr, 77, b); ok {
			t.Errorf("size %d: the request itself counts as a reply", size)
		}
		if got, ok := decode(want.addr, 77, reply(t, b)); !ok || got != want {
			t.Errorf("size %d: got %+v, %v", size, got, ok)
		}
	}
}

func TestOtherMessagesAreNoReplies(t *testing.T) {
	want := request1450()
	b, err := want.encode(77)
	if err != nil {
		t.Fatal(err)
	}
	good := reply(t, b)
	for what, message := range map[string][]byte{
		"empty": nil, "short": good[:8+len(text)+tokenSize-1], "another code": append([]byte{0, 1}, good[2:]...),
		"unreachable": append([]byte{3, 3}, good[2:]...), "another id": append(append(bytes.Clone(good[:4]), 0, 78), good[6:]...),
		"another text": append(append(bytes.Clone(good[:8]), 'F'), good[9:]...),
	} {
		if e, ok := decode(want.addr, 77, message); ok {
			t.Errorf("%s: %+v", what, e)
		}
	}
}

// TestFilterAcceptsRepliesOnly runs the program of the kernel's filter.
func TestFilterAcceptsRepliesOnly(t *testing.T) {
	vm, err := bpf.NewVM(replyFilter(0x1234))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what   string
		packet []byte
		accept bool
	}{
		{"reply", append(header(5), 0, 0, 9, 9, 0x12, 0x34, 0, 1), true},
		{"reply with IP options", append(header(15), 0, 0, 9, 9, 0x12, 0x34, 0, 1), true},
		{"another id", append(header(5), 0, 0, 9, 9, 0x12, 0x35, 0, 1), false},
		{"request", append(header(5), 8, 0, 9, 9, 0x12, 0x34, 0, 1), false},
		{"short", append(header(5), 0, 0, 9, 9), false},
		{"empty", header(5), false},
	} {
		if n, err := vm.Run(c.packet); err != nil || n > 0 != c.accept {
			t.Errorf("%s: %d, %v", c.what, n, err)
		}
	}
}

// header returns an IP header of n words.
func header(n int) []byte {
	b := make([]byte, 4*n)
	b[0] = byte(0x40 | n)
	return b
}

func FuzzDecode(f *testing.F) {
	e := request1450()
	b, err := e.encode(77)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{}, uint16(0))
	f.Add(b, uint16(77))
	f.Add(reply(f, b), uint16(77))
	f.Add(reply(f, b)[:20], uint16(77))
	f.Fuzz(func(t *testing.T, message []byte, id uint16) {
		got, ok := decode(e.addr, id, message)
		if !ok {
			if got != (echo{}) {
				t.Errorf("%+v of what is no reply", got)
			}
			return
		}
		if got.size != len(message)+ipv4.HeaderLen || got.addr != e.addr || got.size > maxSize+1000 && len(message) < maxSize {
			t.Errorf("%+v of %d bytes", got, len(message))
		}
		again, err := got.encode(id)
		if err != nil || !bytes.Equal(again[4:8], message[4:8]) || !bytes.Equal(again[8:8+len(text)+tokenSize], message[8:8+len(text)+tokenSize]) {
			t.Errorf("%x does not make\n%x\n%v", again, message, err)
		}
	})
}
