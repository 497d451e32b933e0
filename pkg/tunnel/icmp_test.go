package tunnel

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

func TestICMPError(t *testing.T) {
	about := tcpSpec{payload: 100, ipExtra: make([]byte, 8)}.packet()
	for _, test := range []struct {
		e    icmpError
		kind ipv4.ICMPType
	}{
		{icmpError{kind: icmpUnreachable, code: codeNetwork}, ipv4.ICMPTypeDestinationUnreachable},
		{icmpError{kind: icmpUnreachable, code: codeFragmentation, mtu: 1472}, ipv4.ICMPTypeDestinationUnreachable},
		{icmpError{kind: icmpTimeExceeded}, ipv4.ICMPTypeTimeExceeded},
	} {
		p := appendICMP(nil, test.e, 0x0a4d0100, about)
		if headerLen(p) != 20 || naiveSum(p[:20], 0) != 0xffff || naiveSum(p[20:], 0) != 0xffff {
			t.Fatalf("malformed: %x", p)
		}
		if source(p) != 0x0a4d0100 || destination(p) != source(about) || p[9] != protoICMP || p[8] < 32 {
			t.Errorf("header %x", p[:20])
		}
		m, err := icmp.ParseMessage(1, p[20:])
		if err != nil {
			t.Fatal(err)
		}
		if m.Type != test.kind || m.Code != int(test.e.code) {
			t.Errorf("message %+v, want %+v", m, test.e)
		}
		if mtu := int(p[26])<<8 | int(p[27]); mtu != int(test.e.mtu) {
			t.Errorf("MTU %d, want %d", mtu, test.e.mtu)
		}
		if quote := p[28:]; !bytes.Equal(quote, about[:28+8]) {
			t.Errorf("quotes %x", quote)
		}
	}
}

func TestNoICMPError(t *testing.T) {
	with := func(at int, b ...byte) []byte {
		p := tcpSpec{payload: 9}.packet()
		copy(p[at:], b)
		return p
	}
	tests := map[string][]byte{
		"later fragment":       with(6, 0, 1),
		"multicast source":     with(12, 224, 0, 0, 1),
		"broadcast source":     with(12, 255, 255, 255, 255),
		"no source":            with(12, 0, 0, 0, 0),
		"loopback source":      with(12, 127, 0, 0, 1),
		"class E source":       with(12, 241, 0, 0, 1),
		"multicast":            with(16, 239, 1, 2, 3),
		"broadcast":            with(16, 255, 255, 255, 255),
		"no packet":            {},
		"ICMP without message": fix(icmpEcho(0)[:20]),
	}
	for _, kind := range []byte{3, 4, 5, 11, 12} {
		p := icmpEcho(8)
		p[20] = kind
		tests["ICMP error"+string('0'+kind)] = p
	}
	for name, p := range tests {
		if got := appendICMP(nil, icmpError{kind: icmpTimeExceeded}, 1, p); len(got) != 0 {
			t.Errorf("%s is answered", name)
		}
	}
	for name, p := range map[string][]byte{
		"first fragment": with(6, 0x20, 0), "echo": icmpEcho(9), "one byte": fix(icmpEcho(0)[:21]),
	} {
		if got := appendICMP(nil, icmpError{kind: icmpTimeExceeded}, 1, p); len(got) == 0 {
			t.Errorf("%s is not answered", name)
		}
	}
}

func TestLimiter(t *testing.T) {
	var l limiter
	now := time.Unix(1000, 0)
	count := func() (n int) {
		for range 10000 {
			if l.allow(now) {
				n++
			}
		}
		return n
	}
	if n := count(); n != icmpBurst {
		t.Errorf("%d at once, want %d", n, icmpBurst)
	}
	now = now.Add(10 * time.Millisecond)
	if n := count(); n != 10 {
		t.Errorf("%d after 10 ms, want 10", n)
	}
	now = now.Add(-time.Hour) // a clock without a monotonic reading may go back
	if n := count(); n != 0 {
		t.Errorf("%d after the clock went back", n)
	}
	now = now.Add(time.Second)
	if n := count(); n != icmpBurst {
		t.Errorf("%d a second after the clock went back, want %d", n, icmpBurst)
	}
}
