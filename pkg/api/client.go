package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/plan"
	"flanneld/pkg/status"
	"flanneld/pkg/subnetenv"
)

const (
	// clientTimeout limits the time of a request, including its answer.
	clientTimeout = 5 * time.Second
	// planWait is clientTimeout for a plan.
	planWait = planTimeout + clientTimeout
	// maxAnswer limits the size of an answer. That of a network with 20,000 peers has 5 MB.
	maxAnswer = 32 << 20
)

var (
	// ErrNotRunning is returned if there is no daemon with the subnet file.
	ErrNotRunning = errors.New("flanneld is not running")
	// ErrNoAnswer is returned if a daemon does not answer in time, or ends meanwhile.
	ErrNoAnswer = errors.New("flanneld does not answer")
)

// Client asks the daemon with a subnet file.
type Client struct {
	path string
	http http.Client
}

// Dial returns a client for the daemon with a subnet file. It connects for each request.
func Dial(subnetFile string) *Client {
	path := subnetenv.SocketPath(subnetFile)
	return &Client{path: path, http: http.Client{Timeout: clientTimeout, Transport: &http.Transport{
		DisableKeepAlives:  true,
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialUnix(ctx, path, clientTimeout)
		},
	}}}
}

// Path returns the path of the socket.
func (c *Client) Path() string { return c.path }

// Get returns the answer to a request for a path such as /metrics.
func (c *Client) Get(ctx context.Context, path string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://flanneld"+path, nil)
	if err != nil {
		return nil, err
	}
	answer, err := c.http.Do(r)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return nil, fmt.Errorf("%w: nobody answers on %s", ErrNotRunning, c.path)
	case err != nil:
		return nil, c.failed(errors.Unwrap(err))
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, c.failed(err)
	case len(body) > maxAnswer:
		return nil, fmt.Errorf("ask flanneld on %s: the answer has more than %d bytes", c.path, maxAnswer)
	case answer.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("ask flanneld on %s: %s", c.path, answer.Status)
	}
	return body, nil
}

// failed returns the error of a request that failed because of err.
func (c *Client) failed(err error) error {
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("%w on %s within %v", ErrNoAnswer, c.path, c.http.Timeout)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return fmt.Errorf("%w on %s: %w", ErrNoAnswer, c.path, err)
	}
	var dial *net.OpError
	if errors.As(err, &dial) {
		err = dial.Err // without the path once more
	}
	return fmt.Errorf("ask flanneld on %s: %w", c.path, err)
}

// Status returns the status of the daemon.
func (c *Client) Status(ctx context.Context) (status.Document, error) {
	return document[status.Document](ctx, c, "/status")
}

// Plan returns what the daemon would change now.
func (c *Client) Plan(ctx context.Context) (plan.Document, error) {
	patient := *c
	patient.http.Timeout = planWait
	return document[plan.Document](ctx, &patient, "/plan")
}

// document returns the document that is the answer to a request for a path.
func document[T any](ctx context.Context, c *Client, path string) (d T, err error) {
	body, err := c.Get(ctx, path)
	if err != nil {
		return d, err
	}
	if err := json.Unmarshal(body, &d); err != nil {
		return *new(T), fmt.Errorf("ask flanneld on %s: %w", c.path, err)
	}
	return d, nil
}
