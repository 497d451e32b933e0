package etcdv2

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	client "go.etcd.io/etcd/client/v2"

	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcd"
)

const (
	// maxBody is the maximum size of an answer that is parsed as it arrives. 20,000 leases are
	// about 6 MB.
	maxBody = 1 << 30
	// maxRefusal is the maximum size of other answers.
	maxRefusal = 16 << 10
	// stallTimeout is the time after which an answer without progress is given up.
	stallTimeout = 10 * time.Second
)

var (
	errNoNode  = errors.New("answer is not one of etcd's v2 keys API: it has no node")
	errNoEvent = errors.New("watch was ended without an event")
	errSilence = errors.New("watch was quiet")
	errAnother = errors.New("watch may have come to another store")
	errSlow    = errors.New("no answer in time")
)

// transport is an HTTP transport that checks each answer before the etcd client gets it.
type transport struct {
	*http.Transport
	conns     *etcd.ConnTracker
	options   Options
	files     *etcd.Files
	endpoints endpoints
	// waiting is called when a watch after index from starts to wait at store index to, with its
	// connection. An error ends the watch.
	waiting func(from, to uint64, on net.Conn) error
}

func newTransport(e endpoints, o Options, files *etcd.Files) *transport {
	dialer := &net.Dialer{
		Timeout: dialTimeout,
		// A long-poll waits on a connection without traffic.
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3},
		Control: func(_, address string, _ syscall.RawConn) error {
			o.Announce(address)
			return nil
		},
	}
	conns := &etcd.ConnTracker{}
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		host, _, _ := net.SplitHostPort(addr)
		if one, is := e.socket(host); is {
			network, addr = one.Address()
		}
		conn, err := dialer.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return conns.Add(conn), nil
	}
	return &transport{conns: conns, options: o, files: files, endpoints: e, Transport: &http.Transport{
		Proxy: func(req *http.Request) (*url.URL, error) {
			if _, is := e.socket(req.URL.Hostname()); is {
				return nil, nil
			}
			return http.ProxyFromEnvironment(req)
		},
		DialContext: dial,
		// Not used with a proxy, for which TLSClientConfig is used.
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return secure(ctx, files, conn, addr)
		},
		TLSClientConfig:     files.Lasting(),
		TLSHandshakeTimeout: answerTimeout,
		IdleConnTimeout:     90 * time.Second,
	}}
}

// secure starts TLS on a connection to addr.
func secure(ctx context.Context, files *etcd.Files, conn net.Conn, addr string) (net.Conn, error) {
	config := files.Config()
	var err error
	if config.ServerName, _, err = net.SplitHostPort(addr); err != nil {
		conn.Close()
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	c := tls.Client(conn, config)
	if err := c.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// endpointError is the error of a request to one endpoint.
type endpointError struct {
	error
	to etcd.Endpoint
}

func (e *endpointError) Unwrap() error { return e.error }

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	q := req.URL.Query()
	wait := q.Get("wait") == "true"
	list, _ := req.Context().Value(listingKey{}).(*listing)
	ctx, cancel := context.WithCancelCause(req.Context())
	b := &body{host: req.URL.Host, ctx: ctx, cancel: cancel}
	var on net.Conn
	if wait {
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { on = i.Conn }})
	} else {
		limit := answerTimeout
		if list != nil {
			limit = list.limit
		}
		b.stall = time.AfterFunc(limit, func() { cancel(errSlow) })
	}
	resp, err := t.Transport.RoundTrip(req.WithContext(ctx))
	if err != nil {
		if context.Cause(ctx) == errSlow {
			err = errSlow
		}
		b.end()
		err = fmt.Errorf("%s: %w", req.URL.Host, err)
		if to, known := t.endpoints.byHost[req.URL.Host]; known { // else etcd has redirected the request
			err = &endpointError{err, to}
		}
		return nil, err
	}
	b.ReadCloser, b.left = resp.Body, maxRefusal
	resp.Body = b
	if err := checkMedia(req.URL.Host, resp); err != nil {
		b.Close()
		return nil, err
	}
	if wait && resp.StatusCode == http.StatusOK {
		b.empty = errNoEvent
		from, ferr := strconv.ParseUint(q.Get("waitIndex"), 10, 64)
		to, terr := strconv.ParseUint(resp.Header.Get("X-Etcd-Index"), 10, 64)
		if ferr == nil && terr == nil && from > 0 {
			if err := t.waiting(from-1, to, on); err != nil {
				b.Close()
				return nil, fmt.Errorf("%s: %w", req.URL.Host, err)
			}
		}
	}
	if resp.StatusCode/100 == 2 {
		b.left = maxBody
		resp.Body = &scanned{body: b, list: list}
	}
	return resp, nil
}

