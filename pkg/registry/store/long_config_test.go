package store

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"flanneld/pkg/condition"
	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcd"
)

// TestLongConfigIsNotAMissingOne: the error has the size of the config and does not suggest
// creating one.
func TestLongConfigIsNotAMissingOne(t *testing.T) {
	t.Parallel()
	server := etcdtest.StartEtcd(t)
	if err := server.V2(t).Put(t.Context(), "/net/config", strings.Repeat("x", 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	s, err := Open(etcd.Options{Endpoints: []string{server.URL}, Prefix: "/net"}, APIAuto, Identity{}, log, condition.NewList(log))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Config(t.Context()); !errors.Is(err, registry.ErrLongConfig) || !strings.Contains(err.Error(), "not 1048576") {
		t.Errorf("error %v", err)
	}
}
