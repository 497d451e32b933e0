// Package page tests the page of package flanneld/pkg/page in a browser, Debian's chromium.
package page

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// timeout limits the time for whatever a test waits for in a tab.
const timeout = 30 * time.Second

// browser is the browser of all tests, one for all of them.
var browser struct {
	sync.Once
	ctx  context.Context
	err  error
	stop func()
}

func TestMain(m *testing.M) {
	code := m.Run()
	if browser.stop != nil {
		browser.stop()
	}
	os.Exit(code)
}

// start starts the browser.
func start() {
	path, err := exec.LookPath("chromium")
	if err != nil {
		browser.err = fmt.Errorf("%w: install it with .ci/packages install all", err)
		return
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU)
	allocated, end := chromedp.NewExecAllocator(context.Background(), options...)
	var closed context.CancelFunc
	browser.ctx, closed = chromedp.NewContext(allocated)
	browser.stop = func() {
		closed()
		end()
	}
	browser.err = chromedp.Do(browser.ctx)
}

// tab is a tab of the browser.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu     sync.Mutex
	errors []string // of the script, and violations of its policy
	quiet  bool     // errors are expected
}

// screen is what a page is shown on.
type screen struct {
	width, height int64
	dark          bool
}

func (s screen) String() string {
	if s.dark {
		return fmt.Sprintf("%d-dark", s.width)
	}
	return fmt.Sprintf("%d-light", s.width)
}

func desktop() screen { return screen{width: 1280, height: 900} }

func phone() screen { return screen{width: 390, height: 844} }

// open opens a page in a new tab, and fails the test at its end if the page had errors.
func open(t *testing.T, url string, s screen) *tab {
	t.Helper()
	p := openTab(t, s)
	p.do(chromedp.Navigate(url))
	return p
}

// openTab opens an empty tab.
func openTab(t *testing.T, s screen) *tab {
	t.Helper()
	browser.Do(start)
	if browser.err != nil {
		t.Fatal(browser.err)
	}
	p := &tab{t: t}
	ctx, cancel := chromedp.NewContext(browser.ctx, chromedp.WithListener(p.event))
	p.ctx = ctx
	scheme := "light"
	if s.dark {
		scheme = "dark"
	}
	call(p, cdplog.Enable, cdp.Empty{})
	call(p, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: s.width, Height: s.height, DeviceScaleFactor: 1, Mobile: s.width < 500})
	call(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
	t.Cleanup(func() {
		cancel()
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, e := range p.errors {
			t.Errorf("the page: %s", e)
		}
	})
	return p
}

// event records errors.
func (p *tab) event(e any) {
	text := ""
	switch e := e.(type) {
	case *runtime.EventExceptionThrown:
		text = e.ExceptionDetails.Text
		if o := e.ExceptionDetails.Exception; o != nil {
			text += " " + o.Description
		}
	case *runtime.EventConsoleAPICalled:
		for _, a := range e.Args {
			text += string(a.Value)
		}
	case *cdplog.EventEntryAdded:
		text = fmt.Sprint(e.Entry.Level, ": ", e.Entry.Text, " ", e.Entry.URL)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if text != "" && !p.quiet {
		p.errors = append(p.errors, text)
	}
}

// expectErrors ignores errors from now on, such as those of a connection that is lost.
func (p *tab) expectErrors() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.quiet = true
}

// within calls f with a context that limits its time.
func within[T any](p *tab, f func(context.Context) (T, error)) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, timeout)
	defer cancel()
	v, err := f(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

// call calls a command of the browser. The first one opens the tab, which lasts as long as its
// context.
func call[P, R any](p *tab, command cdp.Command[P, R], parameters P) {
	p.t.Helper()
	if _, err := chromedp.Call(p.ctx, command, parameters); err != nil {
		p.t.Fatal(err)
	}
}

// do runs an action.
func (p *tab) do(a chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	within(p, func(ctx context.Context) (chromedp.Void, error) { return chromedp.Run(ctx, a) })
}

// eval returns the value of an expression.
func eval[T any](p *tab, expression string) T {
	p.t.Helper()
	return within(p, func(ctx context.Context) (T, error) {
		return chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	})
}

// shows waits until an expression is true.
func (p *tab) shows(what, expression string) {
	p.t.Helper()
	deadline := time.Now().Add(timeout)
	for !eval[bool](p, "!!("+expression+")") {
		if time.Now().After(deadline) {
			p.t.Fatalf("%s: not within %v: the page shows\n%s", what, timeout, eval[string](p, "document.body.innerText"))
		}
		p.do(chromedp.Sleep(50 * time.Millisecond))
	}
}

// text waits until an element has a text.
func (p *tab) text(selector, want string) {
	p.t.Helper()
	p.shows(selector+" is "+want, fmt.Sprintf("document.querySelector(%q)?.innerText.includes(%q)", selector, want))
}

// click clicks at an element.
func (p *tab) click(selector string) {
	p.t.Helper()
	p.do(chromedp.Click(chromedp.CSS(selector)))
}

// screenshot writes what the tab shows to a file, if the environment has a directory for it.
func (p *tab) screenshot(name string, whole bool) {
	p.t.Helper()
	take := chromedp.CaptureScreenshot()
	if whole {
		take = chromedp.FullScreenshot(100)
	}
	png := within(p, func(ctx context.Context) ([]byte, error) { return chromedp.Run(ctx, take) })
	if len(png) < 10_000 {
		p.t.Errorf("%s: a picture of %d bytes", name, len(png))
	}
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		return
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, strings.ReplaceAll(name, " ", "-")+".png"), png, 0o644); err != nil {
		p.t.Fatal(err)
	}
}
