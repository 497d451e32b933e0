package etcd

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// probeTimeout is the time limit for finding out which protocol an endpoint speaks.
const probeTimeout = time.Second

// Failure is an error in plain words with its cause.
type Failure struct {
	Text  string
	Cause error
}

func (f *Failure) Error() string { return f.Text }

// Unwrap returns the cause.
func (f *Failure) Unwrap() error { return f.Cause }

// WithRemedy adds what to set to the error of a connection to an endpoint, if it failed because of
// TLS. It may connect to the endpoint to find out whether it speaks TLS. It sends no secrets.
func (o Options) WithRemedy(ctx context.Context, e Endpoint, err error) error {
	if remedy := o.remedy(ctx, e, err); remedy != "" {
		return fmt.Errorf("%w: %s", err, remedy)
	}
	return err
}

func (o Options) remedy(ctx context.Context, e Endpoint, err error) string {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	switch {
	case err == nil || e.Socket() != "" || ctx.Err() != nil:
		return ""
	case errors.As(err, &unknown) && o.CAFile == "":
		return "set -etcd-cafile to the CA of etcd's certificate"
	case errors.As(err, &unknown):
		return fmt.Sprintf("set -etcd-cafile to the CA of etcd's certificate, which is not that in %s", o.CAFile)
	case errors.As(err, &name):
		return "write the name in -etcd-endpoints that etcd's certificate is for"
	// An alert of the server has no further reason.
	case e.Secure() && strings.Contains(err.Error(), "remote error: tls: ") && o.CertFile == "":
		return "etcd wants a client certificate: set -etcd-certfile and -etcd-keyfile"
	case e.Secure() && strings.Contains(err.Error(), "remote error: tls: "):
		return "etcd refuses the client certificate in " + o.CertFile + " (-etcd-certfile)"
	case !brokenOff(err):
		return ""
	case e.Secure() && speaksHTTP(ctx, e):
		return "etcd speaks no TLS there: write http:// in -etcd-endpoints"
	case !e.Secure() && speaksTLS(ctx, e):
		return "etcd speaks TLS there: write https:// in -etcd-endpoints"
	}
	return ""
}

// brokenOff reports whether a connection ended as it does when both sides speak different
// protocols.
func brokenOff(err error) bool {
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		return false
	}
	var timeout net.Error
	return !(errors.As(err, &timeout) && timeout.Timeout()) && !errors.Is(err, context.Canceled) && !errors.Is(err, net.ErrClosed)
}

// probe connects to an endpoint for at most probeTimeout.
func probe(ctx context.Context, e Endpoint) (net.Conn, error) {
	network, address := e.Address()
	conn, err := (&net.Dialer{Timeout: probeTimeout}).DialContext(ctx, network, address)
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(probeTimeout))
	}
	return conn, err
}

func speaksTLS(ctx context.Context, e Endpoint) bool {
	conn, err := probe(ctx, e)
	if err != nil {
		return false
	}
	defer conn.Close()
	// The certificate is not verified: nothing is sent but the handshake.
	err = tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx)
	return err == nil || strings.Contains(err.Error(), "remote error: tls: ")
}

func speaksHTTP(ctx context.Context, e Endpoint) bool {
	conn, err := probe(ctx, e)
	if err != nil {
		return false
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /version HTTP/1.1\r\nHost: "+e.Host()+"\r\nConnection: close\r\n\r\n"); err != nil {
		return false
	}
	status, err := bufio.NewReader(io.LimitReader(conn, 1024)).ReadString('\n')
	// Some TLS servers answer plain HTTP with status 400.
	return err == nil && strings.HasPrefix(status, "HTTP/1.") && !strings.Contains(status, " 400 ")
}
