package etcdv2_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/registry/etcdv2"
)

func TestBasicAuth(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	newOperator(t, etcd).SetConfig("{}")
	if err := etcd.V2(t).RequireUser(t.Context(), "s3cret!"); err != nil {
		t.Fatal(err)
	}
	good := etcdv2.Options{Endpoints: []string{etcd.URL}, Prefix: prefix, Username: "root", Password: "s3cret!"}
	inURL := etcdv2.Options{Endpoints: []string{strings.Replace(etcd.URL, "://", "://root:s3cret%21@", 1)}, Prefix: prefix}
	if c, err := open(t, inURL).Config(context.Background()); err != nil || string(c) != "{}" {
		t.Errorf("config %q, %v", c, err)
	}
	r := open(t, good)
	l, err := r.List(context.Background())
	if err != nil {
		t.Error(err)
	}
	made, err := r.Create(context.Background(), subnet7, attrs7, time.Hour)
	if err != nil {
		t.Error(err)
	}
	if events, _, err := r.Watch(context.Background(), l.Index); err != nil || len(events) != 1 {
		t.Errorf("watch: %v, %v", events, err)
	}
	if err := r.Release(context.Background(), made); err != nil {
		t.Error(err)
	}
	wrong := good
	wrong.Password = "not s3cret!"
	none := etcdv2.Options{Endpoints: good.Endpoints, Prefix: prefix}
	for _, o := range []etcdv2.Options{wrong, none} {
		r := open(t, o)
		_, read := r.Config(context.Background())
		_, write := r.Create(context.Background(), subnet7, attrs7, time.Hour)
		for op, err := range map[string]error{"config": read, "create": write} {
			if err == nil || !strings.Contains(err.Error(), "Insufficient credentials") || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%s: error %v", op, err)
			}
		}
	}
}
