package etcdv2

import (
	"io"
	"net/http"
	"time"

	client "go.etcd.io/etcd/client/v2"
)

// SetPoll shortens the long-poll, which is longer than a test should take.
func (r *Registry) SetPoll(d time.Duration) { r.poll = d }

// Scan scans an answer as the transport does, including the direct children of its node.
func Scan(in io.Reader) (*client.Response, error) {
	var children client.Nodes
	resp, err := newScanner(in).answer(func(n *client.Node) { children = append(children, n) })
	if err == nil {
		resp.Node.Nodes = children
	}
	return resp, err
}

// Long returns the length of a value that Scan omitted.
func Long(value string) (size int64, is bool) { return long(value) }

// SetServer makes f answer all requests, without a network.
func (r *Registry) SetServer(f func() *http.Response) {
	r.transport.RegisterProtocol("http", answers(f))
}

type answers func() *http.Response

func (f answers) RoundTrip(req *http.Request) (*http.Response, error) {
	resp := f()
	resp.Request = req
	return resp, nil
}
