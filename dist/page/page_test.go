package page

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"flanneld/pkg/status"
)

// column returns the texts of a column of the table.
func (p *tab) column(class string) []string {
	p.t.Helper()
	return eval[[]string](p, fmt.Sprintf("[...document.querySelectorAll('#rows tr:not(.space) td.%s')].map((e) => e.innerText)", class))
}

// set sets the value of an input or of a selection.
func (p *tab) set(selector, value string) {
	p.t.Helper()
	eval[bool](p, fmt.Sprintf("{ const e = document.querySelector(%q); e.value = %q; e.dispatchEvent(new Event(e.tagName === 'SELECT' ? 'change' : 'input')); }", selector, value))
}

// TestPageShowsTheStatus: verdict, conditions with remedies, repairs, the host; and it follows
// changes without being loaded again.
func TestPageShowsTheStatus(t *testing.T) {
	s := healthy(4)
	url, _ := s.serve(t)
	p := open(t, url, desktop())
	p.text("#verdict", "ok")
	p.text("#host", "10.42.0.0/24 · vxlan · eth0 · 192.0.2.11")
	p.text("#facts", "etcd v3, prefix /coreos.com/network, answered 0 s ago")
	p.text("#peers-count", "4 peers")
	p.shows("no conditions", "document.querySelector('#conditions').hidden")
	p.text("#repairs-none", "None since the start.")

	s.set(func(d *status.Document) {
		d.Conditions = []status.Condition{{ID: "x", Severity: status.Severe, Since: time.Now().Add(-90 * time.Second), Text: "a text", Remedy: "systemctl restart docker"}}
		for i := range 7 {
			d.Repairs = append(d.Repairs, status.Repair{At: time.Now(), What: fmt.Sprint("+", i, " route"), Example: "ip route replace"})
		}
	})
	p.text("#verdict-word", "degraded")
	p.text("#verdict-reason", "a text")
	p.text("#conditions", "severe a text")
	p.text("#conditions time", "since 1 min 3")
	p.text("#conditions code", "systemctl restart docker")
	p.shows("five repairs", "document.querySelectorAll('#repairs li').length === 5")
	p.click("#repairs-more")
	p.shows("all repairs", "document.querySelectorAll('#repairs li').length === 7")
	p.shows("the title", "document.title.startsWith('degraded: 10.42.0.0/24')")

	s.set(func(d *status.Document) {
		d.Conditions = []status.Condition{}
		d.Peers = append(d.Peers[:1], d.Peers[2:]...)
		fault(&d.Peers[0], "failing")
	})
	p.text("#peers-count", "3 peers")
	p.text("#verdict-reason", "of 3 peers, 1 failing the probe")
	p.shows("the failing peer comes first", "document.querySelector('#rows td.state').innerText === 'failing'")

	s.set(func(d *status.Document) { d.Lease.Lost = true })
	p.text("#verdict-word", "down")
	if got := p.column("subnet"); strings.Join(got, " ") != "10.42.1.0/24 10.42.3.0/24 10.42.4.0/24" {
		t.Errorf("peers: %q", got)
	}
}

