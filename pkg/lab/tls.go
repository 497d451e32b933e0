package lab

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// TLS names the PEM files of an etcd that serves TLS and asks for client certificates.
type TLS struct {
	CA                    string // of the server's and of the clients' certificates
	ServerCert, ServerKey string
	ClientCert, ClientKey string // for the lab's own access to keys
}

// NewTLS makes a certificate authority, a server certificate for the etcd of a lab with that underlay and a client
// certificate, all valid for a day, as files in dir.
func NewTLS(dir string, underlay netip.Prefix) (*TLS, error) {
	ca, err := newCertificate("lab CA", nil, nil)
	if err != nil {
		return nil, err
	}
	server, err := newCertificate("lab etcd", ca, offset(underlay.Masked().Addr(), 1).AsSlice())
	if err != nil {
		return nil, err
	}
	client, err := newCertificate("lab client", ca, nil)
	if err != nil {
		return nil, err
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	t := &TLS{
		CA:         in("ca.pem"),
		ServerCert: in("server.pem"), ServerKey: in("server.key"),
		ClientCert: in("client.pem"), ClientKey: in("client.key"),
	}
	return t, errors.Join(
		ca.write(t.CA, ""),
		server.write(t.ServerCert, t.ServerKey),
		client.write(t.ClientCert, t.ClientKey),
	)
}

type certificate struct {
	leaf *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newCertificate makes a certificate signed by ca, or an authority if ca is nil.
func newCertificate(name string, ca *certificate, ip net.IP) (*certificate, error) {
	fail := func(err error) (*certificate, error) {
		return nil, fmt.Errorf("make certificate of %s: %w", name, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fail(err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		return fail(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if ip != nil {
		template.IPAddresses = []net.IP{ip}
	}
	parent, signer := template, crypto.Signer(key)
	if ca == nil {
		template.IsCA, template.BasicConstraintsValid = true, true
		template.KeyUsage |= x509.KeyUsageCertSign
	} else {
		parent, signer = ca.leaf, ca.key
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return fail(err)
	}
	leaf, err := x509.ParseCertificate(raw)
	if err != nil {
		return fail(err)
	}
	return &certificate{leaf: leaf, key: key}, nil
}

// write writes the certificate and, if keyFile is not empty, its key.
func (c *certificate) write(certFile, keyFile string) error {
	err := os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.leaf.Raw}), 0o644)
	if err != nil {
		return fmt.Errorf("write certificate: %w", err)
	}
	if keyFile == "" {
		return nil
	}
	raw, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600); err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	return nil
}

func (t *TLS) clientConfig() (*tls.Config, error) {
	text, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, fmt.Errorf("read CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("read CA %s: no certificate in it", t.CA)
	}
	cert, err := tls.LoadX509KeyPair(t.ClientCert, t.ClientKey)
	if err != nil {
		return nil, fmt.Errorf("read client certificate: %w", err)
	}
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}}, nil
}
