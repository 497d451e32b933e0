package etcd_test

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/registry/etcd"
)

// TestFilesKeepWhatWasGood: a renewed file is used and a broken one is not. The CA is independent
// of the certificate and its key.
func TestFilesKeepWhatWasGood(t *testing.T) {
	type set struct {
		ca, cert, key string // files
		pool          *x509.CertPool
		leaf          string
	}
	issue := func() (s set) {
		a := etcdtest.NewAuthority(t)
		s.ca = a.File
		s.cert, s.key = a.Issue("client")
		text, err := os.ReadFile(s.ca)
		if err != nil {
			t.Fatal(err)
		}
		s.pool = x509.NewCertPool()
		s.pool.AppendCertsFromPEM(text)
		pair, err := tls.LoadX509KeyPair(s.cert, s.key)
		if err != nil {
			t.Fatal(err)
		}
		s.leaf = string(pair.Certificate[0])
		return s
	}
	first, second := issue(), issue()
	dir := t.TempDir()
	ca, cert, key := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	etcdtest.Replace(t, ca, first.ca)
	etcdtest.Replace(t, cert, first.cert)
	etcdtest.Replace(t, key, first.key)
	var told error
	files, err := etcd.Options{CAFile: ca, CertFile: cert, KeyFile: key, OnFiles: func(err error) { told = err }}.Files()
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name     string
		do       func()
		ca, pair set
		told     string // empty if there is no problem
	}{
		{"unchanged", func() {}, first, first, ""},
		{"the CA is empty", func() { os.Truncate(ca, 0) }, first, first, "-etcd-cafile"},
		{"the CA is gone", func() { os.Remove(ca) }, first, first, "-etcd-cafile"},
		{"half of the pair is new", func() { etcdtest.Replace(t, ca, first.ca); etcdtest.Replace(t, cert, second.cert) }, first, first, "-etcd-keyfile"},
		{"and the CA", func() { etcdtest.Replace(t, ca, second.ca) }, second, first, "-etcd-keyfile"},
		{"and the other half", func() { etcdtest.Replace(t, key, second.key) }, second, second, ""},
		{"all are gone", func() { os.RemoveAll(dir) }, second, second, "-etcd-certfile"},
	} {
		step.do()
		c := files.Config()
		pair, err := c.GetClientCertificate(&tls.CertificateRequestInfo{})
		if err != nil {
			t.Fatal(err)
		}
		if !c.RootCAs.Equal(step.ca.pool) || string(pair.Certificate[0]) != step.pair.leaf {
			t.Errorf("%s: not the CA, %v, or not the pair, %v", step.name, !c.RootCAs.Equal(step.ca.pool), string(pair.Certificate[0]) != step.pair.leaf)
		}
		if (told == nil) != (step.told == "") || told != nil && !strings.Contains(told.Error(), step.told) {
			t.Errorf("%s: told %v, want %q", step.name, told, step.told)
		}
	}
}
