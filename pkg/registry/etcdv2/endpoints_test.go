package etcdv2_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"flanneld/pkg/registry/etcdv2"
)

func TestEndpoints(t *testing.T) {
	for _, good := range []string{
		"http://127.0.0.1:2379", " http://127.0.0.1:2379 ", "127.0.0.1:2379", "etcd.example:2379", "https://[fd42::1]:2379/",
		"[fd42::1]:2379", "http://etcd/some/path", "unix:///run/etcd.sock", "unix://etcd.sock:0", "etcd",
	} {
		if _, err := etcdv2.New(etcdv2.Options{Endpoints: []string{good}}); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for bad, want := range map[string]string{
		"ftp://etcd:2379":                "ftp://etcd:2379",
		"http://":                        "names no host",
		"http://:2379":                   "names no host",
		"unix://":                        "names no socket",
		"http://etcd:port":               "http://etcd:port",
		"http://etcd:2379?x=1":           "without query",
		"http://a:secret@etcd:port":      "***@etcd:port",
		"x:secret@etcd:port":             "***@etcd:port",
		"ftp://a:secret@etcd":            "ftp://***@etcd",
		"http://a:secret@etcd/%zz":       "***@etcd",
		"http://a:sec%ret@etcd":          "***@etcd",
		"http://a:secret@etcd:2379#here": "***@etcd",
	} {
		_, err := etcdv2.New(etcdv2.Options{Endpoints: []string{bad}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q in it", bad, err, want)
		}
		if err != nil && (strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "%re")) {
			t.Errorf("%q: a password in %v", bad, err)
		}
	}
	for _, none := range [][]string{nil, {""}, {" ", ""}} {
		if _, err := etcdv2.New(etcdv2.Options{Endpoints: none}); err == nil || !strings.Contains(err.Error(), "-etcd-endpoints") {
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
		o    etcdv2.Options
		want []string
	}{
		{etcdv2.Options{CertFile: text}, []string{"-etcd-certfile", "-etcd-keyfile"}},
		{etcdv2.Options{KeyFile: text}, []string{"-etcd-certfile", "-etcd-keyfile"}},
		{etcdv2.Options{CAFile: gone}, []string{"-etcd-cafile", gone}},
		{etcdv2.Options{CAFile: text}, []string{"-etcd-cafile", text}},
		{etcdv2.Options{CertFile: text, KeyFile: text}, []string{"-etcd-certfile", text}},
		{etcdv2.Options{CertFile: gone, KeyFile: gone}, []string{"-etcd-certfile", gone}},
	} {
		c.o.Endpoints = []string{"etcd:2379"}
		_, err := etcdv2.New(c.o)
		for _, w := range c.want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%+v: error %v, want %q in it", c.o, err, w)
			}
		}
	}
}
