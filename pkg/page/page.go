// Package page is the page at /, which shows the status in a browser: the document that a browser
// loads, and the events that keep it up to date.
//
// It only reads. While nobody watches, it has no goroutine and no timer: the document is assembled
// for the first who asks for it, and samples of the traffic are taken when the daemon is awake
// anyway. The document contains no data of the daemon, and runs nothing but its own script.
// Invariants: the work for the watchers does not grow with their number, except for sending; a
// watcher that is slow delays neither others nor the daemon.
package page

import (
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"strings"
	"sync"
	"time"

	"flanneld/pkg/status"
)

// Config configures a Page. Its functions are called by several goroutines.
type Config struct {
	// Status returns the present status.
	Status func() status.Document
	// Device returns the counters of the overlay's device. It returns an empty name if there is no
	// device, or if it cannot be read.
	Device func() (name string, c Counters)
}

// Page serves the page. Make one with New.
type Page struct {
	document func() document
	sampler  sampler
	feed     *feed
}

// New returns a page.
func New(cfg Config) *Page {
	p := &Page{document: sync.OnceValue(assemble), sampler: sampler{read: cfg.Device}}
	p.feed = &feed{wake: make(chan struct{}, 1), status: cfg.Status, traffic: p.sampler.traffic, page: func() string { return p.document().id }}
	return p
}

// Sample takes a sample of the traffic if there was none for idleTime. Who opens the page sees the
// traffic since the first one.
func (p *Page) Sample() { p.sampler.sample(time.Now(), idleTime) }

// ServeHTTP answers requests for the page itself.
func (p *Page) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	d := p.document()
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", d.policy)
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
	setCommonHeaders(h)
	_, _ = w.Write(d.html) // fails only if the client has gone
}

// Events returns the handler of /events, which sends a watcher the status, and then what changes.
func (p *Page) Events() http.Handler { return p.feed }

func setCommonHeaders(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("X-Content-Type-Options", "nosniff")
}

// document is the page as a browser loads it.
type document struct {
	html   []byte
	policy string // its Content-Security-Policy
	id     string // differs between pages that differ
}

//go:embed assets
var assets embed.FS

// scripts returns the names of the scripts, in the order in which they are in the document.
func scripts() []string {
	return []string{"model.js", "text.js", "picture.js", "traffic.js", "peers.js", "stream.js", "main.js"}
}

// assemble returns the document. It is one file, so that it needs no other one of a daemon that may
// have been replaced by then.
func assemble() document {
	html := strings.Replace(asset("page.html"), "/* style */", asset("style.css"), 1)
	var all []string
	for _, name := range scripts() {
		all = append(all, asset(name))
	}
	html = strings.Replace(html, "/* script */", "\"use strict\";\n{\n"+strings.Join(all, "\n")+"}\n", 1)
	whole := sha256.Sum256([]byte(html))
	return document{html: []byte(html), policy: policy(html), id: hex.EncodeToString(whole[:8])}
}

// asset returns an embedded file.
func asset(name string) string {
	text, _ := assets.ReadFile("assets/" + name) // it is embedded
	return string(text)
}

// policy returns the Content-Security-Policy of a document: its own style and script, by their
// hashes, requests to the daemon that it is from, and its icon. The script cannot turn text into
// elements.
func policy(html string) string {
	return strings.Join([]string{
		"default-src 'none'",
		"script-src " + hashOf(html, "script"),
		"style-src " + hashOf(html, "style"),
		"connect-src 'self'",
		"img-src data:",
		"base-uri 'none'",
		"form-action 'none'",
		"frame-ancestors 'none'",
		"require-trusted-types-for 'script'",
		"trusted-types 'none'",
	}, "; ")
}

// hashOf returns the source expression of an element with text, of which there is one.
func hashOf(html, element string) string {
	_, rest, _ := strings.Cut(html, "<"+element+">")
	text, _, _ := strings.Cut(rest, "</"+element+">")
	hash := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) + "'"
}
