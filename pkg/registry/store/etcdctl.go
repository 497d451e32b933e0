package store

import (
	"fmt"
	"path"
	"strings"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry/etcd"
	"flanneld/pkg/shell"
)

// Command returns a shell command that runs etcdctl with args, for people to paste. It contains no
// password.
func Command(o etcd.Options, api API, args ...string) string { return etcdctl(o, api, args...) }

// WriteCommand returns the command that writes a lease; ttl 0 is a reservation.
func (a Registry) WriteCommand(subnets lease.Subnets, attrs lease.Attrs, ttl time.Duration) (string, error) {
	value, err := attrs.Encode()
	if err != nil {
		return "", err
	}
	key, seconds := a.leaseKey(subnets), fmt.Sprint(int(ttl.Seconds()))
	switch {
	case a.API == APIv2 && ttl > 0:
		return etcdctl(a.options, APIv2, "set", "--ttl", seconds, key, string(value)), nil
	case a.API == APIv2:
		return etcdctl(a.options, APIv2, "set", key, string(value)), nil
	}
	put := etcdctl(a.options, APIv3, "put", key, string(value))
	if ttl > 0 { // etcdctl prints "lease 694d81417acd4754 granted with TTL(86400s)"
		put += " --lease=$(" + etcdctl(a.options, APIv3, "lease", "grant", seconds) + " | cut -d' ' -f2)"
	}
	return put, nil
}

// DeleteCommand returns the command that deletes a lease.
func (a Registry) DeleteCommand(subnets lease.Subnets) string {
	verb := "del"
	if a.API == APIv2 {
		verb = "rm"
	}
	return etcdctl(a.options, a.API, verb, a.leaseKey(subnets))
}

// leaseKey returns the key of a lease.
func (a Registry) leaseKey(subnets lease.Subnets) string {
	return path.Join(path.Dir(a.ConfigKey()), "subnets", lease.Key(subnets))
}

// etcdctl returns a shell command that runs etcdctl with args, on the endpoints and with the TLS
// files of o. If o has a user, it uses root, which may do everything; etcdctl asks for the
// password.
func etcdctl(o etcd.Options, api API, args ...string) string {
	version, ca, cert, key, user := "3", "--cacert=", "--cert=", "--key=", "--user="
	if api == APIv2 {
		version, ca, cert, key, user = "2", "--ca-file=", "--cert-file=", "--key-file=", "--username="
	}
	endpoints, err := o.ParseEndpoints() // removes the password from a URL
	if err != nil {
		return ""
	}
	var urls []string
	secure := false
	for _, e := range endpoints.All {
		urls = append(urls, e.String())
		secure = secure || e.Secure()
	}
	words := []string{"ETCDCTL_API=" + version, "etcdctl", "--endpoints=" + strings.Join(urls, ",")}
	for _, flag := range []struct {
		name, value string
		given       bool
	}{
		{ca, o.CAFile, secure && o.CAFile != ""},
		{cert, o.CertFile, secure && o.CertFile != ""},
		{key, o.KeyFile, secure && o.KeyFile != ""},
		{user, "root", endpoints.Username != ""},
	} {
		if flag.given {
			words = append(words, flag.name+flag.value)
		}
	}
	words = append(words, args...)
	return shell.Command(words...)
}
