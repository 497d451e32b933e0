package daemon

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"flanneld/pkg/api"
	"flanneld/pkg/page"
)

// watched returns a server of the daemon's page.
func watched(t testing.TB, d *daemon) *httptest.Server {
	t.Helper()
	var s api.Sources
	d.addPage(&s)
	server := httptest.NewServer(s.Events)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server
}

// nextEvent returns the next event of an answer.
func nextEvent(t testing.TB, lines *bufio.Reader) (e page.Event) {
	t.Helper()
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if data, is := strings.CutPrefix(line, "data: "); is {
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				t.Fatal(err)
			}
			return e
		}
	}
}

// TestPageOfManyPeers: a watcher of a host with 20,000 peers is sent all of them once, and then what
// changes.
func TestPageOfManyPeers(t *testing.T) {
	const peers = 20_000
	d := ofMany(t, peers, false)
	answer, err := http.Get(watched(t, d).URL)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	lines := bufio.NewReader(answer.Body)
	if e := nextEvent(t, lines); !e.Whole || len(e.Peers) != peers || e.Verdict != "ok" {
		t.Errorf("first: whole %v, %d peers, %s", e.Whole, len(e.Peers), e.Verdict)
	}
	d.repairs.add("+1 route", "ip route replace 10.0.1.0/24")
	for {
		e := nextEvent(t, lines)
		if e.Whole || len(e.Peers) > 0 {
			t.Fatalf("then: whole %v, %d peers", e.Whole, len(e.Peers))
		}
		if len(e.Repairs) == 1 {
			break
		}
	}
}

// BenchmarkPassWhileWatched is of a whole pass of a host with very many peers, while nobody and while
// somebody watches the page.
func BenchmarkPassWhileWatched(b *testing.B) {
	for _, is := range []bool{false, true} {
		b.Run(map[bool]string{false: "unwatched", true: "watched"}[is], func(b *testing.B) {
			d := ofMany(b, 20_000, false)
			loop := d.parts.Load().loop
			if is {
				answer, err := http.Get(watched(b, d).URL)
				if err != nil {
					b.Fatal(err)
				}
				defer answer.Body.Close()
				lines := bufio.NewReader(answer.Body)
				nextEvent(b, lines)
				go lines.WriteTo(io.Discard)
			}
			for b.Loop() {
				loop.Reread()
				loop.Pass(b.Context())
			}
		})
	}
}
