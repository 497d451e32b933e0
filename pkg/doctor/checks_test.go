package doctor

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/host"
	"flanneld/pkg/lab/golden"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcd"
	"flanneld/pkg/registry/store"
	"flanneld/pkg/status"
	"flanneld/pkg/subnetenv"
)

const vxlanConfig = `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`

// facts is what the inputs of a healthy host are made of. Tests change it.
type facts struct {
	now       time.Time
	options   Options
	daemons   []Daemon
	answer    Answer
	status    *status.Document // nil: the daemon cannot be asked
	later     *status.Document
	env       subnetenv.Env
	claim     lease.Claim
	endpoints []Endpoint
	elsewhere []Place
	ownLease  lease.Lease
	overlay   Overlay
	paths     Paths
	inventory host.Inventory
	local     localFacts
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

func ptr[T any](v T) *T { return &v }

// testLease returns the lease of host n.
func testLease(n int, now time.Time) lease.Lease {
	return lease.Lease{
		Subnets: lease.SubnetsOf(prefix(fmt.Sprintf("10.42.%d.0/24", n))),
		Attrs: lease.Attrs{PublicIP: addr(fmt.Sprintf("192.0.2.%d", n)), BackendType: "vxlan",
			BackendData: fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:00:00:%02x"}`, n)},
		Expires: now.Add(20 * time.Hour), Revision: uint64(100 + n), Created: uint64(n),
	}
}

// healthy returns the facts of host 7, which has the peers 8 and 9.
func healthy() *facts {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	f := &facts{now: now, answer: answered, local: healthyLocal()}
	f.options = Options{
		Etcd: etcd.Options{Endpoints: []string{"http://192.0.2.1:2379"}, Prefix: defaultPrefix}, API: store.APIAuto,
		SubnetFile: subnetenv.DefaultFile, RenewMargin: time.Hour, Source: "flanneld runs (PID 7)",
	}
	f.daemons = []Daemon{{PID: 7, Args: []string{"-etcd-endpoints=http://192.0.2.1:2379"}}}
	f.env = subnetenv.Env{Network: prefix("10.42.0.0/16"), Subnet: prefix("10.42.7.0/24"), MTU: 1450}
	own := testLease(7, now)
	f.claim = lease.Claim{Store: "v3", Subnets: own.Subnets, Held: own.Attrs, Next: own.Attrs}
	f.ownLease = own
	f.endpoints = []Endpoint{{URL: "http://192.0.2.1:2379", Version: "3.5.21", Cluster: "c1", Leader: true, LeaderKnown: true, Date: now, Asked: now, Took: time.Millisecond, Stores: []Store{
		{API: store.APIv3, Key: "/coreos.com/network/config", Config: []byte(vxlanConfig), Leases: []lease.Lease{own, testLease(8, now), testLease(9, now)}},
		{API: store.APIv2, Key: "/coreos.com/network/config", Err: fmt.Errorf("read: %w", registry.ErrNoAPI)},
	}}}
	f.overlay = Overlay{
		Network: prefix("10.42.0.0/16"), Subnet: prefix("10.42.7.0/24"), Backend: "vxlan", Device: "flannel.1", VNI: 1, Port: 8472,
		MTU: 1450, Uplink: "eth0", PublicIP: addr("192.0.2.7"), Peers: []lease.Lease{testLease(8, now), testLease(9, now)},
	}
	f.overlay.fromStore(f.endpoints[0].Stores[0])
	f.paths.All = []Path{
		{Subnet: prefix("10.42.8.0/24"), PublicIP: addr("192.0.2.8"), Underlay: Answers, Overlay: Answers, Full: Answers, Before: true},
		{Subnet: prefix("10.42.9.0/24"), PublicIP: addr("192.0.2.9"), Underlay: Answers, Overlay: Answers, Full: Answers, Before: true},
	}
	f.inventory = host.Inventory{
		Ifaces: []host.Iface{{Name: "eth0", Index: 2, MTU: 1500, Up: true, Running: true, Addrs: []host.Addr{{Prefix: prefix("192.0.2.7/24")}}}},
		Routes: []host.Route{{Dst: prefix("0.0.0.0/0"), Iface: "eth0", Gateway: addr("192.0.2.1")}},
	}
	f.status = &status.Document{
		Version: 1, Now: now, Verdict: status.VerdictOK, Daemon: status.Daemon{PID: 7, Ready: true},
		Store: status.Store{API: "v3", Prefix: defaultPrefix, Up: ptr(true), ViewAge: ptr(1.5)}, Network: status.Network{CIDR: prefix("10.42.0.0/16"), SubnetLen: 24},
		Lease: status.Lease{Subnet: prefix("10.42.7.0/24")}, Uplink: status.Uplink{Interface: "eth0", Address: addr("192.0.2.7"), PublicIP: addr("192.0.2.7"), MTU: 1500},
		Backend: status.Backend{Type: "vxlan", Device: "flannel.1", MTU: 1450}, Drift: ptr(0),
		Peers: []status.Peer{
			{Subnet: prefix("10.42.8.0/24"), PublicIP: addr("192.0.2.8"), State: status.OK, Probe: status.ProbeOK, RTT: ptr(0.3), Loss: ptr(0.)},
			{Subnet: prefix("10.42.9.0/24"), PublicIP: addr("192.0.2.9"), State: status.OK, Probe: status.ProbeOK, RTT: ptr(0.3), Loss: ptr(0.)},
		},
	}
	return f
}

// inputs returns the facts as inputs.
func (f *facts) inputs() *Inputs {
	in := &Inputs{Options: f.options, Redact: NewRedactor(secretsOf(f.options.Etcd)...), Now: f.now}
	in.Daemons, in.Answer = Given(f.daemons), Given(f.answer)
	in.Status, in.Later = Missing[status.Document](errDown), Missing[status.Document](errDown)
	if f.status != nil {
		in.Status, in.Later = Given(*f.status), Given(*f.status)
	}
	if f.later != nil {
		in.Later = Given(*f.later)
	}
	in.Env, in.Claim = Given(f.env), Given(f.claim)
	in.Endpoints, in.Elsewhere, in.OwnLease = Given(f.endpoints), Given(f.elsewhere), Given(f.ownLease)
	in.Overlay, in.Paths, in.Inventory = Given(f.overlay), Given(f.paths), Given(f.inventory)
	f.local.add(in)
	return in
}

// condition adds a condition to the daemon's status.
func (f *facts) condition(c status.Condition) { f.status.Conditions = append(f.status.Conditions, c) }

func (f *facts) v3() *Store { return &f.endpoints[0].Stores[0] }

func (f *facts) v2() *Store { return &f.endpoints[0].Stores[1] }

// unreachable makes etcd unusable for a reason.
func (f *facts) unreachable(err error) {
	f.endpoints[0].Err = err
	for i := range f.endpoints[0].Stores {
		f.endpoints[0].Stores[i] = Store{API: f.endpoints[0].Stores[i].API, Err: err}
	}
}

// ownChecks are the checks of this file's areas: those of the packet filter and of the host's settings
// have their own tests.
func ownChecks() []Check {
	var all []Check
	for _, c := range [][]Check{daemonChecks(), etcdChecks(), configChecks(), leaseChecks(), duplicateChecks(), uplinkChecks(), pathChecks()} {
		all = append(all, c...)
	}
	return all
}

// TestChecks: each row changes a healthy host, and names the check that fails because of it, first,
// with a part of its summary and of its remedy. No other check may fail, except those listed.
func TestChecks(t *testing.T) {
	for _, x := range []struct {
		name    string
		change  func(*facts)
		id      string // empty: nothing fails
		summary string
		remedy  string
		also    string // IDs
		unknown string // IDs of checks that are unknown; "-": any
	}{
		{"healthy", func(*facts) {}, "", "", "", "", ""},
		{"no daemon", func(f *facts) { f.daemons, f.status, f.answer = nil, nil, nobody }, "FL-DAEMON-DOWN", "no flanneld runs", "systemctl start flanneld", "",
			"FL-DAEMON-HUNG FL-DRIFT FL-PEER-SKIPPED FL-CONDITION FL-CONFIG-CHANGED FL-VIEW-STALE FL-IFACE-GONE FL-PEER-LOSSY"},
		{"daemon of another subnet file", func(f *facts) { f.daemons[0].Args = []string{"-subnet-file", "/a"}; f.status = nil }, "FL-DAEMON-DOWN", "with the subnet file /run/flannel/subnet.env", "-subnet-file", "", "-"},
		{"daemon is stopped", func(f *facts) { f.daemons[0].Stopped, f.status, f.answer = true, nil, silent }, "FL-DAEMON-HUNG", "(PID 7) is stopped by a signal", "kill -CONT 7", "", "-"},
		{"daemon hangs", func(f *facts) { f.status, f.answer = nil, silent }, "FL-DAEMON-HUNG", "does not answer", "restart", "", "-"},
		{"an original", func(f *facts) { f.status, f.answer = nil, nobody }, "", "", "", "", "-"},
		{"two daemons, one file", func(f *facts) {
			f.daemons = append(f.daemons, Daemon{PID: 9, Args: []string{"--subnet-file=/run/flannel//subnet.env"}})
		}, "FL-TWO-DAEMONS", "one subnet file", "kill 9", "", ""},
		{"two daemons, one network", func(f *facts) {
			f.daemons = append(f.daemons, Daemon{PID: 9, Args: append([]string{"-subnet-file", "/b"}, f.daemons[0].Args...)})
		}, "FL-TWO-DAEMONS", "one network", "kill 9", "", ""},
		{"two daemons, two networks", func(f *facts) {
			f.daemons = append(f.daemons, Daemon{PID: 9, Args: []string{"-subnet-file=/b", "-etcd-prefix=/b"}})
		}, "", "", "", "", ""},
		{"two daemons, unreadable", func(f *facts) { f.daemons = append(f.daemons, Daemon{PID: 9}) }, "", "", "", "", "FL-TWO-DAEMONS"},
		{"waits for another daemon", func(f *facts) {
			f.condition(status.Condition{ID: "other-flanneld", Severity: status.Severe, Text: "another flanneld"})
		}, "FL-TWO-DAEMONS", "another flanneld", "VNI", "", ""},

		{"etcd refuses connections", func(f *facts) { f.unreachable(errors.New("dial tcp: connection refused")) }, "FL-ETCD-DOWN", "connection refused", "start etcd", "", "-"},
		{"no SRV records", func(f *facts) {
			f.endpoints = []Endpoint{{URL: "example.org", Err: errors.New("no endpoints are found by SRV records: no such host")}}
		}, "FL-ETCD-DOWN", "SRV records", "-etcd-endpoints", "", "-"},
		{"the chosen API is missing", func(f *facts) { f.options.API, f.status, f.claim.Store = store.APIv2, nil, "" }, "FL-CONFIG-MISSING", "in the v2 API, which this etcd does not have", "", "", "-"},
		{"one of two endpoints is down", func(f *facts) {
			f.endpoints = append(f.endpoints, Endpoint{URL: "http://127.0.0.1:4001", Err: errors.New("refused")})
		}, "", "", "", "", ""},
		{"etcd's CA is unknown", func(f *facts) {
			f.unreachable(fmt.Errorf("%w: set -etcd-cafile to the CA", x509.UnknownAuthorityError{}))
		}, "FL-ETCD-TLS", "unknown authority", "set -etcd-cafile to the CA", "", "-"},
		{"etcd's certificate has expired", func(f *facts) { f.unreachable(x509.CertificateInvalidError{Reason: x509.Expired}) }, "FL-ETCD-TLS", "expired", "clock", "", "-"},
		{"http to https", func(f *facts) {
			f.unreachable(errors.New("EOF: etcd speaks TLS there: write https:// in -etcd-endpoints"))
		}, "FL-ETCD-TLS", "EOF", "write https://", "", "-"},
		{"etcd refuses the user", func(f *facts) { f.unreachable(fmt.Errorf("get: %w", registry.ErrLogin)) }, "FL-ETCD-DENIED", "refused", "-etcd-username", "", "-"},
		{"etcd refuses to list", func(f *facts) { f.v3().LeasesErr, f.v3().Leases = registry.ErrDenied, nil }, "FL-ETCD-DENIED", "read leases", "readwrite", "", "-"},
		{"etcd refuses to write", func(f *facts) {
			f.condition(status.Condition{ID: "etcd-access/v3/write", Severity: status.Severe, Text: "etcd does not permit this host to write its lease", Remedy: "etcdctl role"})
		}, "FL-ETCD-DENIED", "write its lease", "etcdctl role", "", ""},
		{"no leader", func(f *facts) {
			f.unreachable(context.DeadlineExceeded)
			f.endpoints[0].Leader = false
		}, "FL-ETCD-NO-LEADER", "no leader", "members", "", "-"},
		{"endpoints of two clusters", func(f *facts) {
			other := f.endpoints[0]
			other.URL, other.Cluster = "http://192.0.2.2:2379", "c2"
			f.endpoints = append(f.endpoints, other)
		}, "FL-ETCD-SPLIT", "cluster c2", "-etcd-endpoints", "", ""},
		{"endpoints of two etcds with one ID", func(f *facts) {
			other := f.endpoints[0]
			other.URL, other.Stores = "http://192.0.2.2:2379", []Store{*f.v3()}
			other.Stores[0].Leases = []lease.Lease{testLease(5, f.now)}
			f.endpoints = append(f.endpoints, other)
		}, "FL-ETCD-SPLIT", "different leases", "-etcd-endpoints", "", ""},
		{"one endpoint is asked later", func(f *facts) {
			other := f.endpoints[0]
			other.URL, other.Stores = "http://192.0.2.2:2379", []Store{*f.v3()}
			other.Stores[0].Leases = f.v3().Leases[:2]
			f.endpoints = append(f.endpoints, other)
		}, "", "", "", "", ""},

		{"no config", func(f *facts) { f.v3().Err, f.v3().Config = registry.ErrNoConfig, nil; f.status = nil }, "FL-CONFIG-MISSING", "/coreos.com/network/config in the v3 API", "etcdctl", "", "-"},
		{"no config, as far as etcd answers", func(f *facts) {
			f.v2().Err = registry.ErrNoConfig
			f.v3().Err, f.v3().Config, f.v3().Leases = context.DeadlineExceeded, nil, nil
			f.elsewhere = []Place{{"coreos.com/network", store.APIv3}}
		}, "", "", "", "", "-"},
		{"config under another prefix", func(f *facts) {
			f.v3().Err, f.v3().Config, f.status = registry.ErrNoConfig, nil, nil
			f.elsewhere = []Place{{"/atomic.io/network", store.APIv2}}
		}, "FL-CONFIG-MISSING", "/atomic.io/network in the v2 API", "-etcd-prefix=/atomic.io/network and -etcd-api=v2", "", "-"},
		{"invalid config", func(f *facts) { f.v3().Config = []byte(`{"Network":"10.42.0.0"}`) }, "FL-CONFIG-INVALID", "must be an IPv4 network", "etcdctl", "", "-"},
		{"config is too long", func(f *facts) { f.v3().Err, f.v3().Config = registry.LongConfig(1<<20), nil }, "FL-CONFIG-INVALID", "too long", "shorter", "", "-"},
		{"config takes addresses of the LAN", func(f *facts) {
			f.condition(status.Condition{ID: "network-config", Severity: status.Warning, Text: "network config is invalid, waiting err=192.0.2.0/24"})
		}, "FL-CONFIG-INVALID", "192.0.2.0/24", "", "", ""},
		{"config changed", func(f *facts) {
			f.condition(status.Condition{ID: "network-config/restart", Severity: status.Warning, Text: "config change needs a restart"})
		}, "FL-CONFIG-CHANGED", "needs a restart", "restart flanneld", "", ""},
		{"hosts in both stores", func(f *facts) {
			*f.v2() = Store{API: store.APIv2, Key: "/coreos.com/network/config", Config: []byte(vxlanConfig), Leases: []lease.Lease{testLease(20, f.now)}}
		}, "FL-TWO-STORES", "192.0.2.20", "-etcd-api=v3 on all hosts; then ETCDCTL_API=2 etcdctl --endpoints=http://192.0.2.1:2379 rm /coreos.com/network/config", "", ""},
		{"a forgotten config in the other store", func(f *facts) {
			*f.v2() = Store{API: store.APIv2, Key: "/coreos.com/network/config", Config: []byte(vxlanConfig)}
		}, "", "", "", "", ""},
		{"clock is behind", func(f *facts) { f.endpoints[0].Date = f.now.Add(time.Hour) }, "FL-CLOCK", "behind", "timedatectl", "", ""},
		{"clock is ahead", func(f *facts) { f.endpoints[0].Date = f.now.Add(-90 * time.Second) }, "FL-CLOCK", "1m30s ahead of", "timedatectl", "", ""},
		{"clock of one second", func(f *facts) { f.endpoints[0].Date = f.now.Add(-time.Second) }, "", "", "", "", ""},

		{"lease is gone", func(f *facts) { f.v3().Leases = f.v3().Leases[1:] }, "FL-LEASE-MISSING", "10.42.7.0/24 is not in etcd", "restart flanneld", "", "FL-LEASE-TAKEN"},
		{"lease of another host", func(f *facts) { f.v3().Leases[0].PublicIP = addr("192.0.2.99") }, "FL-LEASE-TAKEN", "192.0.2.99 instead of 192.0.2.7", "restart flanneld docker", "", ""},
		{"lease is lost", func(f *facts) { f.status.Lease.Lost = true }, "FL-LEASE-TAKEN", "has taken", "restart", "", ""},
		{"renewal is overdue", func(f *facts) { f.ownLease.Expires = f.now.Add(10 * time.Minute) }, "FL-LEASE-OVERDUE", "10m0s", "restart", "", ""},
		{"renewal is due", func(f *facts) { f.ownLease.Expires = f.now.Add(58 * time.Minute) }, "", "", "", "", ""},
		{"reservation", func(f *facts) { f.ownLease.Expires = time.Time{} }, "", "", "", "", ""},
		{"an entry that is no lease", func(f *facts) {
			f.v3().Invalid = []registry.InvalidEntry{{Key: "10.42.5.0-24", Err: errors.New("value is not lease JSON")}}
		}, "FL-LEASE-INVALID", "10.42.5.0-24: value is not lease JSON", "del /coreos.com/network/subnets/10.42.5.0-24", "", ""},
		{"our lease is damaged", func(f *facts) {
			f.v3().Leases = f.v3().Leases[1:]
			f.v3().Invalid = []registry.InvalidEntry{{Key: "10.42.7.0-24", Subnets: lease.SubnetsOf(prefix("10.42.7.0/24")), Err: errors.New("value is not lease JSON")}}
		}, "FL-LEASE-INVALID", "not lease JSON", "", "", "FL-LEASE-TAKEN"},
		{"pool is full", func(f *facts) {
			f.v3().Config = []byte(`{"Network":"10.42.0.0/16","SubnetMin":"10.42.8.0","SubnetMax":"10.42.9.0","Backend":{"Type":"vxlan"}}`)
			f.v3().Leases = f.v3().Leases[1:]
			f.status.Lease.Subnet, f.claim = netip.Prefix{}, lease.Claim{}
			f.condition(status.Condition{ID: "no-subnet", Severity: status.Severe, Text: "cannot lease a subnet"})
		}, "FL-POOL-FULL", "all 2 subnets between 10.42.8.0 and 10.42.9.0", "larger Network", "", "-"},
		{"two leases, one host", func(f *facts) { f.v3().Leases[2].PublicIP = addr("192.0.2.8") }, "FL-DUPLICATE-IP", "2 leases name the same host 192.0.2.8: 10.42.8.0/24 (192.0.2.8), 10.42.9.0/24 (192.0.2.8)", "-public-ip", "", ""},
		{"two hosts, one MAC", func(f *facts) { f.v3().Leases[2].BackendData = strings.ToUpper(f.v3().Leases[1].BackendData) }, "FL-DUPLICATE-MAC", "10.42.9.0/24", "ip link del flannel.1", "", ""},
		{"two hosts, one MAC in other letters", func(f *facts) { f.v3().Leases[2].BackendData = `{"VtepMAC":"02:00:00:00:00:08"}` }, "FL-DUPLICATE-MAC", "10.42.8.0/24", "ip link del flannel.1", "", ""},
		{"subnets overlap", func(f *facts) {
			l := testLease(12, f.now)
			l.Subnets = lease.SubnetsOf(prefix("10.42.8.0/23"))
			f.v3().Leases = append(f.v3().Leases, l)
			f.status.Peers = append(f.status.Peers, status.Peer{Subnet: prefix("10.42.8.0/23"), State: status.OK})
		}, "FL-DUPLICATE-SUBNET", "10.42.8.0/23", "10.42.8.0-23", "", ""},
		{"daemon misses a host", func(f *facts) { f.status.Peers = f.status.Peers[:1] }, "FL-VIEW-STALE", "does not know 1 of 3 hosts in etcd: 10.42.9.0/24", "restart", "", ""},
		{"daemon has just learned of a host", func(f *facts) { f.later = ptr(*f.status); f.status.Peers = f.status.Peers[:1] }, "", "", "", "", ""},
		{"view is old", func(f *facts) { f.status.Store.ViewAge = ptr(7200.0) }, "FL-VIEW-STALE", "2h0m0s old", "restart", "", ""},
		{"daemon has no etcd", func(f *facts) { f.status.Store.Up = ptr(false) }, "FL-VIEW-STALE", "answers the doctor, and not the daemon", "restart", "", ""},
		{"alone", func(f *facts) { f.v3().Leases, f.status.Peers, f.paths = f.v3().Leases[:1], nil, Paths{} }, "", "", "", "", "FL-ALONE FL-IFACE-CHOICE FL-HOST-UNREACHABLE FL-PEER-UNREACHABLE FL-PATH-MTU FL-PEER-LOSSY"},

		{"NAT interface", func(f *facts) {
			f.inventory.Ifaces = append(f.inventory.Ifaces, host.Iface{Name: "eth1", Up: true, Running: true, Addrs: []host.Addr{{Prefix: prefix("198.51.100.7/24")}}})
			f.inventory.Ifaces[0].Addrs[0].Prefix = prefix("10.0.2.15/24")
			f.inventory.Routes[0].Gateway = addr("10.0.2.2")
			f.status.Uplink.Address = addr("10.0.2.15")
		}, "FL-IFACE-NAT", "10.0.2.15", "-iface=eth1", "", ""},
		{"hosts are on another link", func(f *facts) {
			f.inventory.Ifaces = append(f.inventory.Ifaces, host.Iface{Name: "eth1", Up: true, Running: true, Addrs: []host.Addr{{Prefix: prefix("192.0.2.70/24")}}})
			f.inventory.Ifaces[0].Addrs[0].Prefix = prefix("198.51.100.7/24")
			f.status.Uplink.Address = addr("198.51.100.7")
			f.paths.All[0], f.paths.All[1] = Path{Underlay: Answers, Overlay: Silent}, Path{}
		}, "FL-IFACE-CHOICE", "2 of 2 hosts are on the link of eth1", "-iface=eth1", "", "-"},
		{"hosts are on another link, and answer", func(f *facts) {
			f.inventory.Ifaces = append(f.inventory.Ifaces, host.Iface{Name: "eth1", Up: true, Running: true, Addrs: []host.Addr{{Prefix: prefix("192.0.2.70/24")}}})
			f.inventory.Ifaces[0].Addrs[0].Prefix = prefix("198.51.100.7/24")
			f.status.Uplink.Address = addr("198.51.100.7")
		}, "", "", "", "", ""},
		{"interface is down", func(f *facts) { f.inventory.Ifaces[0].Up = false }, "FL-IFACE-GONE", "down", "ip link set eth0 up", "", ""},
		{"interface has no carrier", func(f *facts) { f.inventory.Ifaces[0].Running = false }, "FL-IFACE-GONE", "no carrier", "cable", "", ""},
		{"interface is gone", func(f *facts) {
			f.inventory.Ifaces = nil
			f.condition(status.Condition{ID: "uplink", Severity: status.Warning, Text: "uplink is unusable"})
		}, "FL-IFACE-GONE", "gone", "bring eth0 up", "", ""},
		{"address is gone", func(f *facts) { f.inventory.Ifaces[0].Addrs[0].Prefix = prefix("192.0.2.70/24") }, "FL-IFACE-GONE", "no interface has the address 192.0.2.7", "ip addr add", "", ""},

		{"drift", func(f *facts) { f.status.Drift = ptr(2); f.status.DriftKinds = map[string]int{"route": 2} }, "FL-DRIFT", "2 objects", "journalctl", "", ""},
		{"drift is repaired", func(f *facts) { f.later = ptr(*f.status); f.status.Drift = ptr(2) }, "", "", "", "", ""},
		{"port is taken", func(f *facts) {
			f.condition(status.Condition{ID: "base/link flannel.1", Severity: status.Severe, Text: "failed to set up the overlay on this host", Remedy: "kill 12"})
		}, "FL-DRIFT", "failed to set up", "kill 12", "", ""},
		{"a peer is skipped", func(f *facts) { f.status.Peers[0].State, f.status.Peers[0].Reason = status.Skipped, "no VtepMAC" }, "FL-PEER-SKIPPED", "the daemon leaves out 1 of 2 peers: 10.42.8.0/24 (192.0.2.8): no VtepMAC", "lease", "", ""},
		{"a peer has no entries yet", func(f *facts) {
			f.later = ptr(*f.status)
			f.status.Peers = slices.Clone(f.status.Peers)
			f.status.Peers[0].State = status.Unprogrammed
		}, "", "", "", "", ""},
		{"a peer has no entries", func(f *facts) { f.status.Peers[0].State = status.Unprogrammed }, "FL-PEER-SKIPPED", "could not be made", "journalctl", "", ""},
		{"a warning that no check is about", func(f *facts) {
			f.condition(status.Condition{ID: "file/subnet", Severity: status.Warning, Text: "failed to write subnet file", Remedy: "mount -o remount,rw /run"})
		}, "FL-CONDITION", "failed to write subnet file", "remount", "", ""},
		{"a notice", func(f *facts) {
			f.condition(status.Condition{ID: "status-socket", Severity: status.Notice, Text: "cannot serve"})
		}, "", "", "", "", ""},

		{"a host is off", func(f *facts) { f.paths.All[0].Underlay, f.paths.All[0].Overlay = Silent, Silent }, "FL-HOST-UNREACHABLE", "1 of 2 hosts", "start that host", "", "FL-PEER-UNREACHABLE"},
		{"a host was never there", func(f *facts) {
			f.paths.All[0] = Path{Subnet: prefix("10.42.8.0/24"), PublicIP: addr("192.0.2.8"), Underlay: Silent, Overlay: Silent}
		}, "", "", "", "", "FL-HOST-UNREACHABLE FL-PEER-UNREACHABLE"},
		{"hosts drop pings", func(f *facts) { f.paths.All[0].Underlay, f.paths.All[1].Underlay = Silent, Silent }, "", "", "", "", ""},
		{"the tunnel's port is blocked on the way", func(f *facts) {
			f.paths.All[1].Overlay, f.paths.All[1].Full = Silent, Unasked
			f.condition(status.Condition{ID: "peers/unreachable", Severity: status.Warning, Text: "peers do not answer probes"})
		}, "FL-PEER-UNREACHABLE", "192.0.2.9 (10.42.9.0/24)", "UDP port 8472", "", ""},
		{"a path loses packets", func(f *facts) {
			f.status.Peers[1].Probe, f.status.Peers[1].Loss = status.ProbeLossy, ptr(.38)
			f.condition(status.Condition{ID: "peers/lossy", Severity: status.Warning, Text: "some packets to peers are lost"})
		}, "FL-PEER-LOSSY", "to 1 of 2 hosts are lost now and then: 38 % to 192.0.2.9 (10.42.9.0/24)", "ping -c 50 -i 0.2 192.0.2.9", "", ""},
		{"the path carries less", func(f *facts) { f.paths.All[0].Full = Silent }, "FL-PATH-MTU", "(1450 bytes) to 1 of 2 hosts", "MTU", "", ""},
	} {
		f := healthy()
		x.change(f)
		r := Run(t.Context(), ownChecks(), f.inputs(), nil)
		unknown := map[string]bool{}
		for i, c := range r.Findings {
			switch {
			case c.Status == Unknown:
				unknown[c.ID] = true
			case c.Status == OK:
			case c.ID != x.id && !strings.Contains(" "+x.also+" ", " "+c.ID+" "):
				t.Errorf("%s: %s fails: %s", x.name, c.ID, c.Summary)
			case c.ID == x.id && i > 0:
				t.Errorf("%s: %s comes before %s", x.name, r.Findings[0].ID, c.ID)
			case c.ID == x.id && (!strings.Contains(c.Summary, x.summary) || !strings.Contains(c.Remedy, x.remedy)):
				t.Errorf("%s: %q, %q, want %q, %q", x.name, c.Summary, c.Remedy, x.summary, x.remedy)
			}
			if c.Summary == "" || c.Status == Fail && c.Remedy == "" && x.remedy != "" {
				t.Errorf("%s: %s has no summary or no remedy", x.name, c.ID)
			}
		}
		if first := r.Findings[0]; (first.Status == Fail) != (x.id != "") || x.id != "" && first.ID != x.id {
			t.Errorf("%s: first is %s %s: %s; want %q", x.name, first.ID, first.Status, first.Summary, x.id)
		}
		if x.unknown == "-" {
			continue
		}
		for _, id := range strings.Fields(x.unknown) {
			if !unknown[id] {
				t.Errorf("%s: %s is not unknown", x.name, id)
			}
			delete(unknown, id)
		}
		for id := range unknown {
			t.Errorf("%s: %s is unknown", x.name, id)
		}
	}
}

// TestReportGolden checks all forms of a report.
func TestReportGolden(t *testing.T) {
	f := healthy()
	f.v3().Leases[2].PublicIP = addr("192.0.2.8")
	f.status.Peers[1].State, f.status.Peers[1].Reason = status.Skipped, "PublicIP of another \x1b[31mhost"
	f.endpoints[0].Date = time.Time{}
	r := Run(t.Context(), ownChecks(), f.inputs(), nil)
	for name, write := range map[string]func(*bytes.Buffer) error{
		"report.txt":   func(b *bytes.Buffer) error { return Style{}.Text(b, r) },
		"terminal.txt": func(b *bytes.Buffer) error { return Style{Color: true}.Causes(b, r) },
		"report.json":  func(b *bytes.Buffer) error { return r.JSON(b) },
	} {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			t.Fatal(err)
		}
		golden.Equal(t, "testdata/"+name, b.String())
	}
}

// TestNothingFailsForLackOfInput: without one of the inputs, or without any, a check is unknown or
// fine, and never fails: neither on a healthy host nor on one with a fault that another check finds.
func TestNothingFailsForLackOfInput(t *testing.T) {
	n := reflect.TypeFor[Inputs]().NumField()
	for field := -1; field < n; field++ {
		in := healthy().inputs()
		for i := range n {
			if field < 0 || i == field {
				lackField(in, i)
			}
		}
		for _, f := range Run(t.Context(), Checks(), in, nil).Findings {
			if f.Status == Fail {
				t.Errorf("without input %d (-1: all): %s fails: %s", field, f.ID, f.Summary)
			}
		}
	}
}

// lackField replaces an input by one that could not be read.
func lackField(in *Inputs, field int) {
	v := reflect.ValueOf(in).Elem().Field(field)
	if v.Kind() == reflect.Struct && v.Type() == reflect.TypeFor[hostInputs]() {
		for i := range v.NumField() {
			v.Field(i).SetZero()
		}
	}
	if v.Kind() == reflect.Pointer && strings.HasPrefix(v.Type().Elem().Name(), "Input[") {
		v.Set(reflect.Zero(v.Type())) // Get of nil returns an error
	}
}
