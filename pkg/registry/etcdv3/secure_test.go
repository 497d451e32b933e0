package etcdv3_test

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lab/wait"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcdv3"
	"flanneld/pkg/registry/registrytest"
)

func TestTLS(t *testing.T) {
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
		etcd := etcdtest.StartSecured(t, serverCert, serverKey, clientCA)
		for _, c := range []struct {
			name string
			o    etcdv3.Options
			ok   bool
			want string
		}{
			{"CA only", etcdv3.Options{CAFile: ca.File}, !mutual, "set -etcd-certfile and -etcd-keyfile"},
			{"all", etcdv3.Options{CAFile: ca.File, CertFile: clientCert, KeyFile: clientKey}, true, ""},
			{"wrong CA", etcdv3.Options{CAFile: other.File, CertFile: clientCert, KeyFile: clientKey}, false, "certificate, which is not that in " + other.File},
			{"system roots", etcdv3.Options{}, false, "unknown authority: set -etcd-cafile"},
			{"strange client", etcdv3.Options{CAFile: ca.File, CertFile: strangeCert, KeyFile: strangeKey}, !mutual, "in " + strangeCert + " (-etcd-certfile)"},
			{"expired client", etcdv3.Options{CAFile: ca.File, CertFile: oldCert, KeyFile: oldKey}, !mutual, "in " + oldCert + " (-etcd-certfile)"},
			{"no TLS", etcdv3.Options{Endpoints: []string{"http" + strings.TrimPrefix(etcd.URL, "https")}}, false, "write https:// in -etcd-endpoints"},
			{"no scheme", etcdv3.Options{Endpoints: []string{strings.TrimPrefix(etcd.URL, "https://")}, CAFile: ca.File, CertFile: clientCert, KeyFile: clientKey}, true, ""},
		} {
			if c.o.Endpoints == nil {
				c.o.Endpoints = []string{etcd.URL}
			}
			_, err := open(t, c.o).List(context.Background())
			if (err == nil) != c.ok || (err != nil && (!strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.o.Endpoints[0]))) {
				t.Errorf("%s, client certificates %v: error %v, want %q", c.name, mutual, err, c.want)
			}
		}
	}
}

// An https URL of an etcd without TLS names the remedy; one that is away has none.
func TestNoTLSThere(t *testing.T) {
	etcd := etcdtest.StartEtcd(t)
	ca := etcdtest.NewAuthority(t)
	r := open(t, etcdv3.Options{Endpoints: []string{"https" + strings.TrimPrefix(etcd.URL, "http")}, CAFile: ca.File})
	if _, err := r.Config(timeout(t)); err == nil || !strings.Contains(err.Error(), "write http:// in -etcd-endpoints") {
		t.Errorf("error %v", err)
	}
	etcd.Stop()
	wait.True(t, "the remedy is gone with etcd", func() bool {
		_, err := r.Config(timeout(t))
		return err != nil && !strings.Contains(err.Error(), "-etcd-endpoints")
	})
}

