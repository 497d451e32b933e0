package store

import (
	"log/slog"
	"os"
	"testing"

	"flanneld/pkg/condition"
	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/registry/etcd"
)

// TestBrokenTLSFilesAreACondition: the condition is set while files are invalid, whether or not a
// connection needs them. The previous contents are used.
func TestBrokenTLSFilesAreACondition(t *testing.T) {
	ca := etcdtest.NewAuthority(t)
	cert, key := ca.Issue("client")
	good, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, api := range []API{APIv2, APIv3} {
		wrong := condition.NewList(slog.New(slog.DiscardHandler))
		o := etcd.Options{Endpoints: []string{"127.0.0.1:1"}, Prefix: "/net", CAFile: ca.File, CertFile: cert, KeyFile: key}
		s, err := Open(o, api, Identity{}, slog.New(slog.DiscardHandler), wrong)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{string(good), "half", string(good)} {
			if err := os.WriteFile(key, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Config(t.Context()); err == nil {
				t.Error("there is an etcd at port 1")
			}
			if is, want := wrong.Has("etcd-files"), text == "half"; is != want {
				t.Errorf("%s, a key of %d bytes: condition %v, want %v", api, len(text), is, want)
			}
		}
		s.Close()
	}
}
