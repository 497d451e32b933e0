package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	client "go.etcd.io/etcd/client/v3"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdkeys"
	"flanneld/pkg/lab/wait"
)

// TestEtcdMembersChangeUnderLoad: while peers come and go, the leader of a cluster of three is
// killed, one member is added and another removed, and the leader is killed again. Nothing
// that etcd has acknowledged is missed, no subnet changes, no packet is lost, and a host that
// joins then does so by the endpoints that are left.
func TestEtcdMembersChangeUnderLoad(t *testing.T) {
	t.Parallel()
	eachAPI(t, lab.Options{Hosts: 3, EtcdCluster: true}, func(t *testing.T, c *cluster) {
		one, err := c.Etcd.AddMember(c.ctx, 1)
		c.must(err)
		two, err := c.Etcd.AddMember(c.ctx, 2, one)
		c.must(err)
		s := newMemberStorm(c, one, two)
		late := c.Hosts[2]
		c.startEach(lab.Command{Args: s.args}, c.Hosts[:2]...)
		c.connect(c.Hosts[:2]...)
		subnets := []netip.Prefix{c.subnet(c.Hosts[0]), c.subnet(c.Hosts[1])}
		p := c.pinger(c.containers[0], c.containers[1])

		s.begin()
		s.killLeader()
		three, err := c.Etcd.AddMember(c.ctx, 3, s.others...)
		c.must(err)
		s.remove(two)
		s.others = []*lab.Member{one, three}
		s.killLeader()
		s.end()

		c.start(late, s.args...)
		want := s.wanted(subnets[0], subnets[1], c.subnet(late))
		for i, h := range c.Hosts {
			c.within(30*time.Second, "peers of "+h.Name, func() error { return s.knows(h, want) })
			if i < 2 && c.subnet(h) != subnets[i] {
				t.Errorf("%s had %s, has %s", h.Name, subnets[i], c.subnet(h))
			}
		}
		if sent := p.Stop(); sent.Lost > 0 {
			t.Errorf("lost %d of %d pings, for %v", sent.Lost, sent.Sent, sent.Outage)
		}
	})
}

// memberStorm is a cluster of etcd's with leases in it that come and go.
type memberStorm struct {
	*cluster
	others []*lab.Member // that there are beside the first
	args   []string      // of flanneld: the endpoints are those of the beginning

	mu    sync.Mutex
	there map[netip.Prefix]bool // acknowledged
	stop  context.CancelFunc
	done  chan struct{}
	wrote int
}

func newMemberStorm(c *cluster, others ...*lab.Member) *memberStorm {
	c.t.Helper()
	endpoints := []string{c.Etcd.Endpoint()}
	for _, m := range others {
		endpoints = append(endpoints, m.Endpoint())
	}
	s := &memberStorm{
		cluster: c, others: others, there: map[netip.Prefix]bool{}, done: make(chan struct{}),
		args: []string{"-etcd-endpoints=" + strings.Join(endpoints, ","), "-etcd-api=" + c.api, "-subnet-lease-renew-margin=1439", "-iptables-forward-rules=false"},
	}
	ctx, cancel := context.WithCancel(c.ctx)
	c.t.Cleanup(cancel)
	var err error
	s.keys, err = c.Etcd.Cluster(ctx, c.api, others...)
	c.must(err)
	s.within(time.Minute, "write the config", func() error { return s.keys.Put(s.ctx, s.prefix+"/config", upperConfig, 0) })
	return s
}

// begin has leases written and deleted without a pause.
func (s *memberStorm) begin() {
	ctx, cancel := context.WithCancel(s.ctx)
	s.stop = cancel
	go func() {
		defer close(s.done)
		random := rand.New(rand.NewPCG(1, 2))
		for ctx.Err() == nil {
			subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 42, byte(random.IntN(100)), 0}), 24)
			n, comes := subnet.Addr().As4()[2], !s.there[subnet]
			// Without an answer it is not known whether it was done, so it is done again. What
			// is begun is finished, or the end is not known.
			err := wait.Until(s.ctx, func() error {
				if comes {
					return s.keys.Put(s.ctx, leaseKey(s.prefix, subnet), phantomValue(fmt.Sprintf("172.31.201.%d", n), fmt.Sprintf("02:00:00:00:00:%02x", n)), 0)
				}
				if err := s.keys.Delete(s.ctx, leaseKey(s.prefix, subnet)); !errors.Is(err, etcdkeys.ErrNoKey) {
					return err
				}
				return nil
			})
			if err != nil {
				return
			}
			s.mu.Lock()
			s.there[subnet] = comes
			s.wrote++
			s.mu.Unlock()
		}
	}()
	s.writes(50)
}

// writes waits for so many more.
func (s *memberStorm) writes(n int) {
	s.t.Helper()
	count := func() int { s.mu.Lock(); defer s.mu.Unlock(); return s.wrote }
	from := count()
	s.within(time.Minute, "writes go on", func() error {
		if n := count() - from - n; n < 0 {
			return fmt.Errorf("%d are missing", -n)
		}
		return nil
	})
}

func (s *memberStorm) end() {
	s.t.Helper()
	s.stop()
	<-s.done
	s.t.Logf("%d writes", s.wrote)
}

// killLeader kills the leader, and starts it again once the others work.
func (s *memberStorm) killLeader() {
	s.t.Helper()
	leader, err := s.Etcd.Leader(s.ctx, s.others...)
	s.must(err)
	s.must(leader.Kill(s.ctx))
	s.writes(50)
	s.must(leader.Start(s.ctx))
	s.writes(50)
}

// remove takes a member out of the cluster, which ends it.
func (s *memberStorm) remove(m *lab.Member) {
	s.t.Helper()
	s.within(30*time.Second, "remove a member", func() error {
		return s.Etcd.Members(s.ctx, s.others, func(ctx context.Context, c *client.Client) error {
			all, err := c.MemberList(ctx)
			if err != nil {
				return err
			}
			for _, one := range all.Members {
				if slices.Contains(one.ClientURLs, m.Endpoint()) {
					_, err := c.MemberRemove(ctx, one.ID)
					return errors.Join(err, errors.New("it is still there"))
				}
			}
			return nil
		})
	})
	s.writes(50)
	s.must(m.Kill(s.ctx)) // where it did not end by itself
}

// wanted returns the peers in etcd, and the given ones.
func (s *memberStorm) wanted(hosts ...netip.Prefix) map[netip.Prefix]bool {
	want := map[netip.Prefix]bool{}
	for _, h := range hosts {
		want[h] = true
	}
	for subnet, is := range s.there {
		if is {
			want[subnet] = true
		}
	}
	return want
}

// knows returns what is wrong with the routes of a host.
func (s *memberStorm) knows(h *lab.Host, want map[netip.Prefix]bool) error {
	have := map[netip.Prefix]bool{s.subnet(h): true}
	for key := range s.snapshot(h, "10.42.0.0/16", "flannel.1").Routes {
		have[key.Dst] = true
	}
	if !maps.Equal(have, want) {
		return fmt.Errorf("has routes to %d subnets, wants %d", len(have), len(want))
	}
	return nil
}