// TestTableIsSortedAndFiltered: by each column, in both directions, by text, address and state.
func TestTableIsSortedAndFiltered(t *testing.T) {
	s := broken()
	url, _ := s.serve(t)
	p := open(t, url, desktop())
	p.text("#peers-count", "12 peers")
	if got := p.column("state"); strings.Join(got[:7], " ") != "failing unprogrammed lossy skipped unknown unprobed ok" {
		t.Errorf("by state: %q", got)
	}
	for _, by := range []struct{ column, first, then string }{ // of twelve, those that are known
		{"subnet", "10.42.1.0/24 … 10.42.12.0/24", "10.42.12.0/24 … 10.42.1.0/24"},
		{"ip", "192.0.2.13 … 192.0.2.24", "192.0.2.24 … 192.0.2.13"},
		{"rtt", "0.18 ms … 9.00 ms", "9.00 ms … 0.18 ms"},
		{"loss", "100 % … 0 %", "0 % … 100 %"},
		{"changed", "4 min … 4 min", "4 min … 4 min"},
		{"reason", "25 % of the probes are lost … the kernel was not read yet", "the kernel was not read yet … 25 % of the probes are lost"},
		{"programmed", "fdb, neighbour … fdb, neighbour, route", "fdb, neighbour, route … fdb, neighbour"},
	} {
		for _, want := range []string{by.first, by.then} {
			p.click("th." + by.column + " button")
			got := p.column(by.column)
			all := len(got)
			known := slices.DeleteFunc(slices.Clone(got), func(s string) bool { return s == "" })
			n := len(known)
			ends := known[0] + " … " + known[n-1]
			if by.column == "changed" {
				ends = known[0][:5] + " … " + known[n-1][:5]
			}
			if ends != want || all != 12 || !slices.Equal(known, got[:n]) {
				t.Errorf("by %s: %q, want %s", by.column, got, want)
			}
		}
	}
	if got := eval[[]string](p, "[...document.querySelectorAll('th')].map((e) => e.ariaSort)"); !slices.Equal(got, []string{"none", "none", "none", "none", "none", "none", "none", "none", "none", "descending"}) {
		t.Errorf("sorted: %q", got)
	}
	for _, f := range []struct{ text, state, want string }{
		{"10.42.7", "", "10.42.7.0/24"},
		{"10.42.7.200", "", "10.42.7.0/24"}, // of a container
		{"192.0.2.21", "", "10.42.9.0/24"},
		{"OLDER lease", "", "10.42.6.0/24"},
		{"", "lossy", "10.42.4.0/24"},
		{"10.42.7", "lossy", ""},
		{"<b>", "", ""},
	} {
		p.set("#filter-text", f.text)
		p.set("#filter-state", f.state)
		if got := strings.Join(p.column("subnet"), " "); got != f.want {
			t.Errorf("filtered by %q, %q: %q, want %q", f.text, f.state, got, f.want)
		}
	}
	p.text("#peers-none", "No peer matches the filter.")
	p.set("#filter-text", "")
	p.do(chromedp.SendKeys(chromedp.CSS("#filter-text"), "10.42.12"))
	p.text("#peers-count", "1 of 12 peers")
	p.set("#filter-text", "")
	p.set("#filter-state", "lossy")
	p.text("#peers-count", "1 of 12 peers")
	p.click("#legend button[aria-pressed=true]")
	p.text("#peers-count", "12 peers")
	p.click("#legend button:last-child")
	p.text("#peers-count", "1 of 12 peers")
	if got := p.column("state"); len(got) != 1 || got[0] != "failing" {
		t.Errorf("by the legend: %q", got)
	}
}

// TestHostInThePictureOpensItsDetails: with the mouse and with the keyboard; they are up to date, and
// the focus returns when they are closed.
func TestHostInThePictureOpensItsDetails(t *testing.T) {
	s := healthy(4)
	url, _ := s.serve(t)
	for _, on := range []screen{desktop(), phone()} {
		p := open(t, url, on)
		p.text("#peers-count", "4 peers")
		p.do(chromedp.Focus(chromedp.CSS("#picture-canvas")))
		p.do(chromedp.KeyEvent(kb.ArrowRight))
		p.do(chromedp.KeyEvent(kb.ArrowRight))
		p.text("#picture-tip", "10.42.2.0/24, 192.0.2.14, ok")
		p.text("#picture-said", "10.42.2.0/24, 192.0.2.14, ok")
		place := eval[[]float64](p, `(() => {
			const box = document.querySelector("#picture-canvas").getBoundingClientRect();
			const { x, y } = document.querySelector("#picture-tip").dataset;
			return [box.left + Number(x), box.top + Number(y)];
		})()`)
		p.do(chromedp.KeyEvent(kb.Enter))
		p.text("#details-title", "Peer 10.42.2.0/24")
		p.shows("the focus is in the details", "document.activeElement.id === 'details-title'")
		p.do(chromedp.KeyEvent(kb.Escape))
		p.shows("they are closed", "document.querySelector('#details').hidden && document.activeElement.id === 'picture-canvas'")

		if on.width > 500 {
			p.do(chromedp.MouseEvent(input.DispatchMouseEventTypeMouseMoved, place[0]+5, place[1]+5))
			p.text("#picture-tip", "10.42.2.0/24")
		}
		p.do(chromedp.MouseClickXY(place[0]+3, place[1]-3))
		p.text("#details", "192.0.2.14")
		s.set(func(d *status.Document) { fault(&d.Peers[1], "lossy") })
		p.text("#details", "25 % of the probes are lost")
		s.set(func(d *status.Document) { d.Peers = append(d.Peers[:1], d.Peers[2:]...) })
		p.text("#details", "It has left the network.")
		p.click("#details-close")
		p.shows("they are closed", "document.querySelector('#details').hidden")
		s = healthy(4)
		url, _ = s.serve(t)
	}
}

