package etcdv2

import (
	"io"
	"net/http"
	"time"

	client "go.etcd.io/etcd/client/v2"
)

// SetPoll shortens the long-poll, whose time is above the patience of a test.
func (r *Registry) SetPoll(d time.Duration) { r.poll = d }

// Scan reads an answer as the transport does, with the nodes right below its node.
func Scan(in io.Reader) (*client.Response, error) {
	var children client.Nodes
	resp, err := newScanner(in).answer(func(n *client.Node) { children = append(children, n) })
	if err == nil {
		resp.Node.Nodes = children
	}
	return resp, err
}

// Long returns the length of a value that Scan left out.
func Long(value string) (size int64, is bool) { return long(value) }

// SetServer has all requests answered by f, without a network.
func (r *Registry) SetServer(f func() *http.Response) {
	r.transport.RegisterProtocol("http", answers(f))
}

type answers func() *http.Response

func (f answers) RoundTrip(req *http.Request) (*http.Response, error) {
	resp := f()
	resp.Request = req
	return resp, nil
}
