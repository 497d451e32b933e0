package store

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcd"
)

// These are the contents of two stores that both have a config, and the one that has the network.
func TestStoreWithTheLeasesIsTheNetwork(t *testing.T) {
	const none, v3, v2 = -1, 0, 1
	empty, peers, reserved := evidence{}, evidence{leases: 3}, evidence{reservations: 3}
	ours := evidence{leases: 3, ownLeases: 1}
	alone := evidence{leases: 1, ownLeases: 1}
	forUs := evidence{reservations: 3, ownReservations: 1}
	for _, c := range []struct {
		name   string
		v3, v2 evidence
		last   int
		want   int
		doubt  bool
	}{
		{"neither has leases", empty, empty, none, v3, true},
		{"neither has leases, was in v2", empty, empty, v2, v2, false},
		{"neither has leases, was in v3", empty, empty, v3, v3, false},
		{"hosts are in v2", empty, peers, none, v2, false},
		{"hosts are in v3", peers, empty, none, v3, false},
		{"all are in v2, ours too", empty, ours, none, v2, false},
		{"all are in v3, ours too", ours, empty, none, v3, false},
		{"hosts in both", peers, peers, none, v3, true},
		{"hosts in both, was in v2", peers, peers, v2, v2, true},
		{"hosts in both, ours in v2", peers, ours, none, v2, true},
		{"hosts in both, ours in v3", ours, peers, none, v3, true},
		{"hosts in both, ours in v2, was in v3", peers, ours, v3, v2, true}, // the original ran here in the meantime
		{"ours in both", ours, ours, none, v3, true},
		{"ours in both, was in v2", ours, ours, v2, v2, true},
		{"only ours in v2, others in v3", peers, alone, none, v2, true},
		{"they moved to v2 while we were down", empty, peers, v3, v2, false},
		// Reservations outlive their network.
		{"reservations in v2", empty, reserved, none, v2, false},
		{"reservations in v2, was in v3", empty, reserved, v3, v3, false},
		{"our reservation in v2, was in v3", empty, forUs, v3, v3, false},
		{"our reservation in v2", reserved, forUs, none, v2, true},
		{"reservations in v2, hosts in v3", peers, forUs, none, v3, true},
		{"reservations in both", reserved, reserved, none, v3, true},
	} {
		if got := decide([2]evidence{c.v3, c.v2}, c.last); got.store != c.want || got.doubt != c.doubt || got.why == "" {
			t.Errorf("%s: %+v, want store %d, doubt %v", c.name, got, c.want, c.doubt)
		}
	}
}

// The same with a real etcd and leases as daemons write them.
func TestStoreIsChosenByItsLeases(t *testing.T) {
	t.Parallel()
	here, there := netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("192.0.2.12")
	for _, c := range []struct {
		name   string
		leases map[API]netip.Addr
		last   API
		want   API
		warns  bool
	}{
		{"no leases", nil, "", APIv3, true},
		{"a peer in v2", map[API]netip.Addr{APIv2: there}, "", APIv2, false},
		{"a peer in v3", map[API]netip.Addr{APIv3: there}, "", APIv3, false},
		{"peers in both", map[API]netip.Addr{APIv2: there, APIv3: there}, "", APIv3, true},
		{"this host in v2, a peer in v3", map[API]netip.Addr{APIv2: here, APIv3: there}, "", APIv2, true},
		{"no leases, last in v2", nil, APIv2, APIv2, false},
		{"peers in both, last in v2", map[API]netip.Addr{APIv2: there, APIv3: there}, APIv2, APIv2, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := etcd.Options{Endpoints: []string{etcdtest.StartEtcd(t).URL}, Prefix: "/coreos.com/network"}
			for api, verb := range map[API]string{APIv3: "put", APIv2: "set"} {
				paste(t, etcdctl(o, api, verb, "/coreos.com/network/config", fmt.Sprintf(`{"Network":"10.4%s.0.0/16"}`, api[1:])))
				if ip, ok := c.leases[api]; ok {
					reg, err := open(o, api)
					if err != nil {
						t.Fatal(err)
					}
					defer reg.Close()
					if _, err := reg.Create(t.Context(), lease.SubnetsOf(netip.MustParsePrefix("10.42.7.0/24")), lease.Attrs{PublicIP: ip}, time.Hour); err != nil {
						t.Fatal(err)
					}
				}
			}
			var log strings.Builder
			s := start(t, o, APIAuto, Identity{c.last, func(l lease.Lease) bool { return l.PublicIP == here }})
			s.log = slog.New(slog.NewTextHandler(&log, nil))
			raw, err := s.Config(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			api := s.Registry().API
			if api != c.want || !strings.Contains(string(raw), "10.4"+string(api[1:])) || strings.Contains(log.String(), "level=WARN") != c.warns {
				t.Errorf("chose %s with %s, want %s; log:\n%s", api, raw, c.want, &log)
			}
		})
	}
}

