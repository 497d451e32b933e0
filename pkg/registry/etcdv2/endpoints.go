package etcdv2

import (
	"fmt"

	"flanneld/pkg/registry/etcd"
)

// Options are the options of a connection to etcd.
type Options = etcd.Options

// endpoints are etcd.Endpoints in the form for the client. A host name stands for a unix socket.
type endpoints struct {
	urls   []string
	byHost map[string]etcd.Endpoint // by host in the URL
}

func newEndpoints(all []etcd.Endpoint) endpoints {
	e := endpoints{byHost: map[string]etcd.Endpoint{}}
	for i, one := range all {
		url, host := one.String(), one.Host()
		if one.Socket() != "" {
			host = fmt.Sprintf("unix-%d.invalid", i)
			url = "http://" + host
		}
		e.urls = append(e.urls, url)
		e.byHost[host] = one
	}
	return e
}

// socket returns the endpoint with a unix socket that a host name stands for.
func (e endpoints) socket(host string) (one etcd.Endpoint, is bool) {
	one = e.byHost[host]
	return one, one.Socket() != ""
}
