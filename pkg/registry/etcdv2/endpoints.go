package etcdv2

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
)

// Options say where etcd is and how to speak to it.
type Options struct {
	// Endpoints are URLs (http, https, unix) or plain host:port, which is
	// https where a TLS file is given and http where none is.
	Endpoints []string
	Prefix    string // of the keys, like /coreos.com/network

	// TLS files, PEM. CAFile alone verifies the server; CertFile and KeyFile
	// are this client's and go together. They are read again for each
	// connection, so they may be renewed in place.
	CAFile, CertFile, KeyFile string

	Username, Password string // basic auth; Username empty: none
}

// endpoints is what Options.Endpoints and the credentials come to.
type endpoints struct {
	urls               []string
	sockets            map[string]string // made-up host -> path of a unix socket
	username, password string
}

// parseEndpoints checks each endpoint and brings it into the form that the client takes.
func parseEndpoints(o Options) (endpoints, error) {
	e := endpoints{sockets: map[string]string{}, username: o.Username, password: o.Password}
	for _, given := range o.Endpoints {
		given = strings.TrimSpace(given)
		if given == "" {
			continue
		}
		u, err := parseEndpoint(given, o)
		if err != nil {
			return endpoints{}, err
		}
		if u.User != nil {
			// Kept out of the URL, which is part of error texts.
			if e.username == "" {
				e.username = u.User.Username()
				e.password, _ = u.User.Password()
			}
			u.User = nil
		}
		if u.Scheme == "unix" {
			// unix:///run/etcd.sock, and etcd's own unix://name for a relative path.
			host := fmt.Sprintf("unix-%d.invalid", len(e.sockets))
			e.sockets[host] = u.Host + u.Path
			u = &url.URL{Scheme: "http", Host: host}
		}
		e.urls = append(e.urls, u.String())
	}
	if len(e.urls) == 0 {
		return endpoints{}, errors.New("no etcd endpoint given (-etcd-endpoints)")
	}
	return e, nil
}

func parseEndpoint(given string, o Options) (*url.URL, error) {
	full := given
	if !strings.Contains(given, "://") {
		scheme := "http://"
		if o.CAFile != "" || o.CertFile != "" || o.KeyFile != "" {
			scheme = "https://"
		}
		full = scheme + given
	}
	u, err := url.Parse(full)
	if err != nil {
		// Its text repeats the URL, which may hold a password, and even the
		// cause may quote a piece of that.
		var uerr *url.Error
		if strings.Contains(given, "@") || !errors.As(err, &uerr) {
			return nil, fmt.Errorf("etcd endpoint %q is not a URL", redact(given))
		}
		return nil, fmt.Errorf("etcd endpoint %q is not a URL: %w", given, uerr.Err)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "unix":
		return nil, fmt.Errorf("etcd endpoint %q: scheme %q is not http, https or unix", redact(given), u.Scheme)
	case u.Scheme == "unix" && u.Host+u.Path == "":
		return nil, fmt.Errorf("etcd endpoint %q names no socket", redact(given))
	case u.Scheme != "unix" && u.Hostname() == "":
		return nil, fmt.Errorf("etcd endpoint %q names no host", redact(given))
	case u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("etcd endpoint %q must be a URL without query and fragment", redact(given))
	}
	return u, nil
}

// redact hides the user part of something that may be a URL.
func redact(endpoint string) string {
	at := strings.LastIndexByte(endpoint, '@')
	if at < 0 {
		return endpoint
	}
	start := 0
	if i := strings.Index(endpoint, "://"); i >= 0 && i < at {
		start = i + len("://")
	}
	return endpoint[:start] + "***" + endpoint[at:]
}

// tlsConfig reads the TLS files. Without any, https endpoints are verified by
// the system's roots.
func (o Options) tlsConfig() (*tls.Config, error) {
	if (o.CertFile == "") != (o.KeyFile == "") {
		return nil, errors.New("-etcd-certfile and -etcd-keyfile go together: give both or neither")
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read -etcd-cafile: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("-etcd-cafile %s holds no PEM certificate", o.CAFile)
		}
	}
	if o.CertFile != "" {
		load := func() (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("load -etcd-certfile %s and -etcd-keyfile %s: %w", o.CertFile, o.KeyFile, err)
			}
			return &cert, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return c, nil
}
