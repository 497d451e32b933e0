package etcdv3_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lab/wait"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcdv3"
	"flanneld/pkg/registry/registrytest"
)

// startCluster starts an etcd cluster with three members.
func startCluster(t *testing.T, change ...func(*embed.Config)) []*etcdtest.Etcd {
	t.Helper()
	members, peers := make([]*etcdtest.Etcd, 3), make([]string, 3)
	for i := range members {
		members[i] = etcdtest.NewEtcd(t, func(c *embed.Config) {
			c.Name = fmt.Sprint("m", i)
			c.TickMs, c.ElectionMs = 50, 500 // two CPUs for all members
			if peers[i] == "" {
				peers[i] = c.Name + "=" + c.ListenPeerUrls[0].String()
			}
			c.InitialCluster = strings.Join(peers, ",")
			for _, f := range change {
				f(c)
			}
		})
	}
	var wg sync.WaitGroup
	for _, m := range members {
		wg.Go(func() { m.Start(t) })
	}
	wg.Wait()
	return members
}

// A member that has lost the others still accepts connections. Its data may be outdated, so it
// counts as unreachable, and other members are used if there are any.
func TestMemberWithoutLeader(t *testing.T) {
	t.Parallel()
	members := startCluster(t)
	newOperator(t, members[0]).SetConfig("{}")
	all := api.Open(t, etcdv3.Options{Endpoints: []string{members[0].URL, members[1].URL, members[2].URL}, Prefix: prefix})
	one := api.Open(t, etcdv3.Options{Endpoints: []string{members[0].URL}, Prefix: prefix})
	made := registrytest.Create(t, all)

	// The failure of one member affects only the watch that used it.
	index := registrytest.List(t, all).Index
	members[2].Stop()
	wait.True(t, "a lease is renewed by two members", func() bool {
		l, err := all.Update(registrytest.Timeout(t), made, attrs7, time.Hour)
		if errors.Is(err, registry.ErrConflict) { // done, but the answer was lost
			ev, gerr := all.Get(registrytest.Timeout(t), subnet7)
			l, err = ev.Lease, gerr
		}
		return err == nil && l.Revision > made.Revision
	})
	wait.True(t, "the renewal is seen", func() bool {
		events, _, err := all.Watch(registrytest.Timeout(t), index)
		return err == nil && len(events) > 0
	})

	got := watching(t, one, registrytest.List(t, one).Index)
	begin := time.Now()
	members[1].Stop()
	if res := <-got; res.err == nil || errors.Is(res.err, registry.ErrHistoryLost) {
		t.Errorf("watch: %+v", res)
	}
	registrytest.Fails(t, one)
	if d := time.Since(begin); d > 30*time.Second {
		t.Errorf("took %v", d)
	}
	members[1].Start(t)
	wait.True(t, "two members answer", func() bool { _, err := one.Config(registrytest.Timeout(t)); return err == nil })
}

// TestTokenIsGoodAtEveryMember: members learn of a new token with different delays, and a restarted
// member has lost all tokens. A request that is too early does not fail.
func TestTokenIsGoodAtEveryMember(t *testing.T) {
	t.Parallel()
	members := startCluster(t, func(c *embed.Config) { c.AuthTokenTTL, c.BcryptCost = 1, 4 })
	var urls []string
	for _, m := range members {
		urls = append(urls, m.URL)
	}
	if err := members[0].V3(t).RequireUser(t.Context(), "s3cret!"); err != nil {
		t.Fatal(err)
	}
	r := api.Open(t, etcdv3.Options{Endpoints: urls, Prefix: prefix, Username: "root", Password: "s3cret!"})
	wait.True(t, "all members know of it", func() bool {
		for range 6 {
			if _, err := r.Config(registrytest.Timeout(t)); !errors.Is(err, registry.ErrNoConfig) {
				return false
			}
		}
		return true
	})
	ask := func(n int) {
		t.Helper()
		for range n {
			var wg sync.WaitGroup
			for range 6 {
				wg.Go(func() {
					if _, err := r.Config(registrytest.Timeout(t)); !errors.Is(err, registry.ErrNoConfig) {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			r.DropToken()
		}
	}
	ask(100)
	members[1].Stop()
	members[1].Start(t)
	wait.True(t, "the member is back", func() bool {
		_, err := api.Open(t, etcdv3.Options{Endpoints: urls[1:2], Prefix: prefix, Username: "root", Password: "s3cret!"}).Config(registrytest.Timeout(t))
		return errors.Is(err, registry.ErrNoConfig)
	})
	ask(20)
}
