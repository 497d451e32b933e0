package subnet_test

import (
	"bufio"
	"context"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lab/logs"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcdv2"
	"flanneld/pkg/registry/etcdv3"
	"flanneld/pkg/registry/registrytest"
)

// hostsPerClient is the number of hosts that share a client, so that the test is not limited by the
// machine's descriptors: each pending v2 request has its own connection.
const hostsPerClient = 50

// TestGreatJoinStorm starts two thousand hosts at once in a network of 8,192 subnets. Each gets its
// own subnet, and almost none needs a second listing.
func TestGreatJoinStorm(t *testing.T) {
	hosts := 2000
	if testing.Short() || raceDetector() {
		hosts = 200
	}
	for _, api := range apis {
		t.Run(api.Name, func(t *testing.T) {
			etcd := etcdtest.StartEtcd(t)
			var clients []registry.Registry
			for range (hosts + hostsPerClient - 1) / hostsPerClient {
				clients = append(clients, api.Open(t, etcdv2.Options{Endpoints: []string{etcd.URL}, Prefix: etcdPrefix}))
			}
			before, start := requests(t, etcd.URL, api.request), time.Now()
			all := join(t, clients, hosts)
			took := time.Since(start)
			checkJoined(t, all, clients[0])
			var lists []int
			for _, h := range all {
				// On a busy machine etcd does not answer all in time, and they have to list again.
				if h.log.Count("is unreachable") == 0 {
					lists = append(lists, h.lists)
				}
			}
			if len(lists) < hosts/2 {
				t.Fatalf("etcd has answered %d of %d hosts in time", len(lists), hosts)
			}
			slices.Sort(lists)
			if median := lists[len(lists)/2]; median > 2 {
				t.Errorf("half of the hosts list the leases %d times or more", median)
			}
			asked := requests(t, etcd.URL, api.request) - before
			t.Logf("%d hosts joined within %v, with %d requests to etcd; listings of %d of them: median %d, 99th percentile %d, most %d",
				hosts, took.Round(time.Millisecond), asked, len(lists), lists[len(lists)/2], lists[len(lists)*99/100], lists[len(lists)-1])
		})
	}
}

// api is one of etcd's two.
type api struct {
	registrytest.API[registrytest.Closer]
	request string // etcd's metric that counts requests
}

var apis = []api{
	{registrytest.API[registrytest.Closer]{Name: "v2", New: func(o etcdv2.Options) (registrytest.Closer, error) { return etcdv2.New(o) }}, "etcd_http_received_total"},
	{registrytest.API[registrytest.Closer]{Name: "v3", New: func(o etcdv2.Options) (registrytest.Closer, error) { return etcdv3.New(o) }}, "grpc_server_started_total"},
}

// joiner is a host of the storm whose registry counts listings.
type joiner struct {
	registry.Registry
	lists int
	log   logs.Buffer
	lease lease.Lease
	err   error
}

func (j *joiner) List(ctx context.Context) (registry.Listing, error) {
	j.lists++ // one at a time
	return j.Registry.List(ctx)
}

// join starts an acquisition on all hosts at the same time.
func join(t *testing.T, clients []registry.Registry, hosts int) []*joiner {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	all := make([]*joiner, hosts)
	var wg sync.WaitGroup
	for i := range all {
		j := &joiner{Registry: clients[i/hostsPerClient]}
		all[i] = j
		o := options(j, netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), &j.log)
		o.Pool = pool("10.32.0.0/11", 24, "10.32.1.0", "10.63.255.0")
		wg.Go(func() { j.lease, j.err = acquire(ctx, o) })
	}
	wg.Wait()
	return all
}

// checkJoined checks that every host has a subnet of its own and that etcd has the same leases.
func checkJoined(t *testing.T, all []*joiner, reg registry.Registry) {
	t.Helper()
	listing, err := reg.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	held := map[lease.Subnets]lease.Lease{}
	for _, l := range listing.Leases {
		held[l.Subnets] = l
	}
	if len(held) != len(all) || len(listing.Invalid) > 0 {
		t.Errorf("etcd holds %d leases and %d bad entries for %d hosts", len(held), len(listing.Invalid), len(all))
	}
	owners := map[lease.Subnets]netip.Addr{}
	away := 0
	for _, j := range all {
		if j.err != nil {
			t.Fatalf("%v\n%s", j.err, &j.log)
		}
		if other, taken := owners[j.lease.Subnets]; taken {
			t.Errorf("%s and %s both have %s", other, j.lease.PublicIP, j.lease.Subnets)
		}
		owners[j.lease.Subnets] = j.lease.PublicIP
		if !held[j.lease.Subnets].SameAs(j.lease) {
			t.Errorf("a host has %+v, etcd holds %+v", j.lease, held[j.lease.Subnets])
		}
		away += j.log.Count("is unreachable")
	}
	t.Logf("etcd seemed away %d times", away)
}

// requests returns the sum of one of etcd's counters.
func requests(t *testing.T, url, metric string) (n int) {
	t.Helper()
	resp, err := http.Get(url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 2 && strings.HasPrefix(fields[0], metric+"{") {
			v, err := strconv.ParseFloat(fields[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			n += int(v)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return n
}

// raceDetector reports whether the test is slowed down by the race detector.
func raceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}
