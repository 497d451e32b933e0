package page

import (
	"fmt"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/performance"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"flanneld/pkg/status"
)

// limit is the time that an update may keep the page from drawing a frame or answering a key.
const limit = 50 * time.Millisecond

// measure makes a page note its long tasks.
func (p *tab) measure() {
	p.t.Helper()
	eval[bool](p, `
		window.longTasks = [];
		new PerformanceObserver((list) => {
			for (const e of list.getEntries()) window.longTasks.push(Math.round(e.duration));
		}).observe({ type: "longtask" });
		true`)
}

// attempts is how often something is done whose time is measured. Other programs can only make it
// longer.
const attempts = 4

// isSmooth does something several times, and fails the test if it always leads to a task that takes
// longer than the limit.
func (p *tab) isSmooth(what string, do func(attempt int)) {
	p.t.Helper()
	var slow [][]float64
	for i := range attempts {
		eval[bool](p, "window.longTasks.length = 0, true")
		do(i)
		p.do(chromedp.Sleep(1500 * time.Millisecond)) // an update is due each second
		tasks := eval[[]float64](p, "window.longTasks")
		if len(tasks) == 0 {
			return
		}
		slow = append(slow, tasks)
	}
	p.t.Errorf("%s: tasks longer than %v: %v ms", what, limit, slow)
}

// costs does something several times, each followed by an update, and fails the test if it takes more
// of a processor's time than the limit. Other programs do not count.
func (p *tab) costs(what string, do func()) {
	p.t.Helper()
	call(p, performance.Enable, performance.EnableParams{TimeDomain: performance.EnableTimeDomainThreadTicks})
	spent := func() (tasks, script float64) {
		metrics, err := chromedp.Call(p.ctx, performance.GetMetrics, cdp.Empty{})
		if err != nil {
			p.t.Fatal(err)
		}
		for _, m := range metrics.Metrics {
			switch m.Name {
			case "TaskDuration":
				tasks = m.Value
			case "ScriptDuration":
				script = m.Value
			}
		}
		return tasks, script
	}
	const times = 5
	tasks, script := spent()
	for range times {
		do()
		p.do(chromedp.Sleep(1500 * time.Millisecond))
	}
	after, scriptAfter := spent()
	each := (after - tasks) / times
	p.t.Logf("%s takes %.1f ms of a processor, of which %.1f ms are the script's", what, each*1000, (scriptAfter-script)/times*1000)
	if each <= 0 || each > limit.Seconds() {
		p.t.Errorf("%s takes %.1f ms, must be %v at most", what, each*1000, limit)
	}
}

// TestThousandPeersStaySmooth: with a thousand peers, of which a hundred change each second, no task
// takes longer than the limit: neither updates, nor scrolling, sorting, filtering and selecting.
func TestThousandPeersStaySmooth(t *testing.T) {
	if testing.Short() {
		t.Skip("measures times")
	}
	for _, on := range []screen{desktop(), phone()} {
		t.Run(on.String(), func(t *testing.T) {
			s := healthy(1000)
			url, _ := s.serve(t)
			p := open(t, url, on)
			p.text("#peers-count", "1,000 peers")
			p.measure()
			if rows := eval[int](p, "document.querySelectorAll('#rows tr').length"); rows > 100 {
				t.Errorf("%d rows exist", rows)
			}
			changes := 0
			change := func() {
				changes++
				s.set(func(d *status.Document) {
					for i := range 100 {
						fault(&d.Peers[(changes*100+i*7)%1000], []string{"failing", "lossy", "unknown"}[(changes+i)%3])
					}
				})
			}
			p.isSmooth("updates", func(int) { change() })
			p.costs("an update", func() { change() })
			p.isSmooth("scrolling", func(i int) {
				change()
				eval[bool](p, fmt.Sprintf("window.scrollTo(0, %d), true", 3000+i*9000))
			})
			eval[bool](p, "window.scrollTo(0, 0), true")
			p.isSmooth("selecting", func(int) {
				change()
				p.do(chromedp.Focus(chromedp.CSS("#picture-canvas")))
				p.do(chromedp.KeyEvent(kb.ArrowRight))
			})
			p.isSmooth("filtering", func(i int) {
				change()
				p.set("#filter-text", []string{"10.42.1", ""}[i%2])
			})
			p.isSmooth("sorting", func(i int) {
				change()
				p.set("#sort", []string{"rtt", "reason"}[i%2])
			})
			p.set("#filter-text", "")
			p.text("#legend", "lossy")
			p.screenshot("smooth-"+on.String(), false)
			eval[bool](p, "setTimeout(() => { const end = performance.now() + 2 * 50; while (performance.now() < end); }), true")
			p.shows("a task that does take long is noted", "window.longTasks.length > 0")
		})
	}
}

// TestTableScrollsThroughAllPeers: of a thousand, each is shown where it belongs.
func TestTableScrollsThroughAllPeers(t *testing.T) {
	s := healthy(1000)
	url, _ := s.serve(t)
	p := open(t, url, desktop())
	p.text("#peers-count", "1,000 peers")
	for _, i := range []int{500, 999, 250, 0} {
		want := subnet(i + 1).String()
		eval[bool](p, fmt.Sprintf("window.scrollTo(0, document.querySelector('#rows').getBoundingClientRect().top + window.scrollY + %d * 36 - 300), true", i))
		p.shows("peer "+want, fmt.Sprintf(`[...document.querySelectorAll("#rows tr:not(.space)")].some((e) => {
			const box = e.getBoundingClientRect();
			return box.top >= 0 && box.bottom <= innerHeight && e.innerText.includes(%q) && e.ariaRowIndex === "%d";
		})`, want+"\t", i+2))
	}
}

// TestGroupsOfVeryManyPeers: with 20,000, a node of the picture is a group of them, and has the state
// of the worst.
func TestGroupsOfVeryManyPeers(t *testing.T) {
	s := healthy(20_000)
	s.set(func(d *status.Document) { fault(&d.Peers[12_345], "failing") })
	url, _ := s.serve(t)
	p := open(t, url, desktop())
	p.text("#peers-count", "20,000 peers")
	p.text("#rows td.state", "failing")
	p.text("#legend", "failing")
	p.do(chromedp.Focus(chromedp.CSS("#picture-canvas")))
	p.do(chromedp.KeyEvent(kb.Home))
	p.text("#picture-tip", "peers, 10.42.1.0/24 to ")
	p.screenshot("very-many-1280-light", false)
}
