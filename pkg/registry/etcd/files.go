package etcd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
)

// Files are the TLS files of Options, with the content of the last successful reading. A renewed
// file is used from the next connection on. A file that is invalid, incomplete or missing changes
// nothing. Methods may be called by several goroutines.
type Files struct {
	options Options

	mu   sync.Mutex
	ca   *x509.CertPool   // nil: the system's
	pair *tls.Certificate // nil: none
}

// Files reads the TLS files for the first time. All given files must be valid.
func (o Options) Files() (*Files, error) {
	if (o.CertFile == "") != (o.KeyFile == "") {
		return nil, errors.New("--etcd-certfile, --etcd-keyfile: must be given together")
	}
	f := &Files{options: o}
	if err := f.read(); err != nil {
		return nil, err
	}
	return f, nil
}

// Check reads the files again, so that errors are reported before a connection needs the files.
func (f *Files) Check() {
	err := f.read()
	if f.options.OnFiles != nil {
		f.options.OnFiles(err)
	}
}

// Config reads the files again and returns the configuration of one connection, without the
// server's name. Without a CA, servers are verified with the system's roots.
func (f *Files) Config() *tls.Config {
	f.Check()
	f.mu.Lock()
	defer f.mu.Unlock()
	c := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: f.ca}
	if f.pair != nil {
		pair := f.pair
		// The certificate is sent even if it is not of an authority that the server names.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil }
	}
	return c
}

// Lasting returns a configuration for any number of connections. The certificate and its key are
// read again for each. The CA is the present one.
func (f *Files) Lasting() *tls.Config {
	c := f.Config()
	if c.GetClientCertificate != nil {
		c.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return f.Config().GetClientCertificate(info)
		}
	}
	return c
}

// read reads all files that can be read. A certificate and its key are read together.
func (f *Files) read() error {
	ca, caErr := readCA(f.options.CAFile)
	pair, pairErr := readPair(f.options.CertFile, f.options.KeyFile)
	f.mu.Lock()
	defer f.mu.Unlock()
	if caErr == nil {
		f.ca = ca
	}
	if pairErr == nil {
		f.pair = pair
	}
	return errors.Join(caErr, pairErr)
}

func readCA(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--etcd-cafile: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--etcd-cafile: %q: must be a file with PEM certificates", file)
	}
	return pool, nil
}

func readPair(certFile, keyFile string) (*tls.Certificate, error) {
	if certFile == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("--etcd-certfile, --etcd-keyfile: %q, %q: must be files with a PEM certificate and its key: %w", certFile, keyFile, err)
	}
	return &pair, nil
}
