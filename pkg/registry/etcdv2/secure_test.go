package etcdv2_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"flanneld/pkg/registry/etcdtest"
	"flanneld/pkg/registry/etcdv2"
)

// authority signs certificates into files.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // of the certificate
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.key = a.newKey()
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	a.file = a.write("ca.pem", "CERTIFICATE", a.create(a.cert, a.key))
	return a
}

func (a *authority) newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return key
}

func (a *authority) create(cert *x509.Certificate, key *ecdsa.PrivateKey) []byte {
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return der
}

func (a *authority) write(name, kind string, der []byte) string {
	p := filepath.Join(a.dir, name)
	if err := os.WriteFile(p, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return p
}

// issue makes a certificate for 127.0.0.1, both of a server and of a client.
func (a *authority) issue(name string) (certFile, keyFile string) {
	key := a.newKey()
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert := a.create(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, key)
	return a.write(name+".pem", "CERTIFICATE", cert), a.write(name+"-key.pem", "EC PRIVATE KEY", der)
}

func TestTLS(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	serverCert, serverKey := ca.issue("server")
	clientCert, clientKey := ca.issue("client")
	strangeCert, strangeKey := other.issue("stranger")
	for _, mutual := range []bool{false, true} {
		etcd := etcdtest.StartEtcd(t, func(c *embed.Config) {
			c.ListenClientUrls[0].Scheme = "https"
			c.ClientTLSInfo.CertFile, c.ClientTLSInfo.KeyFile = serverCert, serverKey
			if mutual {
				c.ClientTLSInfo.ClientCertAuth, c.ClientTLSInfo.TrustedCAFile = true, ca.file
			}
		})
		for _, c := range []struct {
			name string
			o    etcdv2.Options
			ok   bool
			want string
		}{
			{"CA only", etcdv2.Options{CAFile: ca.file}, !mutual, "certificate required"},
			{"all", etcdv2.Options{CAFile: ca.file, CertFile: clientCert, KeyFile: clientKey}, true, ""},
			{"wrong CA", etcdv2.Options{CAFile: other.file, CertFile: clientCert, KeyFile: clientKey}, false, "unknown authority"},
			{"system roots", etcdv2.Options{}, false, "unknown authority"},
			{"strange client", etcdv2.Options{CAFile: ca.file, CertFile: strangeCert, KeyFile: strangeKey}, !mutual, "certificate"},
			{"plain HTTP", etcdv2.Options{Endpoints: []string{"http" + strings.TrimPrefix(etcd.URL, "https")}}, false, ""},
			{"no scheme", etcdv2.Options{Endpoints: []string{strings.TrimPrefix(etcd.URL, "https://")}, CAFile: ca.file, CertFile: clientCert, KeyFile: clientKey}, true, ""},
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
	if err := r.Delete(context.Background(), made); err != nil {
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
