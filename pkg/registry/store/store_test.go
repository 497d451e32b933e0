package store

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"flanneld/pkg/condition"
	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcd"
)

// start opens a store until the test ends.
func start(t *testing.T, o etcd.Options, api API, host Identity) *Store {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	s, err := Open(o, api, host, log, condition.NewList(log))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// TestResolve queries a name server for etcd's members, with and without TLS.
func TestResolve(t *testing.T) {
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go serveNames(server, map[string]dnsmessage.SRVResource{
		"_etcd-client-ssl._tcp.example.org.": {Target: dnsmessage.MustNewName("a.example.org."), Port: 2379},
		"_etcd-client._tcp.example.org.":     {Target: dnsmessage.MustNewName("b.example.org."), Port: 4001},
	})
	system := net.DefaultResolver
	defer func() { net.DefaultResolver = system }()
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp4", server.LocalAddr().String())
	}}
	var log strings.Builder
	resolve := func(ctx context.Context, domain string, w io.Writer) ([]string, error) {
		log := slog.New(slog.NewTextHandler(w, nil))
		return Resolve(ctx, domain, log, condition.NewList(log))
	}
	got, err := resolve(t.Context(), "example.org", &log)
	if want := []string{"https://a.example.org.:2379", "http://b.example.org.:4001"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("found %q, %v, want %q; log:\n%s", got, err, want, &log)
	}

	// Missing records do not end the call, but the end of its context does.
	ctx, cancel := context.WithCancel(t.Context())
	log.Reset()
	if got, err := resolve(ctx, "example.net", ender{&log, cancel}); err == nil {
		t.Errorf("found %q", got)
	}
	if n := strings.Count(log.String(), "cannot find etcd by SRV records"); n != 1 {
		t.Errorf("said %d times:\n%s", n, &log)
	}
}

// ender cancels a context after the first write.
type ender struct {
	*strings.Builder
	cancel context.CancelFunc
}

func (e ender) Write(b []byte) (int, error) {
	e.cancel()
	return e.Builder.Write(b)
}

// serveNames answers queries for SRV records.
func serveNames(server net.PacketConn, records map[string]dnsmessage.SRVResource) {
	buf := make([]byte, 1500)
	for {
		n, from, err := server.ReadFrom(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		q := m.Questions[0]
		m.Response, m.RCode, m.Additionals = true, dnsmessage.RCodeNameError, nil
		if r, ok := records[q.Name.String()]; ok && q.Type == dnsmessage.TypeSRV {
			m.RCode = dnsmessage.RCodeSuccess
			m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}, Body: &r}}
		}
		if answer, err := m.Pack(); err == nil {
			server.WriteTo(answer, from)
		}
	}
}

// TestLongConfigIsNotAMissingOne: the error has the size of the config and does not suggest
// creating one.
func TestLongConfigIsNotAMissingOne(t *testing.T) {
	t.Parallel()
	server := etcdtest.StartEtcd(t)
	if err := server.V2(t).Put(t.Context(), "/net/config", strings.Repeat("x", 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	s := start(t, etcd.Options{Endpoints: []string{server.URL}, Prefix: "/net"}, APIAuto, Identity{})
	if _, err := s.Config(t.Context()); !errors.Is(err, registry.ErrLongConfig) || !strings.Contains(err.Error(), "not 1048576") {
		t.Errorf("error %v", err)
	}
}

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
		o := etcd.Options{Endpoints: []string{"127.0.0.1:1"}, Prefix: "/net", CAFile: ca.File, CertFile: cert, KeyFile: key}
		s := start(t, o, api, Identity{})
		for _, text := range []string{string(good), "half", string(good)} {
			if err := os.WriteFile(key, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Config(t.Context()); err == nil {
				t.Error("there is an etcd at port 1")
			}
			if is, want := s.conditions.Has("etcd-files"), text == "half"; is != want {
				t.Errorf("%s, a key of %d bytes: condition %v, want %v", api, len(text), is, want)
			}
		}
	}
}
