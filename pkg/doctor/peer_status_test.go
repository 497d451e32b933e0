package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/status"
)

// TestPeerStatusKeepsWhatIsNeeded of a document as a daemon writes it.
func TestPeerStatusKeepsWhatIsNeeded(t *testing.T) {
	d := *healthy().status
	d.Bridge = &status.Bridge{Device: "docker0", Address: addr("10.42.7.1"), MTU: 1450}
	for i := range 300 {
		d.Peers = append(d.Peers, status.Peer{Subnet: prefix(fmt.Sprintf("10.43.%d.0/24", i%256))})
		d.Conditions = append(d.Conditions, status.Condition{ID: fmt.Sprint("c", i)})
	}
	text, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	got, err := readPeerStatus(strings.NewReader(string(text)), prefix("10.42.9.0/24"))
	if err != nil || got.Verdict != status.VerdictOK || got.Network != d.Network || got.Lease != d.Lease || got.Bridge == nil || *got.Bridge != *d.Bridge || *got.Store.ViewAge != 1.5 ||
		len(got.Peers) != 1 || got.Peers[0].PublicIP != addr("192.0.2.9") || len(got.Conditions) != maxConditions || got.Conditions[0].ID != "c0" {
		t.Errorf("%v: %+v", err, got)
	}
	if got, err := readPeerStatus(strings.NewReader(string(text)), prefix("10.42.77.0/24")); err != nil || len(got.Peers) != 0 {
		t.Errorf("%v: %+v", err, got)
	}
}

// TestPeerStatusThatIsNone is an error, or says nothing.
func TestPeerStatusThatIsNone(t *testing.T) {
	for text, fine := range map[string]bool{
		`{}`: true, `{"peers":null,"conditions":null,"unknown":[1,{"a":2}],"version":"x"}`: true,
		``: false, `[]`: false, `null`: false, `7`: false, `{`: false, `{"peers":[{"subnet":`: false, `{"peers":{}}`: false, `{"peers":[7]}`: false,
		`{"peers":[{"subnet":"10.42.9.0"}]}`: false, `{"network":7}`: false, `{"conditions":["x"]}`: false, `{"bridge":null}`: true,
		`{"bridge":7}`: false, `{"bridge":{"address":"x"}}`: false, `{"bridge":{"device":7}}`: false, `{"bridge":{"device":"` + strings.Repeat("x", 16) + `"}}`: false, `<html>`: false, `{"verdict":{}}`: false,
		`{"a":` + strings.Repeat("[", 20000): false,
	} {
		if d, err := readPeerStatus(strings.NewReader(text), prefix("10.42.9.0/24")); fine != (err == nil) || len(d.Peers) > 0 {
			t.Errorf("%.60s: %v, %+v", text, err, d)
		}
	}
}

// TestPeerStatusOfTheBridge: what an older flanneld does not say is unknown, and not that there is
// none.
func TestPeerStatusOfTheBridge(t *testing.T) {
	for text, want := range map[string]*status.Bridge{
		`{}`: nil, `{"bridge":null}`: nil, `{"bridge":{"device":""}}`: {}, `{"bridge":{"device":"cni0","address":"","mtu":-1,"more":[{}]}}`: {Device: "cni0", MTU: -1},
	} {
		got, err := readPeerStatus(strings.NewReader(text), prefix("10.42.9.0/24"))
		if err != nil || (got.Bridge == nil) != (want == nil) || want != nil && *got.Bridge != *want {
			t.Errorf("%s: %v, %+v", text, err, got.Bridge)
		}
	}
}

// TestPeerStatusUsesLittleMemory: megabytes of tiny peers and conditions do not become gigabytes.
func TestPeerStatusUsesLittleMemory(t *testing.T) {
	const n = 2 << 20
	tiny := func(name string) io.Reader {
		return io.MultiReader(strings.NewReader(`"`+name+`":[{}`), strings.NewReader(strings.Repeat(",{}", n)), strings.NewReader("]"))
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	d, err := readPeerStatus(io.MultiReader(strings.NewReader("{"), tiny("peers"), strings.NewReader(","), tiny("conditions"), strings.NewReader("}")), prefix("10.42.9.0/24"))
	runtime.GC()
	runtime.ReadMemStats(&after)
	if kept := int64(after.HeapAlloc) - int64(before.HeapAlloc); err != nil || kept > 16<<20 || len(d.Peers) != 0 {
		t.Errorf("%v: %d bytes, %d peers", err, kept, len(d.Peers))
	}
	runtime.KeepAlive(d)
}

func FuzzPeerStatus(f *testing.F) {
	for _, s := range []string{`{"peers":[{"subnet":"10.42.9.0/24","state":"ok"}],"verdict":"ok","lease":{"subnet":"10.42.9.0/24"}}`, `{"conditions":[{"id":"base/x"}],"store":{"view_age_seconds":1}}`, `{"bridge":{"device":"docker0","address":"10.42.9.1","mtu":1450}}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := readPeerStatus(strings.NewReader(text), prefix("10.42.9.0/24"))
		if err == nil && (len(d.Peers) > 1 || len(d.Conditions) > maxConditions) {
			t.Errorf("%+v", d)
		}
	})
}

// TestPeerThatDoesNotAnswer in time, or with something else, is an error. Redirections are not
// followed.
func TestPeerThatDoesNotAnswer(t *testing.T) {
	var asked []string
	stopped := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch asked = append(asked, r.URL.Path); len(asked) {
		case 1:
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		case 2:
			w.Write([]byte("<html>"))
		case 3:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 4:
			json.NewEncoder(w).Encode(healthy().status)
		default:
			w.Write([]byte(`{"peers":[`))
			w.(http.Flusher).Flush()
			<-stopped
		}
	}))
	defer s.Close()
	defer close(stopped)
	at := netip.MustParseAddrPort(s.Listener.Addr().String())
	for i, want := range []string{"HTTP status 302", "no status", "HTTP status 503"} {
		if _, err := askStatus(t.Context(), at, prefix("10.42.9.0/24")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if d, err := askStatus(t.Context(), at, prefix("10.42.9.0/24")); err != nil || len(d.Peers) != 1 {
		t.Errorf("%v: %+v", err, d)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := askStatus(ctx, at, prefix("10.42.9.0/24")); err == nil || ctx.Err() == nil {
		t.Errorf("one that does not end: %v", err)
	}
	if slices.Contains(asked, "/elsewhere") {
		t.Errorf("asked %q", asked)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := netip.MustParseAddrPort(l.Addr().String())
	l.Close()
	if _, err := askStatus(t.Context(), closed, prefix("10.42.9.0/24")); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("nobody: %v", err)
	}
}
