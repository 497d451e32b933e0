package etcdv3

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
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
	// A connection with a request or a watch on it is asked for a sign of life
	// after pingAfter, the least that gRPC allows, and given up pingTimeout later.
	pingAfter   = 10 * time.Second
	pingTimeout = 5 * time.Second
	// refusalTimeout is for finding out why a write failed; longer than etcd.Options.Remedy takes.
	refusalTimeout = 3 * time.Second
	// Bounds of the wait between attempts to connect.
	redialLeast, redialMost = 100 * time.Millisecond, 2 * time.Second
	// maxHeader bounds what comes beside an answer, such as etcd's text of an error.
	maxHeader = 16 << 10
)

// link is the connections to an etcd's endpoints, with the credentials.
type link struct {
	options   etcd.Options
	files     *etcd.Files
	endpoints etcd.Endpoints
	conn      *grpc.ClientConn
	conns     etcd.ConnTracker
	login     pb.AuthClient
	token     chan token // holds the one there is

	mu       sync.Mutex
	troubles map[string]error      // why the last attempt to connect to an endpoint failed
	dials    map[string]*pace.Pace // to each endpoint
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
	l := &link{options: o, files: files, endpoints: endpoints, token: make(chan token, 1), troubles: map[string]error{}, dials: map[string]*pace.Pace{}}
	l.token <- token{}
	names := manual.NewBuilderWithScheme("etcd")
	var state resolver.State
	for _, e := range endpoints.All {
		host := e.Host()
		if e.Socket() != "" {
			host = "localhost"
		}
		state.Addresses = append(state.Addresses, resolver.Address{Addr: e.String(), ServerName: host})
	}
	names.InitialState(state)
	l.conn, err = grpc.NewClient("etcd:///registry",
		grpc.WithResolvers(names),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"`+pickerName+`":{}}]}`),
		grpc.WithContextDialer(l.dial),
		grpc.WithNoProxy(),
		grpc.WithTransportCredentials(handshaker{l}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingTimeout}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: redialLeast, Multiplier: 1.6, Jitter: 0.2, MaxDelay: redialMost},
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

// dialed is a connection that knows where it goes.
type dialed struct {
	net.Conn
	to etcd.Endpoint
}

func (l *link) dial(ctx context.Context, url string) (net.Conn, error) {
	dialer := net.Dialer{
		Timeout:         dialTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3},
		Control: func(network, address string, c syscall.RawConn) (err error) {
			if !strings.HasPrefix(network, "tcp") {
				return nil
			}
			l.options.Announce(address)
			// What was sent and is not acknowledged for so long never will be.
			cerr := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(pingTimeout.Milliseconds()))
			})
			return errors.Join(cerr, err)
		},
	}
	for _, e := range l.endpoints.All {
		if e.String() == url {
			if err := l.pace(ctx, url); err != nil {
				return nil, err
			}
			network, address := e.Address()
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				l.note(e, err)
				return nil, err
			}
			if !e.Secure() { // else it remains to be seen
				l.note(e, nil)
			}
			return &dialed{l.conns.Add(conn), e}, nil
		}
	}
	return nil, fmt.Errorf("no endpoint %s", url)
}

// pace waits until an endpoint may be connected to again: gRPC connects at once after a
// connection that was good for a moment.
func (l *link) pace(ctx context.Context, url string) error {
	l.mu.Lock()
	p := l.dials[url]
	if p == nil {
		p = &pace.Pace{Initial: redialLeast, Max: redialMost}
		l.dials[url] = p
	}
	wait := p.Next(time.Now())
	l.mu.Unlock()
	return pace.Sleep(ctx, wait)
}

// note keeps why an endpoint could not be connected to.
func (l *link) note(e etcd.Endpoint, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.troubles[e.String()] = err
	} else {
		delete(l.troubles, e.String())
	}
}

// remedied returns why an endpoint was not understood, with what to set if TLS is why.
func (l *link) remedied(e etcd.Endpoint, err error) error {
	if remedy := l.options.Remedy(context.Background(), e, err); remedy != "" {
		return fmt.Errorf("%w: %s", err, remedy)
	}
	return err
}

// handshaker speaks TLS with the endpoints that want it, with the files as
// they are then.
type handshaker struct{ l *link }

// ClientHandshake implements credentials.TransportCredentials.
func (h handshaker) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	d, ok := raw.(*dialed)
	if !ok {
		return insecure.NewCredentials().ClientHandshake(ctx, authority, raw)
	}
	if !d.to.Secure() {
		return insecure.NewCredentials().ClientHandshake(ctx, authority, newHeard(raw, func(err error) {
			if remedied := h.l.remedied(d.to, err); remedied != err { // else gRPC says why
				h.l.note(d.to, remedied)
			}
		}))
	}
	conn, err := h.secure(ctx, d)
	if err != nil {
		h.l.note(d.to, h.l.remedied(d.to, err))
		return nil, nil, err
	}
	info := credentials.TLSInfo{State: conn.ConnectionState()}
	info.SecurityLevel = credentials.PrivacyAndIntegrity
	return newHeard(conn, func(err error) { h.l.note(d.to, h.l.remedied(d.to, err)) }), info, nil
}

func (h handshaker) secure(ctx context.Context, d *dialed) (*tls.Conn, error) {
	config := h.l.files.Config()
	config.ServerName = d.to.Hostname()
	config.NextProtos = []string{"h2"}
	conn := tls.Client(d.Conn, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	if conn.ConnectionState().NegotiatedProtocol != "h2" {
		return nil, errors.New("the server speaks no HTTP/2, so it has no etcd v3 API")
	}
	return conn, nil
}

// heard reports once what became of a connection: at the first answer, or the end that comes
// in its place. TLS 1.3 has a client believe in it before the server has seen the client's
// certificate: that it was refused is told afterwards.
type heard struct {
	net.Conn
	told  func(error)
	once  sync.Once
	known chan struct{} // closed when told has returned
	why   error         // the end; to be read when known is closed
}

func newHeard(c net.Conn, told func(error)) *heard {
	return &heard{Conn: c, told: told, known: make(chan struct{})}
}

func (c *heard) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 || err != nil {
		c.once.Do(func() {
			defer close(c.known)
			if n == 0 {
				c.why = err
			}
			if !errors.Is(c.why, net.ErrClosed) { // which we did
				c.told(c.why)
			}
		})
	}
	return n, err
}

// Write fails on a connection that the server has ended. gRPC then closes it, although its reader,
// which it starts first, may not have read yet why; so that gets the time for it.
func (c *heard) Write(p []byte) (int, error) {
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

// ServerHandshake implements credentials.TransportCredentials.
func (h handshaker) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("not a server")
}

// Info implements credentials.TransportCredentials.
func (h handshaker) Info() credentials.ProtocolInfo {
	for _, e := range h.l.endpoints.All {
		if e.Secure() {
			return credentials.ProtocolInfo{SecurityProtocol: "tls"}
		}
	}
	return credentials.ProtocolInfo{SecurityProtocol: "insecure"}
}

// Clone implements credentials.TransportCredentials.
func (h handshaker) Clone() credentials.TransportCredentials { return h }

// OverrideServerName implements credentials.TransportCredentials.
func (h handshaker) OverrideServerName(string) error { return errors.New("not supported") }

// read does what may be done twice: at each endpoint once, if need be.
func (l *link) read(ctx context.Context, limit time.Duration, do func(context.Context) error) error {
	return l.try(ctx, limit, true, do)
}

// write does what must not be done twice. It is tried again only where etcd
// said that it did nothing.
func (l *link) write(ctx context.Context, do func(context.Context) error) error {
	return l.try(ctx, answerTimeout, false, do)
}

func (l *link) try(ctx context.Context, limit time.Duration, twice bool, do func(context.Context) error) error {
	endpoints, renewed := len(l.endpoints.All), false
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
		case tokenRefused(err) && !renewed && l.endpoints.Username != "":
			renewed = true
			l.forget(used)
		case code == codes.Unavailable && attempt <= endpoints && (twice || refused(err, rpctypes.ErrNoLeader)):
		case code == codes.DeadlineExceeded && attempt < endpoints && twice:
		default:
			return l.explain(err)
		}
	}
}

// attempt does one request, with what every request has. A member that is cut
// off from the others refuses it: what it knows may be old.
func (l *link) attempt(ctx context.Context, limit time.Duration, do func(context.Context) error) (token, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ctx, used, err := l.authenticate(client.WithRequireLeader(ctx))
	if err != nil {
		return used, err
	}
	return used, do(ctx)
}
