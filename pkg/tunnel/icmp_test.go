package tunnel

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

func TestICMPError(t *testing.T) {
	table := NewTable(testOverlay())
	about := tcpSpec{payload: 100, ipExtra: make([]byte, 8)}.packet()
	for _, test := range []struct {
		e    icmpError
		kind ipv4.ICMPType
	}{
		{icmpError{kind: icmpUnreachable, code: codeNetwork}, ipv4.ICMPTypeDestinationUnreachable},
		{icmpError{kind: icmpUnreachable, code: codeFragmentation, mtu: 1472}, ipv4.ICMPTypeDestinationUnreachable},
		{icmpError{kind: icmpTimeExceeded}, ipv4.ICMPTypeTimeExceeded},
	} {
		p := appendICMP(nil, test.e, table, about)
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
	table := NewTable(testOverlay())
	with := func(at int, b ...byte) []byte {
		p := tcpSpec{payload: 9}.packet()
		copy(p[at:], b)
		fixHeader(p)
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
		"our subnet":           with(16, 10, 77, 1, 255),
		"from our subnet":      with(12, 10, 77, 1, 255),
		"a peer's subnet":      with(16, 10, 77, 2, 255),
		"from a peer's subnet": with(12, 10, 77, 3, 255),
		"the network":          with(16, 10, 77, 255, 255),
		"wrong checksum":       tcpSpec{payload: 9}.packet(),
		"no packet":            {},
		"ICMP without message": fix(icmpEcho(0)[:20]),
	}
	tests["wrong checksum"][10]++
	for _, kind := range []byte{3, 4, 5, 11, 12} {
		p := icmpEcho(8)
		p[20] = kind
		fixHeader(p)
		tests["ICMP error"+string('0'+kind)] = p
	}
	for name, p := range tests {
		if got := appendICMP(nil, icmpError{kind: icmpTimeExceeded}, table, p); len(got) != 0 {
			t.Errorf("%s is answered", name)
		}
	}
	for name, p := range map[string][]byte{
		"first fragment": with(6, 0x20, 0), "our device": with(16, 10, 77, 1, 0), "a peer's device": with(12, 10, 77, 2, 0), "outside": with(16, 10, 78, 1, 255), "echo": icmpEcho(9), "one byte": fix(icmpEcho(0)[:21]),
	} {
		if got := appendICMP(nil, icmpError{kind: icmpTimeExceeded}, table, p); len(got) == 0 {
			t.Errorf("%s is not answered", name)
		}
	}
}

// writes counts writes.
type writes int

func (w *writes) Write(b []byte) (int, error) {
	*w++
	return len(b), nil
}

// TestICMPErrorsAreLimited: a burst of packets without a route causes few errors.
func TestICMPErrorsAreLimited(t *testing.T) {
	now := time.Duration(0)
	tunnel := &Tunnel{clock: func() time.Duration { return now }}
	sent := writes(0)
	sender := newICMPSender(tunnel, &sent)
	st, about := &state{table: NewTable(testOverlay())}, tcpSpec{payload: 100}.packet()
	count := func() writes {
		sent = 0
		for range 10000 {
			sender.send(st, icmpError{kind: icmpTimeExceeded}, about)
		}
		return sent
	}
	for _, c := range []struct {
		after time.Duration
		want  writes
	}{{0, icmpBurst}, {10 * time.Millisecond, 10}, {time.Second, icmpBurst}} {
		now += c.after
		if n := count(); n != c.want {
			t.Errorf("%d errors %v later, want %d", n, c.after, c.want)
		}
	}
}
