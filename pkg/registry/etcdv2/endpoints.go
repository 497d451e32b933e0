package etcdv2

import (
	"fmt"

	"flanneld/pkg/registry/etcd"
)

// Options are the options of a connection to etcd.
type Options = etcd.Options

// endpoints are etcd.Endpoints in the form for the client.
type endpoints struct {
	urls               []string
	byHost             map[string]etcd.Endpoint // by host in the URL
	sockets            map[string]string        // path of a unix socket by a host name that stands for it
	username, password string
}

func parseEndpoints(o Options) (endpoints, error) {
	given, err := o.ParseEndpoints()
	if err != nil {
		return endpoints{}, err
	}
	e := endpoints{byHost: map[string]etcd.Endpoint{}, sockets: map[string]string{}, username: given.Username, password: given.Password}
	for _, one := range given.All {
		url := one.String()
		if socket := one.Socket(); socket != "" {
			host := fmt.Sprintf("unix-%d.invalid", len(e.sockets))
			e.sockets[host] = socket
			url = "http://" + host
		}
		e.urls = append(e.urls, url)
		e.byHost[one.Host()] = one
	}
	return e, nil
}
