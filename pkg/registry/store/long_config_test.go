package store

import (
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"flanneld/pkg/condition"
	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcd"
)

// TestLongConfigIsNotAMissingOne: it is said how long it is, not how to make one.
func TestLongConfigIsNotAMissingOne(t *testing.T) {
	server := etcdtest.StartEtcd(t)
	form := url.Values{"value": {strings.Repeat("x", 1<<20)}}.Encode()
	req, err := http.NewRequest(http.MethodPut, server.URL+"/v2/keys/net/config", strings.NewReader(form))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	log := slog.New(slog.DiscardHandler)
	s, err := Open(etcd.Options{Endpoints: []string{server.URL}, Prefix: "/net"}, APIAuto, Identity{}, log, condition.NewList(log))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Config(t.Context()); !errors.Is(err, registry.ErrLongConfig) || !strings.Contains(err.Error(), "1048576 bytes") {
		t.Errorf("error %v", err)
	}
}
