package etcdv3

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	client "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"flanneld/pkg/pace"
	"flanneld/pkg/registry/etcd"
)

const (
	dialTimeout = time.Second
	// A connection with a request or a watch is pinged after pingAfter, the minimum in gRPC, and
	// closed after pingTimeout without a reply.
	pingAfter   = 10 * time.Second
	pingTimeout = 5 * time.Second
	// refusalTimeout is the time for finding out why a write failed. It is longer than
	// etcd.Options.WithRemedy takes.
	refusalTimeout = 3 * time.Second
	// Limits of the wait between attempts to connect.
	minRedial, maxRedial = 100 * time.Millisecond, 2 * time.Second
	// maxHeader is the maximum size of an answer's headers, such as the text of an error.
	maxHeader = 16 << 10
)

// link has the connections to the endpoints of an etcd, and the credentials.
type link struct {
	options   etcd.Options
	files     *etcd.Files
	endpoints etcd.Endpoints
	conn      *grpc.ClientConn
	conns     etcd.ConnTracker
	login     pb.AuthClient
	token     chan token // holds the token

	mu    sync.Mutex
	peers map[string]*peer // by URL
}

// peer is an endpoint and how connecting to it went.
type peer struct {
	etcd.Endpoint
	trouble error     // why the last attempt failed; nil if it did not
	dials   pace.Pace // of attempts
}

