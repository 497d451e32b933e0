package etcdv2

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"time"

	client "go.etcd.io/etcd/client/v2"

	"flanneld/pkg/registry"
)

const (
	// listTimeout is the time limit for a whole listing, which with many invalid entries may be
	// many megabytes on a slow line. stallTimeout checks that it makes progress.
	listTimeout = 2 * time.Minute
	// maxStartTime is the longest time in which etcd must start its answer. It starts when it has
	// built all of it, which takes long for a million keys.
	maxStartTime = time.Minute
)

// listing is a request for all keys in the directory of leases. Its nodes are passed on as they
// arrive. The client itself would hold all of them with their values as one text.
type listing struct {
	key   string
	limit time.Duration
	began time.Time
	found registry.Listing // begins again with each answer
}

func (l *listing) add(n *client.Node) { l.found.Add(content(n, l.began).Event()) }

type listingKey struct{} // key in the context of its requests

// HTTPRequest returns the request for the client.
func (l *listing) HTTPRequest(endpoint url.URL) *http.Request {
	endpoint.Path = path.Join("/", endpoint.Path, "v2/keys", l.key)
	endpoint.RawQuery = "quorum=true&recursive=true&sorted=false"
	req := &http.Request{
		Method: http.MethodGet, URL: &endpoint, Host: endpoint.Host, Header: http.Header{},
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	return req.WithContext(context.WithValue(context.Background(), listingKey{}, l))
}

// List implements registry.Registry.
func (r *Registry) List(ctx context.Context) (registry.Listing, error) {
	l, err := r.list(ctx)
	if err != nil {
		return registry.Listing{}, fmt.Errorf("list %s: %w", r.subnets, err)
	}
	return l, nil
}

// list reads the directory of leases. If it does not exist, it is empty, and the error of etcd has
// its index. If an answer breaks off, another endpoint is asked.
func (r *Registry) list(ctx context.Context) (registry.Listing, error) {
	ctx, cancel := context.WithTimeout(ctx, max(listTimeout, r.timeout))
	defer cancel()
	l := &listing{key: r.subnets, limit: time.Duration(r.startTime.Load()), began: time.Now()}
	resp, body, err := r.client.Do(ctx, l)
	switch {
	case contains(err, errSlow):
		r.startTime.Store(int64(min(2*l.limit, maxStartTime)))
	case err == nil && time.Since(l.began) < answerTimeout:
		r.startTime.Store(int64(answerTimeout))
	}
	if err != nil {
		return registry.Listing{}, r.explain(ctx, err)
	}
	if resp.StatusCode/100 != 2 {
		var refused client.Error
		if json.Unmarshal(body, &refused) != nil {
			return registry.Listing{}, errBroken
		}
		if refused.Code == client.ErrorCodeKeyNotFound {
			return registry.Listing{Index: refused.Index}, nil
		}
		return registry.Listing{}, r.explain(ctx, refused)
	}
	var all client.Response
	if err := json.Unmarshal(body, &all); err != nil || all.Node == nil {
		return registry.Listing{}, errors.Join(errNoNode, err)
	}
	if !all.Node.Dir {
		l.add(all.Node) // is decoded to an invalid entry with its name
	}
	if l.found.Index, err = strconv.ParseUint(resp.Header.Get("X-Etcd-Index"), 10, 64); err != nil {
		return registry.Listing{}, fmt.Errorf("the answer has no index: %w", err)
	}
	return l.found, nil
}
