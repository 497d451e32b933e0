package etcdv2

import (
	"fmt"

	"flanneld/pkg/registry/etcd"
)

// Options say where etcd is and how to speak to it.
type Options = etcd.Options

// endpoints is etcd.Endpoints in the form that the client takes.
type endpoints struct {
	urls               []string
	byHost             map[string]etcd.Endpoint // as in the URLs
	sockets            map[string]string        // made-up host -> path of a unix socket
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
