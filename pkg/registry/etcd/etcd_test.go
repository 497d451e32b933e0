package etcd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"flanneld/pkg/registry/etcd"
)

func TestEndpoints(t *testing.T) {
	for _, good := range []string{
		"http://127.0.0.1:2379", " http://127.0.0.1:2379 ", "127.0.0.1:2379", "etcd.example:2379", "https://[fd42::1]:2379/",
		"[fd42::1]:2379", "http://etcd/some/path", "unix:///run/etcd.sock", "unix://etcd.sock:0", "etcd",
	} {
		if _, err := (etcd.Options{Endpoints: []string{good}}).ParseEndpoints(); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for bad, want := range map[string]string{
		"ftp://etcd:2379":                "ftp://etcd:2379",
		"http://":                        "with a host",
		"http://:2379":                   "with a host",
		"unix://":                        "of a socket",
		"http://etcd:port":               "http://etcd:port",
		"http://etcd:2379?x=1":           "without query",
		"http://a:secret@etcd:port":      "***@etcd:port",
		"x:secret@etcd:port":             "***@etcd:port",
		"ftp://a:secret@etcd":            "ftp://***@etcd",
		"http://a:secret@etcd/%zz":       "***@etcd",
		"http://a:sec%ret@etcd":          "***@etcd",
		"http://a:secret@etcd:2379#here": "***@etcd",
		"http://a:12/secret@etcd:2379":   "written as %2F",
	} {
		_, err := etcd.Options{Endpoints: []string{bad}}.ParseEndpoints()
		if err == nil || !strings.HasPrefix(err.Error(), "--etcd-endpoints: ") || !strings.Contains(err.Error(), ": must be ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q in it", bad, err, want)
		}
		if err != nil && (strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "%re")) {
			t.Errorf("%q: a password in %v", bad, err)
		}
	}
	for _, none := range [][]string{nil, {""}, {" ", ""}} {
		if _, err := (etcd.Options{Endpoints: none}).ParseEndpoints(); err == nil || !strings.Contains(err.Error(), "-etcd-endpoints") {
			t.Errorf("%q: error %v", none, err)
		}
	}
}

func TestTLSFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	text := write("text", "not PEM")
	gone := filepath.Join(dir, "gone")
	for _, c := range []struct {
		o    etcd.Options
		want []string
	}{
		{etcd.Options{CertFile: text}, []string{"-etcd-certfile", "-etcd-keyfile"}},
		{etcd.Options{KeyFile: text}, []string{"-etcd-certfile", "-etcd-keyfile"}},
		{etcd.Options{CAFile: gone}, []string{"-etcd-cafile", gone}},
		{etcd.Options{CAFile: text}, []string{"-etcd-cafile", text}},
		{etcd.Options{CertFile: text, KeyFile: text}, []string{"-etcd-certfile", text}},
		{etcd.Options{CertFile: gone, KeyFile: gone}, []string{"-etcd-certfile", gone}},
	} {
		c.o.Endpoints = []string{"etcd:2379"}
		_, err := c.o.Files()
		for _, w := range c.want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%+v: error %v, want %q in it", c.o, err, w)
			}
		}
	}
}

func TestAddress(t *testing.T) {
	for given, want := range map[string]string{
		"127.0.0.1:2379":         "tcp 127.0.0.1:2379 false",
		"https://etcd":           "tcp etcd:443 true",
		"http://[fd42::1]/":      "tcp [fd42::1]:80 false",
		" https://a:b@etcd:2379": "tcp etcd:2379 true",
		"unix:///run/etcd.sock":  "unix /run/etcd.sock false",
		"unix://etcd.sock:0":     "unix etcd.sock:0 false",
	} {
		e, err := (etcd.Options{Endpoints: []string{given}}).ParseEndpoints()
		if err != nil {
			t.Fatal(err)
		}
		network, address := e.All[0].Address()
		if got := fmt.Sprint(network, " ", address, " ", e.All[0].Secure()); got != want {
			t.Errorf("%q: %s, want %s", given, got, want)
		}
	}
	// Credentials in a URL are used unless there are others, and are never shown.
	o := etcd.Options{Endpoints: []string{"etcd:1", "http://a:secret@etcd:2"}}
	e, err := o.ParseEndpoints()
	if err != nil || e.Username != "a" || e.Password != "secret" || strings.Contains(fmt.Sprint(e.All), "secret") {
		t.Errorf("%+v, %v", e, err)
	}
	o.Username, o.Password = "b", "other"
	if e, err := o.ParseEndpoints(); err != nil || e.Username != "b" || e.Password != "other" {
		t.Errorf("%+v, %v", e, err)
	}
}

// FuzzParseEndpoints: for any text as an endpoint, neither an error nor the resulting URL contains
// the password, and the URL is a valid endpoint.
func FuzzParseEndpoints(f *testing.F) {
	for _, e := range []string{"http://|127.0.0.1:2379", "|etcd:2379", "unix://|/run/etcd.sock", "https://|[fd42::1%25eth0]:2379/#x", "http://|%zz@:2379?a=b"} {
		before, after, _ := strings.Cut(e, "|")
		f.Add(before, after)
	}
	const secret = "hush-hush"
	f.Fuzz(func(t *testing.T, before, after string) {
		given := before + "root:" + secret + "@" + after
		found, err := (etcd.Options{Endpoints: []string{given}}).ParseEndpoints()
		if err != nil {
			if strings.Contains(err.Error(), secret) && !strings.Contains(before+after, secret) {
				t.Errorf("%q: %v", given, err)
			}
			return
		}
		for _, e := range found.All {
			if e.Socket() != "" {
				continue // a path, which is not a password
			}
			if strings.Contains(e.String()+e.Host()+e.Socket(), secret) && !strings.Contains(before+after, secret) {
				t.Errorf("%q comes to %q", given, e)
			}
			again, err := (etcd.Options{Endpoints: []string{e.String()}}).ParseEndpoints()
			if err != nil || again.All[0].String() != e.String() {
				t.Errorf("%q comes to %q, and that to %v, %v", given, e, again, err)
			}
			e.Address()
		}
	})
}
