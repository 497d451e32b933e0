package lab

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"testing"
	"time"

	"flanneld/pkg/lab/etcdkeys"
	"flanneld/pkg/lab/etcdtest"
)

func TestEtcd(t *testing.T) {
	ctx, l := newTestLab(t, Options{})
	e := l.Etcd
	must(t, e.Put(ctx, "/net/config", "one", 0))
	must(t, e.Put(ctx, "/net/subnets/a", "two", time.Hour))
	if n, err := e.Get(ctx, "/net/config"); err != nil || n != (etcdkeys.Entry{Key: "/net/config", Value: "one"}) {
		t.Errorf("get: %+v, %v", n, err)
	}
	if n, err := e.Get(ctx, "/net/subnets/a"); err != nil || n.Value != "two" || n.TTL < 59*time.Minute {
		t.Errorf("get: %+v, %v", n, err)
	}
	if err := e.Delete(ctx, "/net/subnets/a"); err != nil {
		t.Error(err)
	}
	if _, err := e.Get(ctx, "/net/subnets/a"); !errors.Is(err, etcdkeys.ErrNoKey) {
		t.Errorf("get of a deleted key: %v", err)
	}

	must(t, errors.Join(e.Kill(ctx), e.Start(ctx)))
	if n, err := e.Get(ctx, "/net/config"); err != nil || n.Value != "one" {
		t.Errorf("get after kill and start: %+v, %v", n, err)
	}
	must(t, errors.Join(e.Stop(ctx), e.Start(ctx)))

	must(t, e.Pause())
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if _, err := e.Get(short, "/net/config"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("get while paused: %v", err)
	}
	must(t, e.Resume())
	if n, err := e.Get(ctx, "/net/config"); err != nil || n.Value != "one" {
		t.Errorf("get after resume: %+v, %v", n, err)
	}

	must(t, e.Wipe(ctx))
	if _, err := e.Get(ctx, "/net/config"); !errors.Is(err, etcdkeys.ErrNoKey) {
		t.Errorf("get after wipe: %v", err)
	}
}

func TestEtcdWithTLS(t *testing.T) {
	underlay := mustPrefix("10.9.0.0/24")
	by := etcdtest.NewAuthority(t)
	files := &TLS{CA: by.File}
	files.ServerCert, files.ServerKey = by.Issue("server", func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(10, 9, 0, 1)} })
	files.ClientCert, files.ClientKey = by.Issue("client")
	ctx, l := newTestLab(t, Options{TLS: files, Underlay: underlay})
	must(t, l.Etcd.Put(ctx, "/key", "value", 0))
	if n, err := l.Etcd.Get(ctx, "/key"); err != nil || n.Value != "value" {
		t.Errorf("get: %+v, %v", n, err)
	}
	stranger := http.Client{Transport: &http.Transport{
		DialContext:     l.Fabric.DialContext,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	defer stranger.CloseIdleConnections()
	if r, err := stranger.Get(l.Etcd.Endpoint() + "/v2/keys/key"); err == nil {
		r.Body.Close()
		t.Errorf("a client without a certificate got %s", r.Status)
	}
}
