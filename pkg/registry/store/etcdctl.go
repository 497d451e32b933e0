package store

import (
	"strings"

	"flanneld/pkg/registry/etcd"
)

// etcdctl returns the command line of etcd's own tool that does args, on the endpoints and
// with the TLS files of o, for a shell. Where o has a user it is done as root, who may do
// everything and whose password the tool asks for.
func etcdctl(o etcd.Options, api API, args ...string) string {
	version, ca, cert, key, user := "3", "--cacert=", "--cert=", "--key=", "--user="
	if api == APIv2 {
		version, ca, cert, key, user = "2", "--ca-file=", "--cert-file=", "--key-file=", "--username="
	}
	endpoints, err := o.ParseEndpoints() // which takes the password out of a URL
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

// shellWord returns s as one word of a shell's command line.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("_./:=@%+,-", r)
	}
	if s != "" && strings.TrimFunc(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