// A store that does not answer is awaited without limit if this host used it before. One that etcd
// does not have is not.
func TestSilentStoreIsWaitedFor(t *testing.T) {
	t.Parallel()
	o := etcd.Options{Endpoints: []string{etcdtest.StartEtcd(t).URL}, Prefix: "/p"}
	away := etcd.Options{Endpoints: []string{"http://127.0.0.1:1"}, Prefix: "/p"}
	paste(t, etcdctl(o, APIv3, "put", "/p/config", SampleConfig))
	for _, c := range []struct {
		last  API
		tries int // time until the store that answers is chosen; 0 for never
	}{{"", 3}, {APIv3, 1}, {APIv2, 0}} {
		s := start(t, o, APIAuto, Identity{Last: c.last})
		s.regs[1].Close()
		var err error
		if s.regs[1], err = open(away, APIv2); err != nil {
			t.Fatal(err)
		}
		tries := 0
		for n := 1; n <= 5 && tries == 0; n++ {
			if _, err := s.Config(t.Context()); err == nil {
				tries = n
			}
		}
		if tries != c.tries {
			t.Errorf("last in %q: taken at attempt %d, want %d", c.last, tries, c.tries)
		}
	}
}

// TestConfigBelongsWhereTheDaemonLooks: where there is none yet, it is the store of the last run, else
// v3, if every API has answered.
func TestConfigBelongsWhereTheDaemonLooks(t *testing.T) {
	t.Parallel()
	server := etcdtest.StartEtcd(t)
	o := etcd.Options{Endpoints: []string{server.URL}, Prefix: "/coreos.com/network"}
	for _, c := range []struct{ api, last, want API }{
		{APIAuto, "", APIv3}, {APIAuto, APIv3, APIv3}, {APIAuto, APIv2, APIv2}, {APIv2, APIv3, APIv2}, {APIv3, APIv2, APIv3},
	} {
		s := start(t, o, c.api, Identity{Last: c.last})
		if _, err := s.Config(t.Context()); !errors.Is(err, registry.ErrNoConfig) {
			t.Fatal(err)
		}
		reg, err := s.Vacant()
		if err != nil || reg.API != c.want {
			t.Errorf("%s, last %q: %s, %v; want %s", c.api, c.last, reg.API, err, c.want)
		}
	}
	for _, answers := range [][]answer{{{err: registry.ErrNoConfig}, {err: errors.New("no answer")}}, {{}, {err: registry.ErrNoConfig}}, {{err: registry.ErrNoAPI}, {err: registry.ErrNoAPI}}} {
		s := start(t, o, APIAuto, Identity{})
		s.answers = answers
		if reg, err := s.Vacant(); err == nil {
			t.Errorf("%v: chose %s", answers, reg.API)
		}
	}
	s := start(t, o, APIAuto, Identity{})
	s.answers = []answer{{err: registry.ErrNoAPI}, {err: registry.ErrNoConfig}}
	if reg, err := s.Vacant(); err != nil || reg.API != APIv2 {
		t.Errorf("a server without v3: %s, %v", reg.API, err)
	}
}
