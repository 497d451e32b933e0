package etcdv2_test

import (
	"strings"
	"testing"

	"flanneld/pkg/registry/etcdv2"
)

// What may be wrong with options is package etcd's business; New tells it.
func TestBadOptions(t *testing.T) {
	for want, o := range map[string]etcdv2.Options{
		"-etcd-endpoints": {Endpoints: []string{" "}},
		"names no host":   {Endpoints: []string{"http://etcd:2379", "http://"}},
		"-etcd-keyfile":   {Endpoints: []string{"etcd:2379"}, CertFile: "cert.pem"},
		"-etcd-cafile":    {Endpoints: []string{"etcd:2379"}, CAFile: "/nonexistent"},
	} {
		if _, err := etcdv2.New(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, want %q in it", o, err, want)
		}
	}
}