// checkMedia returns an error for an answer that is not of etcd's v2 keys API.
func checkMedia(host string, resp *http.Response) error {
	if resp.StatusCode/100 != 2 && resp.StatusCode/100 != 4 {
		return nil // an error of etcd or of a proxy
	}
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if media == "application/json" {
		return nil
	}
	err := fmt.Errorf("%s answers %q in %s, not as etcd's v2 keys API does (etcd 3.4 and 3.5 need --enable-v2)",
		host, resp.Status, strconv.Quote(media))
	if resp.StatusCode == http.StatusNotFound {
		return &etcd.Failure{Text: err.Error(), Cause: registry.ErrNoAPI}
	}
	return err
}

// body limits an answer by its length and by the time without progress. If empty is set, an empty
// answer is an error: the etcd client would repeat the request at once, forever.
type body struct {
	io.ReadCloser
	left   int64
	empty  error
	host   string // for errors
	ctx    context.Context
	cancel context.CancelCauseFunc
	stall  *time.Timer // ends ctx with errSlow; nil: no time limit
}

func (b *body) Read(p []byte) (int, error) {
	if b.stall != nil {
		b.stall.Reset(stallTimeout)
	}
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.empty = nil
	}
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("%s: answer is too long", b.host)
	}
	if err == io.EOF && b.empty != nil {
		return n, b.empty
	}
	if err != nil && err != io.EOF {
		if context.Cause(b.ctx) == errSlow {
			err = errSlow
		}
		err = fmt.Errorf("%s: %w", b.host, err)
	}
	return n, err
}

// end ends the reading of an answer.
func (b *body) end() {
	if b.stall != nil {
		b.stall.Stop()
	}
	b.cancel(nil)
}

// Close implements io.Closer.
func (b *body) Close() error {
	defer b.end()
	return b.ReadCloser.Close()
}

// scanned is an answer without what a scanner skips, as JSON again. For a listing, the nodes are
// passed on to it.
type scanned struct {
	*body
	list *listing
	text *bytes.Reader // nil: nothing was read yet
}

func (s *scanned) Read(p []byte) (int, error) {
	if s.text == nil {
		var child func(*client.Node)
		if s.list != nil {
			s.list.found = registry.Listing{}
			child = s.list.add
		}
		resp, err := newScanner(s.body).answer(child)
		var text []byte
		if err == nil {
			text, err = json.Marshal(resp)
		}
		if errors.Is(err, errBroken) || errors.Is(err, errNoNode) {
			err = fmt.Errorf("%s: %w", s.host, err)
		}
		if err != nil {
			return 0, err
		}
		s.text = bytes.NewReader(text)
	}
	return s.text.Read(p)
}

// refusal returns the error of etcd in err, or zero if there is none.
func refusal(err error) (refused client.Error) {
	errors.As(err, &refused)
	return refused
}

// contains reports whether err, or the error of one endpoint in it, is target.
func contains(err, target error) bool {
	var all *client.ClusterError
	if errors.As(err, &all) {
		for _, e := range all.Errors {
			if errors.Is(e, target) {
				return true
			}
		}
	}
	return errors.Is(err, target)
}

// explain converts the client's errors to one line in plain words with the endpoints, and with what
// to set if that is known.
func (r *Registry) explain(ctx context.Context, err error) error {
	var all *client.ClusterError
	switch refused := refusal(err); {
	case err == nil:
		return nil
	case refused.Code == client.ErrorCodeUnauthorized:
		// Also for a wrong password, which etcd does not distinguish from a missing permission.
		return fmt.Errorf("etcd at %s: %w: %w", r.where, registry.ErrDenied, err)
	case errors.As(err, new(client.Error)):
		return fmt.Errorf("etcd at %s: %w", r.where, err)
	case errors.Is(err, client.ErrInvalidJSON):
		return errBroken
	case errors.As(err, &all):
		texts := make([]string, 0, len(all.Errors))
		for _, e := range all.Errors {
			var failed *endpointError
			if errors.As(e, &failed) {
				e = r.transport.options.WithRemedy(ctx, failed.to, e)
			}
			texts = append(texts, strings.TrimSpace(e.Error()))
		}
		text := "no etcd endpoint answers: " + strings.Join(texts, "; ")
		if contains(err, registry.ErrNoAPI) {
			return &etcd.Failure{Text: text, Cause: registry.ErrNoAPI}
		}
		return errors.New(text)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("etcd did not answer in time: %w", err)
	}
	return err
}
