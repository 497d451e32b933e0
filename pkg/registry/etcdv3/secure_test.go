package etcdv3_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lab/wait"
	"flanneld/pkg/registry/etcdv3"
	"flanneld/pkg/registry/registrytest"
)

func TestPassword(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t, func(c *embed.Config) { c.AuthTokenTTL, c.BcryptCost = 2, 4 })
	b := newOperator(t, etcd)
	b.SetConfig("{}")
	good := etcdv3.Options{Endpoints: []string{etcd.URL}, Prefix: prefix, Username: "root", Password: "s3cret!"}
	r := open(t, good)
	// An etcd that asks for no password gets none, and then one that does.
	if _, err := r.Config(registrytest.Timeout(t)); err != nil {
		t.Error(err)
	}
	b.must(etcd.V3(t).RequireUser(t.Context(), "s3cret!"))
	inURL := etcdv3.Options{Endpoints: []string{strings.Replace(etcd.URL, "://", "://root:s3cret%21@", 1)}, Prefix: prefix}
	if c, err := open(t, inURL).Config(registrytest.Timeout(t)); err != nil || string(c) != "{}" {
		t.Errorf("config %q, %v", c, err)
	}
	round := func(when string) {
		t.Helper()
		l := registrytest.List(t, r)
		made, err := r.Create(registrytest.Timeout(t), subnet7, attrs7, time.Hour)
		if err != nil {
			t.Fatal(when, err)
		}
		if events, _, err := r.Watch(registrytest.Timeout(t), l.Index); err != nil || len(events) != 1 {
			t.Errorf("%s: watch: %v, %v", when, events, err)
		}
		if made, err = r.Update(registrytest.Timeout(t), made, attrs7, time.Hour); err != nil {
			t.Fatal(when, err)
		}
		if err := r.Release(registrytest.Timeout(t), made); err != nil {
			t.Error(when, err)
		}
	}
	round("first")
	etcd.Stop() // and with it its tokens
	etcd.Start(t)
	wait.True(t, "etcd is back", func() bool { _, err := r.Config(registrytest.Timeout(t)); return err == nil })
	round("after a restart")
	index := registrytest.List(t, r).Index
	wait.True(t, "the token expires", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		_, _, err := r.Watch(ctx, index)
		return errors.Is(err, context.DeadlineExceeded)
	})
	round("after the token expired")

	wrong := good
	wrong.Password = "not s3cret!"
	none := etcdv3.Options{Endpoints: good.Endpoints, Prefix: prefix}
	for want, o := range map[string]etcdv3.Options{"authentication failed": wrong, "user name is empty": none} {
		_, errs := registrytest.Calls(registrytest.Timeout(t), open(t, o))
		for op, err := range errs {
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), etcd.URL) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%s: error %v", op, err)
			}
		}
	}
}
