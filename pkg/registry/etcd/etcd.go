// Package etcd has the options of a connection to etcd, and parses them: Options as a user sets
// them, and the endpoints and the TLS configuration that follow. Both adapters use it, so that a
// flag has the same meaning for both APIs.
//
// It reads the TLS files. It uses the network only to find out why an endpoint is not understood
// (WithRemedy). Invariant: no error and no text of an Endpoint contains a password.
package etcd

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
)

// Options are the options of a connection to etcd.
type Options struct {
	// Endpoints are URLs (http, https, unix) or host:port, which means https if a TLS file is
	// given, else http.
	Endpoints []string
	// Prefix is the prefix of the keys, such as /coreos.com/network. Double slashes and slashes at
	// its end are ignored.
	Prefix string

	// PEM files for TLS. CAFile alone verifies the server. CertFile and KeyFile are the client's
	// and must be given together. All are read again for each connection, so they can be renewed in
	// place; see Files.
	CAFile, CertFile, KeyFile string
	// OnFiles, if set, is called each time the TLS files are read again: with nil, or with the
	// error while the files that were read before are used. It must not block.
	OnFiles func(error)

	Username, Password string // empty Username: no authentication

	// Connecting, if set, is called with each address before a connection to it is tried, also that
	// of a proxy. It may be called by several goroutines.
	Connecting func(netip.Addr)
}

// Announce calls Connecting with an address, except for unix sockets. It has the form of
// net.Dialer's Control.
func (o Options) Announce(address string) {
	if to, err := netip.ParseAddrPort(address); err == nil && o.Connecting != nil {
		o.Connecting(to.Addr().Unmap())
	}
}

// Endpoints are the parsed endpoints and credentials of Options.
type Endpoints struct {
	All                []Endpoint // at least one
	Username, Password string
}

// Endpoint is a URL of etcd without user, query and fragment.
type Endpoint struct{ url url.URL }

// ParseEndpoints parses and checks the endpoints. Credentials in a URL are used if no user name is
// given otherwise.
func (o Options) ParseEndpoints() (Endpoints, error) {
	e := Endpoints{Username: o.Username, Password: o.Password}
	for _, given := range o.Endpoints {
		given = strings.TrimSpace(given)
		if given == "" {
			continue
		}
		u, err := parseEndpoint(given, o)
		if err != nil {
			return Endpoints{}, err
		}
		if u.User != nil {
			// Not kept in the URL, which is part of error texts.
			if e.Username == "" {
				e.Username = u.User.Username()
				e.Password, _ = u.User.Password()
			}
			u.User = nil
		}
		e.All = append(e.All, Endpoint{*u})
	}
	if len(e.All) == 0 {
		return Endpoints{}, badEndpoint("", "a comma separated list of URLs")
	}
	return e, nil
}

// String returns the URL.
func (e Endpoint) String() string { return e.url.String() }

// Host returns the name or address of the server, with the port if one is given.
func (e Endpoint) Host() string { return e.url.Host }

// Hostname returns the name that the server's certificate must be valid for.
func (e Endpoint) Hostname() string { return e.url.Hostname() }

// Secure reports whether the endpoint uses TLS.
func (e Endpoint) Secure() bool { return e.url.Scheme == "https" }

// Socket returns the path of a unix socket: of unix:///run/etcd.sock, or of etcd's own unix://name
// for a relative path. It is empty for other URLs.
func (e Endpoint) Socket() string {
	if e.url.Scheme != "unix" {
		return ""
	}
	return e.url.Host + e.url.Path
}

// Address returns the network and address to dial. A URL without a port has the port of its scheme.
func (e Endpoint) Address() (network, address string) {
	if socket := e.Socket(); socket != "" {
		return "unix", socket
	}
	port := e.url.Port()
	switch {
	case port != "":
	case e.Secure():
		port = "443"
	default:
		port = "80"
	}
	return "tcp", net.JoinHostPort(e.url.Hostname(), port)
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
		// The error of url.Parse repeats the URL, which may contain a password. Even its cause may
		// quote a part of it.
		var uerr *url.Error
		if strings.Contains(given, "@") || !errors.As(err, &uerr) {
			return nil, badEndpoint(given, "a URL")
		}
		return nil, fmt.Errorf("%w: %w", badEndpoint(given, "a URL"), uerr.Err)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "unix":
		return nil, badEndpoint(given, "a URL with the scheme http, https or unix")
	case u.Scheme == "unix" && u.Host+u.Path == "":
		return nil, badEndpoint(given, "a URL with the path of a socket")
	case u.Scheme != "unix" && u.Hostname() == "":
		return nil, badEndpoint(given, "a URL with a host")
	case u.Scheme != "unix" && strings.Contains(u.EscapedPath(), "@"):
		// In "http://root:12/34@etcd", the host is "root".
		return nil, badEndpoint(given, "a URL in which a / of the password is written as %2F")
	case u.RawQuery != "" || u.Fragment != "":
		return nil, badEndpoint(given, "a URL without query and fragment")
	}
	return u, nil
}

func badEndpoint(given, accepted string) error {
	return fmt.Errorf("--etcd-endpoints: %q: must be %s", redact(given), accepted)
}

// redact hides the user part of a text that may be a URL.
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
