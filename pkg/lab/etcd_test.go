package lab

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestEtcd(t *testing.T) {
	ctx, l := newTestLab(t, Options{})
	e := l.Etcd
	if err := e.Put(ctx, "/net/config", "one", 0); err != nil {
		t.Fatal(err)
	}
	if err := e.Put(ctx, "/net/subnets/a", "two", time.Hour); err != nil {
		t.Fatal(err)
	}
	nodes, err := e.List(ctx, "/net")
	if err != nil || len(nodes) != 2 || nodes[0].Value != "one" || nodes[0].TTL != 0 || !nodes[1].Dir {
		t.Errorf("list: %+v, %v", nodes, err)
	}
	if n, err := e.Get(ctx, "/net/subnets/a"); err != nil || n.Value != "two" || n.TTL < 59*time.Minute {
		t.Errorf("get: %+v, %v", n, err)
	}
	if err := e.Delete(ctx, "/net/subnets/a"); err != nil {
		t.Error(err)
	}
	if _, err := e.Get(ctx, "/net/subnets/a"); !errors.Is(err, ErrNoKey) {
		t.Errorf("get of a deleted key: %v", err)
	}

	if err := errors.Join(e.Kill(ctx), e.Start(ctx)); err != nil {
		t.Fatal(err)
	}
	if n, err := e.Get(ctx, "/net/config"); err != nil || n.Value != "one" {
		t.Errorf("get after kill and start: %+v, %v", n, err)
	}
	if err := errors.Join(e.Stop(ctx), e.Start(ctx)); err != nil {
		t.Fatal(err)
	}

	if err := e.Pause(); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if _, err := e.Get(short, "/net/config"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("get while paused: %v", err)
	}
	if err := e.Resume(); err != nil {
		t.Fatal(err)
	}
	if n, err := e.Get(ctx, "/net/config"); err != nil || n.Value != "one" {
		t.Errorf("get after resume: %+v, %v", n, err)
	}

	if err := e.Wipe(ctx); err != nil {
		t.Fatal(err)
	}
	if nodes, err := e.List(ctx, "/net"); err != nil || len(nodes) != 0 {
		t.Errorf("list after wipe: %+v, %v", nodes, err)
	}
}