func newLink(o etcd.Options) (*link, error) {
	endpoints, err := o.ParseEndpoints()
	if err != nil {
		return nil, err
	}
	files, err := o.Files()
	if err != nil {
		return nil, err
	}
	l := &link{options: o, files: files, endpoints: endpoints, token: make(chan token, 1), peers: map[string]*peer{}}
	l.token <- token{}
	names := manual.NewBuilderWithScheme("etcd")
	var state resolver.State
	for _, e := range endpoints.All {
		host := e.Host()
		if e.Socket() != "" {
			host = "localhost"
		}
		l.peers[e.String()] = &peer{Endpoint: e, dials: pace.Pace{Initial: minRedial, Max: maxRedial}}
		state.Addresses = append(state.Addresses, resolver.Address{Addr: e.String(), ServerName: host})
	}
	names.InitialState(state)
	security := insecure.NewCredentials()
	if slices.ContainsFunc(endpoints.All, etcd.Endpoint.Secure) {
		security = dialedTLS{security}
	}
	l.conn, err = grpc.NewClient("etcd:///registry",
		grpc.WithResolvers(names),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"`+pickerName+`":{}}]}`),
		grpc.WithContextDialer(l.dial),
		grpc.WithNoProxy(),
		grpc.WithTransportCredentials(security),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingTimeout}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: minRedial, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxRedial},
			MinConnectTimeout: answerTimeout,
		}),
		grpc.WithMaxHeaderListSize(maxHeader),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
	)
	if err != nil {
		return nil, fmt.Errorf("make etcd client: %w", err)
	}
	l.login = pb.NewAuthClient(l.conn)
	return l, nil
}

func (l *link) close() { l.conn.Close() }

// dial connects to the endpoint with a URL, with TLS if it uses that.
func (l *link) dial(ctx context.Context, url string) (net.Conn, error) {
	dialer := net.Dialer{
		Timeout:         dialTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3},
		Control: func(network, address string, c syscall.RawConn) (err error) {
			if !strings.HasPrefix(network, "tcp") {
				return nil
			}
			l.options.Announce(address)
			// Data that are not acknowledged within this time are lost.
			cerr := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(pingTimeout.Milliseconds()))
			})
			return errors.Join(cerr, err)
		},
	}
	// gRPC itself reconnects at once after a connection that worked for a moment.
	p := l.peers[url]
	l.mu.Lock()
	wait := p.dials.Next(time.Now())
	l.mu.Unlock()
	if err := pace.Sleep(ctx, wait); err != nil {
		return nil, err
	}
	network, address := p.Address()
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		l.note(p, err)
		return nil, err
	}
	conn = l.conns.Add(conn)
	if p.Secure() {
		return l.secure(ctx, p, conn)
	}
	l.note(p, nil)
	return newResultConn(conn, func(err error) {
		if remedied := l.options.WithRemedy(context.Background(), p.Endpoint, err); remedied != err { // else gRPC reports the error
			l.note(p, remedied)
		}
	}), nil
}

// note records why an endpoint could not be connected to.
func (l *link) note(p *peer, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p.trouble = err
}

// noteTLS records why a connection failed, with what to set if TLS is the reason.
func (l *link) noteTLS(p *peer, err error) {
	l.note(p, l.options.WithRemedy(context.Background(), p.Endpoint, err))
}

// secure starts TLS with an endpoint, with the present TLS files.
func (l *link) secure(ctx context.Context, p *peer, raw net.Conn) (net.Conn, error) {
	config := l.files.Config()
	config.ServerName = p.Hostname()
	config.NextProtos = []string{"h2"}
	conn := tls.Client(raw, config)
	err := conn.HandshakeContext(ctx)
	if err == nil && conn.ConnectionState().NegotiatedProtocol != "h2" {
		err = errors.New("the server speaks no HTTP/2, so it has no etcd v3 API")
	}
	if err != nil {
		raw.Close()
		l.noteTLS(p, err)
		return nil, err
	}
	return newResultConn(conn, func(err error) { l.noteTLS(p, err) }), nil
}

// dialedTLS are the credentials of connections on which dial has started TLS. Requests have the
// scheme of TLS.
type dialedTLS struct {
	credentials.TransportCredentials
}

// Info implements credentials.TransportCredentials.
func (dialedTLS) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (c dialedTLS) Clone() credentials.TransportCredentials { return c }

// resultConn reports the result of a connection once: at the first answer, or at the end of the
// connection. With TLS 1.3, the client's handshake ends before the server has checked the client's
// certificate, so a rejection arrives later.
type resultConn struct {
	net.Conn
	report func(error)
	once   sync.Once
	known  chan struct{} // closed after report has returned
	why    error         // error that ended the connection; valid after known is closed
}

func newResultConn(c net.Conn, report func(error)) *resultConn {
	return &resultConn{Conn: c, report: report, known: make(chan struct{})}
}

func (c *resultConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 || err != nil {
		c.once.Do(func() {
			defer close(c.known)
			if n == 0 {
				c.why = err
			}
			if !errors.Is(c.why, net.ErrClosed) { // closed by this side
				c.report(c.why)
			}
		})
	}
	return n, err
}

// Write fails on a connection that the server has closed. gRPC then closes it too, although its
// reader may not have read the reason yet; so Write waits for the reader.
func (c *resultConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil {
		select {
		case <-c.known:
			err = cmp.Or(c.why, err)
		case <-time.After(refusalTimeout):
		}
	}
	return n, err
}

// maxTokens is the number of tokens that are requested for one operation. A signed token that is
// valid for seconds may expire before it is used: its times are whole seconds (RFC 7519, 4.1.4).
const maxTokens = 3

// read does an operation that may be done twice: if need be, once at each endpoint.
func (l *link) read(ctx context.Context, limit time.Duration, do func(context.Context) error) error {
	return l.try(ctx, limit, true, do)
}

// write does an operation that must not be done twice. It is retried only if etcd reports that it
// did nothing.
func (l *link) write(ctx context.Context, do func(context.Context) error) error {
	return l.try(ctx, answerTimeout, false, do)
}

func (l *link) try(ctx context.Context, limit time.Duration, twice bool, do func(context.Context) error) error {
	endpoints, tokens := len(l.endpoints.All), 0
	for attempt := 1; ; attempt++ {
		used, err := l.attempt(ctx, limit, do)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return l.explain(ctx.Err())
		}
		code, _ := facts(err)
		switch {
		case tokenRefused(err) && tokens < maxTokens && l.endpoints.Username != "":
			tokens++
			l.forget(used)
		case code == codes.Unavailable && attempt <= endpoints && (twice || refused(err, rpctypes.ErrNoLeader)):
		case code == codes.DeadlineExceeded && attempt < endpoints && twice:
		default:
			return l.explain(err)
		}
	}
}

// attempt does one request. It requires a leader: a member that is cut off from the others rejects
// the request, because its data may be old.
func (l *link) attempt(ctx context.Context, limit time.Duration, do func(context.Context) error) (token, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ctx, used, err := l.authenticate(client.WithRequireLeader(ctx))
	if err != nil {
		return used, err
	}
	return used, do(ctx)
}
