package page

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"flanneld/pkg/status"
)

// get returns the page's answer.
func get(t *testing.T) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	New(Config{}).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	return w
}

// TestPolicyAllowsOnlyItsOwnScript: a browser runs the script and applies the style of the document,
// by their hashes, and nothing else.
func TestPolicyAllowsOnlyItsOwnScript(t *testing.T) {
	w := get(t)
	policy := map[string]string{}
	for _, d := range strings.Split(w.Header().Get("Content-Security-Policy"), "; ") {
		name, value, _ := strings.Cut(d, " ")
		policy[name] = value
	}
	for _, name := range []string{"script", "style"} {
		elements := regexp.MustCompile(`(?s)<`+name+`\b([^>]*)>(.*?)</`+name+`>`).FindAllStringSubmatch(w.Body.String(), -1)
		if len(elements) != 1 || elements[0][1] != "" {
			t.Fatalf("%d elements %s", len(elements), name)
		}
		hash := sha256.Sum256([]byte(elements[0][2]))
		if want := "'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) + "'"; policy[name+"-src"] != want {
			t.Errorf("%s-src %s, want %s", name, policy[name+"-src"], want)
		}
		if len(elements[0][2]) < 5000 {
			t.Errorf("%s has %d bytes", name, len(elements[0][2]))
		}
	}
	for name, want := range map[string]string{
		"default-src": "'none'", "connect-src": "'self'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'",
		"frame-ancestors": "'none'", "require-trusted-types-for": "'script'", "trusted-types": "'none'",
	} {
		if policy[name] != want {
			t.Errorf("%s %q, want %q", name, policy[name], want)
		}
	}
	for name, want := range map[string]string{
		"Content-Type": "text/html; charset=utf-8", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
		"Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
	} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// TestDocumentNeedsNothingElse: it refers to no other file, and has no code or style in attributes,
// which the policy forbids. Its script does not turn text into elements or code.
func TestDocumentNeedsNothingElse(t *testing.T) {
	html := get(t).Body.String()
	for what, pattern := range map[string]string{
		"a file":               `(?i)\b(src|srcset|action|poster)=|@import|url\(|\bimport\b[ (]`,
		"code in an attribute": `(?i)<[^>]*\son[a-z]+=`,
		"style in one":         `(?i)<[^>]*\sstyle=`,
		"markup from text":     `innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|srcdoc`,
		"code from text":       `\beval\(|new Function|setTimeout\("`,
		"a place to fill in":   `/\* (style|script) \*/`,
	} {
		if found := regexp.MustCompile(pattern).FindString(html); found != "" {
			t.Errorf("%s: %q", what, found)
		}
	}
	for _, m := range regexp.MustCompile(`href="([^"]*)"`).FindAllStringSubmatch(html, -1) {
		if m[1] != "status" && m[1] != "data:," {
			t.Errorf("it refers to %q", m[1])
		}
	}
	for _, url := range regexp.MustCompile(`https?://[^/" ]+`).FindAllString(html, -1) {
		if url != "http://www.w3.org" && url != "https://en.wikipedia.org" { // a namespace, and in a comment
			t.Errorf("it has %s", url)
		}
	}
}

// TestScriptHasEachAsset: a file that is not in the list would be missing.
func TestScriptHasEachAsset(t *testing.T) {
	files, err := assets.ReadDir("assets")
	if err != nil {
		t.Fatal(err)
	}
	html := get(t).Body.String()
	for _, f := range files {
		if text := asset(f.Name()); f.Name() != "page.html" && (len(text) < 1000 || !strings.Contains(html, text)) {
			t.Errorf("%s is not in the document", f.Name())
		}
	}
	if len(files) != len(scripts())+2 {
		t.Errorf("%d files, of which %d are scripts", len(files), len(scripts()))
	}
}

// TestStatesOfPeersAreKnownToTheScript: each value that the status may have.
func TestStatesOfPeersAreKnownToTheScript(t *testing.T) {
	script := asset("model.js")
	for _, state := range []status.PeerState{status.OK, status.Skipped, status.Unprogrammed, status.Unknown} {
		if !strings.Contains(script, `"`+string(state)+`"`) {
			t.Errorf("the state %s", state)
		}
	}
	for _, state := range []status.ProbeState{status.ProbeOK, status.ProbeLossy, status.ProbeFailing} {
		if !strings.Contains(script, `p.probe === "`+string(state)+`"`) || !strings.Contains(script, `{ id: "`+string(state)+`"`) {
			t.Errorf("the probe %s", state)
		}
	}
}
