package kernel

import (
	"fmt"
	"strings"
	"testing"
)

const udpTable = `   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  512: 0100007F:2118 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 4711 2 0000000000000000 0
  513: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1
`

// FuzzSockets parses tables of sockets: each result is a socket with an address, and malformed
// lines are skipped.
func FuzzSockets(f *testing.F) {
	f.Add(udpTable)
	f.Add(strings.Replace(udpTable, "0100007F", "7F", 1))
	f.Fuzz(func(t *testing.T, text string) {
		n := 0
		_ = readSockets(strings.NewReader(text), func(h Holder, _ bool, inode string) {
			if n++; !h.Addr.Addr().IsValid() || inode == "" || h.PID != 0 {
				t.Errorf("%q is read as %+v, inode %q", text, h, inode)
			}
			addrsConflict(h.Addr.Addr(), h.Addr.Addr())
			_ = fmt.Sprint(h)
		})
		if lines := strings.Count(text, "\n") + 1; n > lines {
			t.Errorf("%d sockets in %d lines", n, lines)
		}
	})
}
