// Package etcd says how an etcd is reached: Options as a user gives them, the
// endpoints and the TLS configuration that they come to. Both adapters use
// it, so that a flag means the same whichever API the leases are kept in.
//
// It reads the TLS files, and speaks to no network but for finding out why an
// endpoint does not understand (Remedy). Invariant: no error contains a password,
// and none of an Endpoint's texts does.
package etcd

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
)

// Options say where etcd is and how to speak to it.
type Options struct {
	// Endpoints are URLs (http, https, unix) or plain host:port, which is
	// https where a TLS file is given and http where none is.
	Endpoints []string
	// Prefix is that of the keys, like /coreos.com/network. It is read as a path: slashes
	// that are doubled or at its end mean nothing.
	Prefix string

	// TLS files, PEM. CAFile alone verifies the server; CertFile and KeyFile
	// are this client's and go together. They are read again for each
	// connection, so they may be renewed in place: see Files.
	CAFile, CertFile, KeyFile string
	// OnFiles, if set, is told each time the TLS files are read again: nil, or what is wrong
	// with them, while those that were read before are used. It must not block.
	OnFiles func(error)

	Username, Password string // Username empty: none

	// Connecting, if set, is told each address before a connection to it is tried, of a
	// proxy too. It may be called by several goroutines.
	Connecting func(netip.Addr)
}

// Announce calls Connecting with an address in the form of net.Dialer's Control, except for unix
// sockets.
func (o Options) Announce(address string) {
	if to, err := netip.ParseAddrPort(address); err == nil && o.Connecting != nil {
		o.Connecting(to.Addr().Unmap())
	}
}

// Endpoints is what Options.Endpoints and the credentials come to.
type Endpoints struct {
	All                []Endpoint // at least one
	Username, Password string
}

// Endpoint is one address of etcd: a URL without user, query and fragment.
type Endpoint struct{ url url.URL }

// ParseEndpoints checks each endpoint. Credentials in a URL are taken where
// no user name is given otherwise.
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
			// Kept out of the URL, which is part of error texts.
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

// Host is the name or address of the server, with the port if one is given.
func (e Endpoint) Host() string { return e.url.Host }

// Hostname is what a server's certificate must be for.
func (e Endpoint) Hostname() string { return e.url.Hostname() }

// Secure reports whether TLS is spoken there.
func (e Endpoint) Secure() bool { return e.url.Scheme == "https" }

// Socket returns the path of a unix socket, of unix:///run/etcd.sock or of
// etcd's own unix://name for a relative path; it is empty for all others.
func (e Endpoint) Socket() string {
	if e.url.Scheme != "unix" {
		return ""
	}
	return e.url.Host + e.url.Path
}

// Address returns what to dial. A URL without a port has its scheme's.
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
		// Its text repeats the URL, which may hold a password, and even the
		// cause may quote a piece of that.
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
		// Of "http://root:12/34@etcd" the host is "root".
		return nil, badEndpoint(given, "a URL in which a / of the password is written as %2F")
	case u.RawQuery != "" || u.Fragment != "":
		return nil, badEndpoint(given, "a URL without query and fragment")
	}
	return u, nil
}

func badEndpoint(given, accepted string) error {
	return fmt.Errorf("--etcd-endpoints: %q: must be %s", redact(given), accepted)
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
