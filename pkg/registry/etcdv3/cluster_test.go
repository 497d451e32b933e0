package etcdv3_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcdtest"
	"flanneld/pkg/registry/etcdv3"
)

// startCluster starts three members that are one etcd.
func startCluster(t *testing.T) []*etcdtest.Etcd {
	t.Helper()
	members, peers := make([]*etcdtest.Etcd, 3), make([]string, 3)
	for i := range members {
		members[i] = etcdtest.NewEtcd(t, func(c *embed.Config) {
			c.Name = fmt.Sprint("m", i)
			c.TickMs, c.ElectionMs = 50, 500 // two cores for all of them
			if peers[i] == "" {
				peers[i] = c.Name + "=" + c.ListenPeerUrls[0].String()
			}
			c.InitialCluster = strings.Join(peers, ",")
		})
	}
	var wg sync.WaitGroup
	for _, m := range members {
		wg.Go(func() { m.Start(t) })
	}
	wg.Wait()
	return members
}

// A member that has lost the others still accepts everything. What it knows
// may be old, so it counts as away; and where there are others, they are asked.
func TestMemberWithoutLeader(t *testing.T) {
	t.Parallel()
	members := startCluster(t)
	openBackdoor(t, members[0].URL, prefix).setConfig("{}")
	all := open(t, etcdv3.Options{Endpoints: []string{members[0].URL, members[1].URL, members[2].URL}, Prefix: prefix})
	one := open(t, etcdv3.Options{Endpoints: []string{members[0].URL}, Prefix: prefix})
	made, err := all.Create(timeout(t), subnet7, attrs7, time.Hour)
	if err != nil {
		t.Fatal(err)
	}

	// One member less changes nothing but for the watch that was there.
	index := list(t, all).Index
	members[2].Stop()
	eventually(t, "a lease is renewed by two members", func() bool {
		l, err := all.Update(timeout(t), made, attrs7, time.Hour)
		if errors.Is(err, registry.ErrConflict) { // done, and the answer lost
			ev, gerr := all.Get(timeout(t), subnet7)
			l, err = ev.Lease, gerr
		}
		return err == nil && l.Revision > made.Revision
	})
	eventually(t, "the renewal is seen", func() bool {
		events, _, err := all.Watch(timeout(t), index)
		return err == nil && len(events) > 0
	})

	got := watching(t, one, list(t, one).Index)
	begin := time.Now()
	members[1].Stop()
	if res := <-got; res.err == nil || errors.Is(res.err, registry.ErrHistoryLost) {
		t.Errorf("watch: %+v", res)
	}
	_, errs := calls(timeout(t), one)
	for op, err := range errs {
		if err == nil || errors.Is(err, registry.ErrHistoryLost) || errors.Is(err, registry.ErrConflict) {
			t.Errorf("%s: %v", op, err)
		}
	}
	if d := time.Since(begin); d > 30*time.Second {
		t.Errorf("took %v", d)
	}
	members[1].Start(t)
	eventually(t, "two members answer", func() bool { _, err := one.Config(timeout(t)); return err == nil })
}
