package tunnel

import (
	"bytes"
	"testing"
)

// coalesceAll puts packets through a coalescer and returns what the kernel would see, and the
// number of writes.
func coalesceAll(t testing.TB, packets [][]byte, tcp, udp bool) (out [][]byte, writes int) {
	t.Helper()
	var c coalescer
	c.init(tcp, udp, func(o Offload, parts [][]byte) error {
		out = append(out, kernelTakes(t, o, parts)...)
		writes++
		return nil
	})
	for _, p := range packets {
		if err := c.add(bytes.Clone(p)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.flush(); err != nil {
		t.Fatal(err)
	}
	return out, writes
}

// tcpRun returns consecutive segments of one flow; change may modify each before its checksums are
// computed.
func tcpRun(n, size int, change func(i int, s *tcpSpec)) (packets [][]byte) {
	seq := uint32(1000)
	for i := range n {
		s := tcpSpec{seq: seq, id: uint16(100 + i), payload: size, options: timestamps}
		if change != nil {
			change(i, &s)
		}
		packets = append(packets, s.packet())
		seq += uint32(s.payload)
	}
	return packets
}

func udpRun(n, size, last int) (packets [][]byte) {
	for i := range n {
		if i == n-1 {
			size = last
		}
		packets = append(packets, udpPacket(uint16(i), size))
	}
	return packets
}

// fixAs changes a packet and computes its checksums again.
func fixAs(p []byte, change func(p []byte)) []byte {
	change(p)
	return fix(p)
}

func TestCoalesceEqualsOracle(t *testing.T) {
	on := func(i int, change func(s *tcpSpec)) func(int, *tcpSpec) {
		return func(j int, s *tcpSpec) {
			if i == j {
				change(s)
			}
		}
	}
	change := func(packets [][]byte, i int, change func(p []byte)) [][]byte {
		change(packets[i])
		return packets
	}
	interleave := func(a, b [][]byte) (out [][]byte) {
		for i := range a {
			out = append(out, a[i], b[i])
		}
		return out
	}
	port := func(n uint16) func(int, *tcpSpec) { return func(_ int, s *tcpSpec) { s.sport = n } }
	var nine [][]byte
	for i := range uint16(9) {
		nine = append(nine, tcpRun(1, 100, port(i))...)
	}
	tests := map[string]struct {
		packets [][]byte
		writes  int
	}{
		"one":                {tcpRun(1, 1420, nil), 1},
		"run":                {tcpRun(40, 1420, nil), 1},
		"two flows":          {interleave(tcpRun(9, 1420, nil), tcpRun(9, 1420, port(7))), 2},
		"nine flows":         {append(nine, nine...), 18},
		"short last":         {tcpRun(3, 1420, on(2, func(s *tcpSpec) { s.payload = 1 })), 1},
		"short in between":   {tcpRun(4, 1420, on(1, func(s *tcpSpec) { s.payload = 1419 })), 2},
		"longer":             {tcpRun(4, 1400, on(2, func(s *tcpSpec) { s.payload = 1401 })), 2},
		"PSH last":           {tcpRun(3, 1420, on(2, func(s *tcpSpec) { s.flags = flagACK | flagPSH })), 1},
		"PSH in between":     {tcpRun(4, 1420, on(1, func(s *tcpSpec) { s.flags = flagACK | flagPSH })), 2},
		"PSH first":          {tcpRun(3, 1420, on(0, func(s *tcpSpec) { s.flags = flagACK | flagPSH })), 2},
		"FIN":                {tcpRun(3, 1420, on(2, func(s *tcpSpec) { s.flags = flagACK | flagFIN })), 1},
		"SYN":                {tcpRun(3, 1420, on(0, func(s *tcpSpec) { s.flags = flagACK | flagSYN })), 2},
		"RST":                {tcpRun(3, 1420, on(2, func(s *tcpSpec) { s.flags = flagACK | flagRST })), 2},
		"URG":                {tcpRun(3, 1420, on(1, func(s *tcpSpec) { s.flags = flagACK | flagURG })), 3},
		"CWR":                {tcpRun(3, 1420, on(1, func(s *tcpSpec) { s.flags = flagACK | flagCWR })), 3},
		"ECE all":            {tcpRun(3, 1420, func(_ int, s *tcpSpec) { s.flags = flagACK | flagECE }), 3},
		"pure ACK":           {tcpRun(3, 0, nil), 3},
		"window":             {tcpRun(2, 1420, on(1, func(s *tcpSpec) { s.window = 1 })), 2},
		"ack":                {tcpRun(2, 1420, on(1, func(s *tcpSpec) { s.ack = 1 })), 2},
		"TOS":                {tcpRun(2, 1420, on(1, func(s *tcpSpec) { s.tos = 3 })), 2},
		"TTL":                {tcpRun(2, 1420, on(1, func(s *tcpSpec) { s.ttl = 3 })), 2},
		"options":            {tcpRun(2, 1420, on(1, func(s *tcpSpec) { s.options = bytes.Repeat([]byte{1}, 12) })), 2},
		"options' length":    {tcpRun(2, 1420, on(1, func(s *tcpSpec) { s.options = nil })), 2},
		"IP options":         {tcpRun(2, 1420, func(_ int, s *tcpSpec) { s.ipExtra = make([]byte, 4) }), 2},
		"gap":                {append(tcpRun(2, 100, nil), tcpRun(5, 100, nil)[3:]...), 2},
		"again":              {append(tcpRun(2, 100, nil), tcpRun(2, 100, nil)...), 2},
		"backwards":          {[][]byte{tcpRun(2, 100, nil)[1], tcpRun(2, 100, nil)[0]}, 2},
		"ID constant, DF":    {tcpRun(4, 1420, func(_ int, s *tcpSpec) { s.id = 0 }), 1},
		"ID random, DF":      {tcpRun(4, 1420, func(i int, s *tcpSpec) { s.id = uint16(i * i * 77) }), 4},
		"ID constant":        {tcpRun(4, 1420, func(_ int, s *tcpSpec) { s.id, s.mayFragment = 0, true }), 4},
		"ID counts":          {tcpRun(4, 1420, func(_ int, s *tcpSpec) { s.mayFragment = true }), 1},
		"ID wraps":           {tcpRun(4, 1420, func(i int, s *tcpSpec) { s.id, s.mayFragment = uint16(i-2), true }), 1},
		"sequence wraps":     {tcpRun(4, 1000, func(i int, s *tcpSpec) { s.seq = uint32(i*1000 - 1500) }), 1},
		"wrong payload":      {change(tcpRun(4, 1420, nil), 2, func(p []byte) { p[700]++ }), 3},
		"wrong first":        {change(tcpRun(4, 1420, nil), 0, func(p []byte) { p[700]++ }), 2},
		"wrong header sum":   {change(tcpRun(4, 1420, nil), 1, func(p []byte) { p[10]++ }), 3},
		"wrong and alone":    {change(tcpRun(1, 1420, nil), 0, func(p []byte) { p[700]++ }), 1},
		"more than 64 KiB":   {tcpRun(50, 1420, nil), 2},
		"as much as fits":    {tcpRun(5, 13099, func(_ int, s *tcpSpec) { s.options = nil }), 1},
		"a byte too many":    {tcpRun(5, 13100, func(i int, s *tcpSpec) { s.options = nil; s.payload -= i / 4 * 4 }), 2},
		"many segments":      {tcpRun(300, 10, nil), 3},
		"UDP":                {udpRun(10, 1400, 1400), 1},
		"UDP short last":     {udpRun(10, 1400, 1), 1},
		"UDP empty":          {udpRun(3, 0, 0), 3},
		"UDP many":           {udpRun(100, 64, 64), 2},
		"UDP zero checksum":  {change(udpRun(3, 100, 100), 1, func(p []byte) { p[26], p[27] = 0, 0 }), 3},
		"UDP wrong length":   {change(udpRun(3, 100, 100), 1, func(p []byte) { p[25]-- }), 3},
		"fragments":          {fragments(), 3},
		"reserved flag":      {[][]byte{fixAs(udpPacket(1, 9), func(p []byte) { p[6] = 0x80 }), fixAs(udpPacket(2, 9), func(p []byte) { p[6] = 0x80 })}, 2},
		"ICMP between":       {append(append(tcpRun(2, 100, nil), icmpEcho(9)), tcpRun(4, 100, nil)[2:]...), 3},
		"short TCP header":   {[][]byte{fix(tcpSpec{}.packet()[:30])}, 1},
		"TCP header too big": {[][]byte{fixAs(tcpSpec{payload: 2}.packet(), func(p []byte) { p[32] = 0xf0 })}, 1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, writes := coalesceAll(t, test.packets, true, true)
			samePackets(t, got, test.packets)
			if writes != test.writes {
				t.Errorf("%d writes, want %d", writes, test.writes)
			}
			got, writes = coalesceAll(t, test.packets, false, false)
			samePackets(t, got, test.packets)
			if writes != len(test.packets) {
				t.Errorf("without offloads %d writes, want %d", writes, len(test.packets))
			}
		})
	}
}

func fragments() (out [][]byte) {
	for i := range 3 {
		p := udpPacket(7, 80)
		p[6], p[7] = flagMF>>8, byte(i*11)
		fixHeader(p)
		out = append(out, p)
	}
	return out
}

func TestCoalesceFlowlessOvertakesNothing(t *testing.T) {
	packets := append(tcpRun(2, 100, nil), icmpEcho(9))
	got, _ := coalesceAll(t, packets, true, true)
	if last := got[2]; last[9] != protoICMP {
		t.Errorf("the last packet has protocol %d", last[9])
	}
}

func BenchmarkCoalesce(b *testing.B) {
	for name, packets := range map[string][][]byte{"TCP": tcpRun(44, 1420, nil), "UDP": udpRun(44, 1400, 1400)} {
		b.Run(name, func(b *testing.B) {
			var c coalescer
			c.init(true, true, func(Offload, [][]byte) error { return nil })
			work, size := make([][]byte, len(packets)), 0
			for i, p := range packets {
				work[i] = bytes.Clone(p)
				size += len(p)
			}
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				copy(work[0], packets[0][:60])
				for _, p := range work {
					if err := c.add(p); err != nil {
						b.Fatal(err)
					}
				}
				if err := c.flush(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
