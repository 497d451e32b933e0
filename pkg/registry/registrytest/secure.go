package registrytest

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lab/wait"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcd"
)

// testCertificates checks that an error about the certificates of either side names the flag to
// set.
func testCertificates(t *testing.T, a API[Closer]) {
	ca, other := etcdtest.NewAuthority(t), etcdtest.NewAuthority(t)
	serverCert, serverKey := ca.Issue("server")
	clientCert, clientKey := ca.Issue("client")
	oldCert, oldKey := ca.Issue("old", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	strangeCert, strangeKey := other.Issue("stranger")
	for _, mutual := range []bool{false, true} {
		clientCA := ""
		if mutual {
			clientCA = ca.File
		}
		server := etcdtest.StartSecured(t, serverCert, serverKey, clientCA)
		host := strings.TrimPrefix(server.URL, "https://")
		for _, c := range []struct {
			name string
			o    etcd.Options
			ok   bool
			want string
		}{
			{"CA only", etcd.Options{CAFile: ca.File}, !mutual, "set -etcd-certfile and -etcd-keyfile"},
			{"all", etcd.Options{CAFile: ca.File, CertFile: clientCert, KeyFile: clientKey}, true, ""},
			{"wrong CA", etcd.Options{CAFile: other.File, CertFile: clientCert, KeyFile: clientKey}, false, "certificate, which is not that in " + other.File},
			{"system roots", etcd.Options{}, false, "unknown authority: set -etcd-cafile"},
			{"strange client", etcd.Options{CAFile: ca.File, CertFile: strangeCert, KeyFile: strangeKey}, !mutual, "in " + strangeCert + " (-etcd-certfile)"},
			{"expired client", etcd.Options{CAFile: ca.File, CertFile: oldCert, KeyFile: oldKey}, !mutual, "in " + oldCert + " (-etcd-certfile)"},
			{"no TLS", etcd.Options{Endpoints: []string{"http://" + host}}, false, "write https:// in -etcd-endpoints"},
			{"no scheme", etcd.Options{Endpoints: []string{host}, CAFile: ca.File, CertFile: clientCert, KeyFile: clientKey}, true, ""},
		} {
			if c.o.Endpoints == nil {
				c.o.Endpoints = []string{server.URL}
			}
			_, err := a.Open(t, c.o).List(Timeout(t))
			if (err == nil) != c.ok || err != nil && (!strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), host)) {
				t.Errorf("%s, client certificates %v: error %v, want %q", c.name, mutual, err, c.want)
			}
		}
	}
}

// testCertificatesInTime checks that an etcd with a wrong certificate is not used, and that it is
// used after the file was replaced.
func testCertificatesInTime(t *testing.T, a API[Closer]) {
	ca := etcdtest.NewAuthority(t)
	cert, key := ca.Issue("server")
	clientCert, clientKey := ca.Issue("client", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	server := etcdtest.StartSecured(t, cert, key, ca.File)
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	etcdtest.Replace(t, caFile, etcdtest.NewAuthority(t).File)
	r := a.Open(t, etcd.Options{Endpoints: []string{server.URL}, Prefix: Prefix, CAFile: caFile, CertFile: clientCert, KeyFile: clientKey})
	fails := func(want string) {
		t.Helper()
		wait.True(t, want, func() bool {
			_, err := r.Config(Timeout(t))
			return err != nil && strings.Contains(err.Error(), want)
		})
	}
	fails("unknown authority")
	etcdtest.Replace(t, caFile, ca.File)
	ca.Issue("server", func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 2)} })
	fails("not 127.0.0.1: write the name in -etcd-endpoints that etcd's certificate is for")
	ca.Issue("server", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	fails("expired")
	ca.Issue("server")
	fails("certificate") // the client's certificate
	ca.Issue("client")
	wait.True(t, "all is well", func() bool {
		_, err := r.Config(Timeout(t))
		return errors.Is(err, registry.ErrNoConfig)
	})
}

// testNoTLSThere checks that an https URL of an etcd without TLS has a remedy in its error, and
// that an etcd that is down has none.
func testNoTLSThere(t *testing.T, a API[Closer]) {
	server := etcdtest.StartEtcd(t)
	ca := etcdtest.NewAuthority(t)
	r := a.Open(t, etcd.Options{Endpoints: []string{"https" + strings.TrimPrefix(server.URL, "http")}, CAFile: ca.File})
	if _, err := r.Config(Timeout(t)); err == nil || !strings.Contains(err.Error(), "write http:// in -etcd-endpoints") {
		t.Errorf("error %v", err)
	}
	server.Stop()
	wait.True(t, "the remedy is gone with etcd", func() bool {
		_, err := r.Config(Timeout(t))
		return err != nil && !strings.Contains(err.Error(), "-etcd-endpoints")
	})
}

// testPassword checks that the password is sent to an etcd that requires one, also to one that has
// lost its tokens or whose tokens have expired, and that no error contains it.
func testPassword(t *testing.T, a API[Closer]) {
	server := etcdtest.StartEtcd(t, etcdtest.ShortTokens)
	NewOperator(t, server, a.Name).SetConfig("{}")
	good := etcd.Options{Endpoints: []string{server.URL}, Prefix: Prefix, Username: "root", Password: etcdtest.Password}
	r := a.Open(t, good)
	if _, err := r.Config(Timeout(t)); err != nil {
		t.Errorf("of an etcd that asks for none: %v", err)
	}
	server.RequirePassword(t, a.Name)
	inURL := etcd.Options{Endpoints: []string{strings.Replace(server.URL, "://", "://root:s3cret%21@", 1)}, Prefix: Prefix}
	if c, err := a.Open(t, inURL).Config(Timeout(t)); err != nil || string(c) != "{}" {
		t.Errorf("config %q, %v", c, err)
	}
	round := func(when string) {
		t.Helper()
		index := List(t, r).Index
		made := Create(t, r)
		Events(t, r, index, 1)
		made = Update(t, r, made)
		if err := r.Release(Timeout(t), made); err != nil {
			t.Error(when, err)
		}
		wait.True(t, when+": the lease ends", func() bool {
			ev, err := r.Get(Timeout(t), subnets(7))
			return err == nil && ev.Deleted
		})
	}
	round("first")
	server.Stop() // etcd loses its tokens
	server.Start(t)
	wait.True(t, "etcd is back", func() bool { _, err := r.Config(Timeout(t)); return err == nil })
	round("after a restart")
	index := List(t, r).Index
	wait.True(t, "the token expires", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		_, _, err := r.Watch(ctx, index)
		return errors.Is(err, context.DeadlineExceeded)
	})
	round("after the token expired")

	wrong := good
	wrong.Password = "not s3cret!"
	none := etcd.Options{Endpoints: good.Endpoints, Prefix: Prefix}
	for _, o := range []etcd.Options{wrong, none} {
		errs := Calls(Timeout(t), a.Open(t, o))
		for op, err := range errs {
			if !errors.Is(err, registry.ErrDenied) || !strings.Contains(err.Error(), strings.TrimPrefix(server.URL, "http://")) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%s as %q: %v", op, o.Username, err)
			}
		}
	}
}