// TestPageWithoutAPeer: and with an alloc network, which has no device, before there is a lease.
func TestPageWithoutAPeer(t *testing.T) {
	s := healthy(0)
	s.set(func(d *status.Document) {
		d.Backend, d.Lease, d.Uplink, d.Drift = status.Backend{}, status.Lease{}, status.Uplink{}, nil
		d.Network.CIDR = netip.Prefix{}
	})
	url, _ := s.serve(t)
	p := open(t, url, phone())
	p.text("#verdict", "down")
	p.text("#verdict-reason", "this host has no subnet")
	p.text("#peers-none", "This host knows no other host of the network.")
	p.text("#traffic-none", "There is no device of the overlay")
}

// TestPageWhoseDaemonIsGone: the page says so, how old its data is, and is live again when there is a
// daemon.
func TestPageWhoseDaemonIsGone(t *testing.T) {
	s := healthy(4)
	url, stop := s.serve(t)
	p := open(t, url, desktop())
	p.text("#live", "live")
	p.expectErrors()
	stop()
	p.text("#lost", "The connection to flanneld is lost, and is tried again. What you see is the state of ")
	p.text("#live", "connection lost")
	p.text("#lost time", "3 s ago")
	s.set(func(d *status.Document) { fault(&d.Peers[0], "failing") })
	s.serveAt(t, strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/"))
	p.text("#live", "live")
	p.text("#verdict", "degraded")
	p.shows("no notice", "document.querySelector('#lost').hidden")
}

// TestSilentConnectionIsLost: one that stays, but on which nothing arrives any longer, as behind a
// firewall that has forgotten it.
func TestSilentConnectionIsLost(t *testing.T) {
	url, _ := healthy(4).serve(t)
	var silent atomic.Bool
	p := open(t, rewrite(t, url, func(line []byte) []byte {
		if silent.Load() {
			return nil
		}
		return line
	}), desktop())
	p.text("#live", "live")
	silent.Store(true)
	p.text("#lost", "The connection to flanneld is lost")
	silent.Store(false)
	p.text("#live", "live")
}

// TestNewerPageIsOffered: after an upgrade of the daemon, the page that is open may not understand
// it.
func TestNewerPageIsOffered(t *testing.T) {
	url, _ := healthy(4).serve(t)
	var newer atomic.Bool
	id := regexp.MustCompile(`"page":"[0-9a-f]+"`)
	p := open(t, rewrite(t, url, func(line []byte) []byte {
		if newer.Load() {
			return id.ReplaceAllLiteral(line, []byte(`"page":"0"`))
		}
		return line
	}), desktop())
	p.text("#live", "live")
	p.shows("no notice", "document.querySelector('#newer').hidden")
	newer.Store(true)
	p.text("#newer", "This flanneld has another version of the page.")
	p.click("#reload")
	p.shows("no notice", "document.querySelector('#newer').hidden && document.querySelector('#live').innerText.includes('live')")
}

// TestPageOfABusyDaemon: one that has as many watchers as it serves is asked again.
func TestPageOfABusyDaemon(t *testing.T) {
	url, _ := healthy(1).serve(t)
	var ends []context.CancelFunc
	for range 8 {
		ctx, cancel := context.WithCancel(t.Context())
		ends = append(ends, cancel)
		r, err := http.NewRequestWithContext(ctx, "GET", url+"events", nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil || answer.StatusCode != 200 {
			t.Fatal(answer, err)
		}
		defer answer.Body.Close()
	}
	p := openTab(t, desktop())
	p.expectErrors()
	p.do(chromedp.Navigate(url))
	p.text("#lost", "This flanneld serves as many pages as it can.")
	for _, end := range ends {
		end()
	}
	p.text("#live", "live")
	p.text("#verdict", "ok")
}

// TestHostileValuesStayText: whatever other hosts write into leases is text on the page, and does not
// change its layout.
func TestHostileValuesStayText(t *testing.T) {
	hostile := []string{
		`<img src=x onerror="document.title='owned'">`, `</script><script>document.title='owned'</script>`, "javascript:alert(1)",
		"\u202egnp.exe", "a\nb\r\n\ndata: {}\n\n", "\x00\x1b[2J\u2028\u2029", strings.Repeat("w", 100_000), strings.Repeat("e\u0301\u0302\u0303", 1000), "${x}`'\"\\",
		"__proto__", "constructor", "\xff\xfe",
	}
	s := healthy(len(hostile))
	s.set(func(d *status.Document) {
		for i, text := range hostile {
			p := &d.Peers[i]
			p.State, p.Reason, p.Programmed, p.Probe = status.PeerState(text), text, text, status.ProbeState(text)
			d.Conditions = append(d.Conditions, status.Condition{ID: text, Severity: status.Severity(text), Since: time.Now(), Text: text, Remedy: text})
			d.Repairs = append(d.Repairs, status.Repair{At: time.Now(), What: text, Example: text})
		}
		d.Backend.Type, d.Backend.Device, d.Uplink.Interface, d.Store.Prefix, d.Filter.Keeper = hostile[0], hostile[1], hostile[3], hostile[5], hostile[6]
	})
	url, _ := s.serve(t)
	for _, on := range []screen{desktop(), phone()} {
		p := open(t, url, on)
		p.text("#peers-count", "12 peers")
		p.click("#rows tr:not(.space) button")
		p.shows("the details", "!document.querySelector('#details').hidden")
		if got := eval[string](p, "document.title"); strings.Contains(got, "owned") {
			t.Errorf("the title is %q", got)
		}
		if n := eval[int](p, "document.images.length + document.scripts.length"); n != 1 {
			t.Errorf("%d images and scripts", n)
		}
		if wide := eval[int64](p, "document.documentElement.scrollWidth"); wide > on.width {
			t.Errorf("it is %d pixels wide", wide)
		}
		text := eval[string](p, "document.body.innerText")
		for _, want := range []string{hostile[0], `\u{202e}gnp.exe`, `\u{0}\u{1b}[2J\u{2028}\u{2029}`, hostile[8]} {
			if !strings.Contains(text, want) {
				t.Errorf("%q is not shown", want)
			}
		}
		for _, bad := range []string{"\u202e", "\u0301", "\u2028"} {
			if strings.Contains(text, bad) {
				t.Errorf("%q is shown as it is", bad)
			}
		}
	}
}

// TestNothingElseIsLoaded: the page makes no requests but for events, also with a policy that is
// stricter than its own.
func TestNothingElseIsLoaded(t *testing.T) {
	url, _ := healthy(3).serve(t)
	p := open(t, url, desktop())
	p.text("#live", "live")
	if got := eval[[]string](p, "performance.getEntriesByType('resource').map((e) => new URL(e.name).pathname)"); len(got) > 1 || len(got) == 1 && got[0] != "/events" {
		t.Errorf("it loads %q", got)
	}
	// What the policy forbids, by a script that it does not stop itself.
	p.expectErrors()
	if eval[bool](p, `(() => { try { document.body.innerHTML = "<b>x</b>"; return true; } catch { return false; } })()`) {
		t.Error("text can be turned into elements")
	}
	if got := eval[string](p, `(() => {
		const s = document.createElement("style");
		s.textContent = "body { display: none }";
		document.head.append(s);
		return getComputedStyle(document.body).display;
	})()`); got == "none" {
		t.Error("another style is applied")
	}
}
