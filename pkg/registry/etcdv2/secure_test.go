package etcdv2_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcdv2"
	"flanneld/pkg/registry/registrytest"
)

func TestTLS(t *testing.T) {
	ca, other := etcdtest.NewAuthority(t), etcdtest.NewAuthority(t)
	serverCert, serverKey := ca.Issue("server")
	clientCert, clientKey := ca.Issue("client")
	strangeCert, strangeKey := other.Issue("stranger")
	for _, mutual := range []bool{false, true} {
		etcd := etcdtest.StartEtcd(t, func(c *embed.Config) {
			c.ListenClientUrls[0].Scheme = "https"
			c.ClientTLSInfo.CertFile, c.ClientTLSInfo.KeyFile = serverCert, serverKey
			if mutual {
				c.ClientTLSInfo.ClientCertAuth, c.ClientTLSInfo.TrustedCAFile = true, ca.File
			}
		})
		for _, c := range []struct {
			name string
			o    etcdv2.Options
			ok   bool
			want string
		}{
			{"CA only", etcdv2.Options{CAFile: ca.File}, !mutual, "certificate required: etcd wants a client certificate: set -etcd-certfile and -etcd-keyfile"},
			{"all", etcdv2.Options{CAFile: ca.File, CertFile: clientCert, KeyFile: clientKey}, true, ""},
			{"wrong CA", etcdv2.Options{CAFile: other.File, CertFile: clientCert, KeyFile: clientKey}, false, "certificate, which is not that in " + other.File},
			{"system roots", etcdv2.Options{}, false, "unknown authority: set -etcd-cafile"},
			{"strange client", etcdv2.Options{CAFile: ca.File, CertFile: strangeCert, KeyFile: strangeKey}, !mutual, "in " + strangeCert + " (-etcd-certfile)"},
			{"plain HTTP", etcdv2.Options{Endpoints: []string{"http" + strings.TrimPrefix(etcd.URL, "https")}}, false, "write https:// in -etcd-endpoints"},
			{"no scheme", etcdv2.Options{Endpoints: []string{strings.TrimPrefix(etcd.URL, "https://")}, CAFile: ca.File, CertFile: clientCert, KeyFile: clientKey}, true, ""},
		} {
			if c.o.Endpoints == nil {
				c.o.Endpoints = []string{etcd.URL}
			}
			_, err := open(t, c.o).List(context.Background())
			if (err == nil) != c.ok || (err != nil && !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%s, client certificates %v: error %v, want %q", c.name, mutual, err, c.want)
			}
		}
	}
}

// An https URL of an etcd without TLS names the remedy.
func TestNoTLSThere(t *testing.T) {
	etcd := etcdtest.StartEtcd(t)
	ca := etcdtest.NewAuthority(t)
	r := open(t, etcdv2.Options{Endpoints: []string{"https" + strings.TrimPrefix(etcd.URL, "http")}, CAFile: ca.File})
	if _, err := r.Config(context.Background()); err == nil || !strings.Contains(err.Error(), "write http:// in -etcd-endpoints") {
		t.Errorf("error %v", err)
	}
}

// A CA that is renewed in place is taken at the next connection.
func TestRenewedCA(t *testing.T) {
	ca := etcdtest.NewAuthority(t)
	cert, key := ca.Issue("server")
	etcd := etcdtest.StartEtcd(t, func(c *embed.Config) {
		c.ListenClientUrls[0].Scheme = "https"
		c.ClientTLSInfo.CertFile, c.ClientTLSInfo.KeyFile = cert, key
	})
	file := etcdtest.NewAuthority(t).File
	r := open(t, etcdv2.Options{Endpoints: []string{etcd.URL}, Prefix: prefix, CAFile: file})
	if _, err := r.List(context.Background()); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("error %v", err)
	}
	pem, err := os.ReadFile(ca.File)
	if err == nil {
		err = os.WriteFile(file, pem, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.List(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestRenewedWhileRunning(t *testing.T) {
	registrytest.RunRenewal(t, func(t testing.TB, o etcdv2.Options) registry.Registry { return open(t, o) })
}

func TestBasicAuth(t *testing.T) {
	etcd := etcdtest.StartEtcd(t)
	openBackdoor(t, etcd.URL, prefix).set("config", "{}", 0)
	admin := func(path string, body any) {
		t.Helper()
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequest(http.MethodPut, etcd.URL+"/v2/auth"+path, bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.SetBasicAuth("root", "s3cret!")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if text, _ := io.ReadAll(resp.Body); resp.StatusCode/100 != 2 {
			t.Fatalf("%s: %s %s", path, resp.Status, text)
		}
	}
	admin("/users/root", map[string]any{"user": "root", "password": "s3cret!"})
	admin("/enable", nil)
	admin("/roles/guest", map[string]any{"role": "guest", "revoke": map[string]any{"kv": map[string]any{"read": []string{"/*"}, "write": []string{"/*"}}}})

	good := etcdv2.Options{Endpoints: []string{etcd.URL}, Prefix: prefix, Username: "root", Password: "s3cret!"}
	inURL := etcdv2.Options{Endpoints: []string{strings.Replace(etcd.URL, "://", "://root:s3cret%21@", 1)}, Prefix: prefix}
	if c, err := open(t, inURL).Config(context.Background()); err != nil || string(c) != "{}" {
		t.Errorf("config %q, %v", c, err)
	}
	r := open(t, good)
	l, err := r.List(context.Background())
	if err != nil {
		t.Error(err)
	}
	made, err := r.Create(context.Background(), subnet7, attrs7, time.Hour)
	if err != nil {
		t.Error(err)
	}
	if events, _, err := r.Watch(context.Background(), l.Index); err != nil || len(events) != 1 {
		t.Errorf("watch: %v, %v", events, err)
	}
	if err := r.Release(context.Background(), made); err != nil {
		t.Error(err)
	}
	wrong := good
	wrong.Password = "not s3cret!"
	none := etcdv2.Options{Endpoints: good.Endpoints, Prefix: prefix}
	for _, o := range []etcdv2.Options{wrong, none} {
		r := open(t, o)
		_, read := r.Config(context.Background())
		_, write := r.Create(context.Background(), subnet7, attrs7, time.Hour)
		for op, err := range map[string]error{"config": read, "create": write} {
			if err == nil || !strings.Contains(err.Error(), "Insufficient credentials") || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%s: error %v", op, err)
			}
		}
	}
}