// A server whose certificate is wrong is not spoken to; put right in place, it is.
func TestCertificatesInTime(t *testing.T) {
	ca := etcdtest.NewAuthority(t)
	cert, key := ca.Issue("server")
	clientCert, clientKey := ca.Issue("client", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	etcd := etcdtest.StartSecured(t, cert, key, ca.File)
	caFile := t.TempDir() + "/ca.pem"
	copyFile := func(from string) {
		t.Helper()
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(caFile, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	copyFile(etcdtest.NewAuthority(t).File)
	r := open(t, etcdv3.Options{Endpoints: []string{etcd.URL}, Prefix: prefix, CAFile: caFile, CertFile: clientCert, KeyFile: clientKey})
	fails := func(want string) {
		t.Helper()
		wait.True(t, want, func() bool {
			_, err := r.Config(timeout(t))
			return err != nil && strings.Contains(err.Error(), want)
		})
	}
	fails("unknown authority")
	copyFile(ca.File)
	ca.Issue("server", func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 2)} })
	fails("not 127.0.0.1: write the name in -etcd-endpoints that etcd's certificate is for")
	ca.Issue("server", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	fails("expired")
	ca.Issue("server")
	fails("certificate") // ours
	ca.Issue("client")
	wait.True(t, "all is well", func() bool {
		_, err := r.Config(timeout(t))
		return errors.Is(err, registry.ErrNoConfig)
	})
}

func TestRenewedWhileRunning(t *testing.T) {
	registrytest.RunRenewal(t, func(t testing.TB, o etcdv3.Options) registry.Registry { return open(t, o) })
}

// enableAuth gives root a password, and nobody else any right.
func enableAuth(b *backdoor, password string) {
	b.t.Helper()
	ctx := context.Background()
	_, err := b.UserAdd(ctx, "root", password)
	b.must(err)
	_, err = b.RoleAdd(ctx, "root")
	b.must(err)
	_, err = b.UserGrantRole(ctx, "root", "root")
	b.must(err)
	_, err = b.AuthEnable(ctx)
	b.must(err)
}

func TestPassword(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t, func(c *embed.Config) { c.AuthTokenTTL, c.BcryptCost = 2, 4 })
	b := openBackdoor(t, etcd.URL, prefix)
	b.setConfig("{}")
	good := etcdv3.Options{Endpoints: []string{etcd.URL}, Prefix: prefix, Username: "root", Password: "s3cret!"}
	r := open(t, good)
	// An etcd that asks for no password gets none, and then one that does.
	if _, err := r.Config(timeout(t)); err != nil {
		t.Error(err)
	}
	enableAuth(b, "s3cret!")
	inURL := etcdv3.Options{Endpoints: []string{strings.Replace(etcd.URL, "://", "://root:s3cret%21@", 1)}, Prefix: prefix}
	if c, err := open(t, inURL).Config(timeout(t)); err != nil || string(c) != "{}" {
		t.Errorf("config %q, %v", c, err)
	}
	round := func(when string) {
		t.Helper()
		l := list(t, r)
		made, err := r.Create(timeout(t), subnet7, attrs7, time.Hour)
		if err != nil {
			t.Fatal(when, err)
		}
		if events, _, err := r.Watch(timeout(t), l.Index); err != nil || len(events) != 1 {
			t.Errorf("%s: watch: %v, %v", when, events, err)
		}
		if made, err = r.Update(timeout(t), made, attrs7, time.Hour); err != nil {
			t.Fatal(when, err)
		}
		if err := r.Release(timeout(t), made); err != nil {
			t.Error(when, err)
		}
	}
	round("first")
	etcd.Stop() // and with it its tokens
	etcd.Start(t)
	wait.True(t, "etcd is back", func() bool { _, err := r.Config(timeout(t)); return err == nil })
	round("after a restart")
	index := list(t, r).Index
	wait.True(t, "the token expires", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		_, _, err := r.Watch(ctx, index)
		return errors.Is(err, context.DeadlineExceeded)
	})
	round("after the token expired")

	wrong := good
	wrong.Password = "not s3cret!"
	none := etcdv3.Options{Endpoints: good.Endpoints, Prefix: prefix}
	for want, o := range map[string]etcdv3.Options{"authentication failed": wrong, "user name is empty": none} {
		_, errs := calls(timeout(t), open(t, o))
		for op, err := range errs {
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), etcd.URL) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%s: error %v", op, err)
			}
		}
	}
}

// calls makes each call once.
func calls(ctx context.Context, r *etcdv3.Registry) (registry.Listing, map[string]error) {
	errs := map[string]error{}
	l, err := r.List(ctx)
	errs["list"] = err
	_, errs["config"] = r.Config(ctx)
	_, errs["get"] = r.Get(ctx, subnet7)
	_, errs["create"] = r.Create(ctx, subnet7, attrs7, time.Hour)
	_, errs["update"] = r.Update(ctx, lease7, attrs7, time.Hour)
	errs["release"] = r.Release(ctx, lease7)
	_, _, errs["watch"] = r.Watch(ctx, 7)
	return l, errs
}
