package store

import (
	"strings"

	"flanneld/pkg/registry/etcd"
)

// Command returns a shell command that runs etcdctl with args, for people to paste. It contains no
// password.
func Command(o etcd.Options, api API, args ...string) string { return etcdctl(o, api, args...) }

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
	for i, w := range words {
		words[i] = shellWord(w)
	}
	return strings.Join(words, " ")
}

// shellWord returns s as one word of a shell command.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("_./:=@%+,-", r)
	}
	if s != "" && strings.TrimFunc(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
