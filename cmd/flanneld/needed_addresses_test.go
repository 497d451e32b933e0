package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// behindGateway is a cluster whose hosts reach etcd only through their default gateway, at an
// address inside the overlay's network.
type behindGateway struct {
	*cluster
	etcd    []string // its endpoints
	daemons []*lab.Process
}

const (
	etcdInside      = "10.200.1.10"
	etcdLater       = "10.201.1.10"
	insideConfig    = `{"Network":"10.0.0.0/8","SubnetMin":"10.42.0.0","SubnetMax":"10.42.255.0","Backend":{"Type":"%s"}}`
	coveringSubnet  = "10.200.1.0/24"
	needsItself     = "subnet contains an address this host needs"
	removedLeftover = "removed stale route"
)

func newBehindGateway(t *testing.T, backend string) *behindGateway {
	t.Helper()
	need(t, "ip")
	b := &behindGateway{cluster: newCluster(t, lab.Options{Hosts: 2}), etcd: []string{"http://" + etcdInside + ":2379"}}
	b.alsoAt(etcdInside)
	b.put("config", fmt.Sprintf(insideConfig, backend))
	return b
}

func (b *behindGateway) alsoAt(addr string) net.Listener {
	b.t.Helper()
	l, err := b.Etcd.ListenAt(netip.MustParseAddr(addr))
	b.must(err)
	return l
}

func (b *behindGateway) run(h *lab.Host) *lab.Process {
	b.t.Helper()
	p, err := h.Run(lab.Command{Args: []string{"-etcd-endpoints=" + strings.Join(b.etcd, ","), "-subnet-file=" + h.SubnetFile}})
	b.must(err)
	b.t.Cleanup(func() {
		if b.t.Failed() {
			b.t.Logf("log of flanneld on %s:\n%s", h.Name, p.Logs())
		}
	})
	b.daemons = append(b.daemons, p)
	return p
}

// runAll starts all daemons, and a container on each host.
func (b *behindGateway) runAll() {
	b.t.Helper()
	for _, h := range b.Hosts {
		b.run(h)
	}
	for _, p := range b.daemons {
		b.must(p.WaitReady(b.ctx))
	}
	b.connect()
}

// leads waits until packets for an address leave by a device.
func (b *behindGateway) leads(h *lab.Host, addr, device string) {
	b.t.Helper()
	b.within(10*time.Second, addr+" by "+device, func() error {
		if got := b.sh(h, "ip route get "+addr); !strings.Contains(got, "dev "+device+" ") {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
}

// follows adds a peer, whose lease is received only if etcd is reachable.
func (b *behindGateway) follows(h *lab.Host, n int) {
	b.t.Helper()
	b.put(fmt.Sprintf("subnets/10.42.%d.0-24", n), phantomValue(fmt.Sprintf("203.0.113.%d", n), fmt.Sprintf("0a:00:00:00:00:%02x", n)))
	b.leads(h, fmt.Sprintf("10.42.%d.9", n), "flannel.1")
}

// TestLeaseOverEtcd: a lease whose subnet contains etcd's address makes etcd unreachable for no
// host, whether running or starting, not even with a stale route of an earlier run. If another
// program has a longer route to the address, the lease is accepted.
func TestLeaseOverEtcd(t *testing.T) {
	t.Parallel()
	b := newBehindGateway(t, "vxlan")
	b.runAll()
	h, p := b.Hosts[0], b.daemons[0]
	b.put("subnets/10.200.1.0-24", phantomValue("203.0.113.200", "0a:00:00:00:00:c8"))
	b.says(p, "WARN", "skipped peer", needsItself, etcdInside, "etcd endpoint "+b.etcd[0])
	b.follows(h, 253)
	b.leads(h, etcdInside, "eth0")

	gateway := strings.Fields(b.sh(h, "ip route show default"))[2]
	around := fmt.Sprintf("%s/32 via %s dev eth0", etcdInside, gateway)
	b.sh(h, "ip route add "+around)
	b.leads(h, "10.200.1.11", "flannel.1")
	b.leads(h, etcdInside, "eth0")
	b.sh(h, "ip route del "+around)
	b.leads(h, "10.200.1.11", "eth0")

	// As a run without this check has left it. What others set up stays.
	b.stop(p)
	b.sh(h, "ip route add 10.200.1.0/24 via 10.200.1.0 dev flannel.1 onlink; ip route add 10.200.0.0/16 via "+gateway+" dev eth0 proto static")
	before := b.snapshot(h, "10.0.0.0/8", "flannel.1")
	p = b.run(h)
	b.must(p.WaitReady(b.ctx))
	b.said(p, 1, "WARN", removedLeftover, etcdInside, coveringSubnet+" via 10.200.1.0 dev flannel.1")
	b.follows(h, 252)
	after := b.snapshot(h, "10.0.0.0/8", "flannel.1")
	for k, r := range before.Routes {
		if _, there := after.Routes[k]; !there && k.Dst.String() != coveringSubnet {
			t.Errorf("%+v %+v is gone", k, r)
		}
	}
	b.waitAllPairs()

	b.must(b.Etcd.Delete(b.ctx, b.prefix+"/subnets/10.200.1.0-24"))
	b.says(p, "no longer skipping")
}

// TestOthersRoutesOverEtcd: a route that cuts this host off and that is not provably flanneld's
// stays, whatever its destination.
func TestOthersRoutesOverEtcd(t *testing.T) {
	t.Parallel()
	b := newBehindGateway(t, "vxlan")
	b.runAll()
	h := b.Hosts[0]
	b.stop(b.daemons[0])
	b.sh(h, "ip link add other0 type bridge; ip link set other0 up; ip route add 10.200.1.0/24 dev other0 proto static; ip route add 10.200.0.0/16 via 10.200.0.0 dev flannel.1 onlink")
	p := b.run(h)
	b.says(p, "WARN", "registry is unreachable")
	b.leads(h, etcdInside, "other0")
	b.sh(h, "ip route del 10.200.1.0/24 dev other0") // then ours is what leads there
	b.must(p.WaitReady(b.ctx))
	if lines(p, removedLeftover, "10.200.0.0/16 via 10.200.0.0 dev flannel.1") != 1 {
		t.Error("the route beneath it was not removed")
	}
}

// TestOwnSubnetBesideEtcd: no host leases a subnet that contains etcd's address, even if there are
// few others, or one is reserved for it.
func TestOwnSubnetBesideEtcd(t *testing.T) {
	t.Parallel()
	b := newBehindGateway(t, "vxlan")
	b.put("config", `{"Network":"10.0.0.0/8","SubnetMin":"10.200.0.0","SubnetMax":"10.200.2.0","Backend":{"Type":"vxlan"}}`)
	b.put("subnets/10.200.1.0-24", strings.Replace(phantomValue("", "0a:00:00:00:00:01"), `""`, `"`+b.Hosts[0].Addr.String()+`"`, 1))
	b.runAll()
	for i, h := range b.Hosts {
		if got := b.subnet(h); got.Contains(netip.MustParseAddr(etcdInside)) {
			t.Errorf("%s has %s", h.Name, got)
		}
		if n := lines(b.daemons[i], "ERROR", "own subnet contains an address this host needs", coveringSubnet, etcdInside); n != 1-i {
			t.Errorf("%s says so %d times", h.Name, n)
		}
	}
}

// TestEtcdMovesUnderALease: the name of etcd's endpoint gets another address while flanneld
// runs, one that is in the subnet of a peer.
func TestEtcdMovesUnderALease(t *testing.T) {
	t.Parallel()
	need(t, "unshare", "mount")
	b := newBehindGateway(t, "vxlan")
	first := b.alsoAt("10.202.1.10")
	b.alsoAt(etcdLater)
	b.put("subnets/10.201.1.0-24", phantomValue("203.0.113.201", "0a:00:00:00:00:c9"))
	hosts := filepath.Join(b.Dir, "hosts")
	name := func(addr string) {
		b.must(os.WriteFile(hosts, []byte("127.0.0.1 localhost\n"+addr+" etcd.example\n"), 0o644))
	}
	name("10.202.1.10")
	h := b.Hosts[0]
	path, err := built()
	b.must(err)
	p, err := h.Run(lab.Command{Path: "/usr/bin/env", Args: []string{
		"unshare", "-m", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, hosts, path,
		"-etcd-endpoints=http://etcd.example:2379", "-subnet-file=" + h.SubnetFile,
	}})
	b.must(err)
	b.must(p.WaitReady(b.ctx))
	b.leads(h, etcdLater, "flannel.1")
	b.leads(h, "10.202.1.10", "eth0")

	name(etcdLater)
	first.Close()
	b.must(errors.Join(b.Etcd.Kill(b.ctx), b.Etcd.Start(b.ctx))) // which ends the connections
	b.says(p, "WARN", "skipped peer", needsItself, etcdLater)
	b.leads(h, etcdLater, "eth0")
	b.within(30*time.Second, "etcd at its new address", func() error {
		b.put("subnets/10.42.251.0-24", phantomValue("203.0.113.251", "0a:00:00:00:00:fb"))
		if got := b.sh(h, "ip route get 10.42.251.9"); !strings.Contains(got, "flannel.1") {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
}

// TestUDPNetworkOverEtcd: with udp, only the leasable subnets are routed into the tunnel if a route
// to the whole network would hide etcd's address. A config that hides it in any case is rejected
// until there is a better one.
func TestUDPNetworkOverEtcd(t *testing.T) {
	t.Parallel()
	need(t, "ip")
	b := newBehindGateway(t, "udp")
	// Left by an earlier config, outside the leasable subnets.
	b.put("subnets/10.77.3.0-24", `{"PublicIP":"203.0.113.77"}`)
	b.put("config", `{"Network":"10.0.0.0/8","SubnetMin":"10.200.0.0","SubnetMax":"10.200.255.0","Backend":{"Type":"udp"}}`)
	p := b.run(b.Hosts[0])
	b.says(p, "WARN", "network config is invalid", "SubnetMin, SubnetMax: 10.200.0.0, 10.200.255.0", "10.200.0.0/16 takes "+etcdInside)
	if p.ReadyAfter() != 0 {
		t.Error("READY")
	}
	b.daemons = nil
	b.stop(p)

	// A config is mended while it is waited for.
	p = b.run(b.Hosts[0])
	b.says(p, "WARN", "network config is invalid")
	b.put("config", fmt.Sprintf(insideConfig, "udp"))
	b.run(b.Hosts[1])
	for _, p := range b.daemons {
		b.must(p.WaitReady(b.ctx))
	}
	b.connect()
	h := b.Hosts[0]
	for _, x := range []struct{ addr, device string }{{etcdInside, "eth0"}, {b.subnet(b.Hosts[1]).Addr().Next().String(), "flannel0"}, {"10.77.3.1", "flannel0"}, {"10.77.4.1", "eth0"}} {
		b.leads(h, x.addr, x.device)
	}
	if got := b.udpRoutes(h); !slices.Equal(got, []string{"10.42.0.0/16", "10.77.3.0/24"}) {
		t.Errorf("routes %q", got)
	}
	// Old peers come and go as others do.
	b.must(b.Etcd.Delete(b.ctx, b.prefix+"/subnets/10.77.3.0-24"))
	b.leads(h, "10.77.3.1", "eth0")
	b.put("subnets/10.77.5.0-24", `{"PublicIP":"203.0.113.78"}`)
	b.leads(h, "10.77.5.1", "flannel0")
	b.waitAllPairs()

	// A route for the whole network that an earlier run has left.
	b.stop(p)
	b.sh(h, "ip tuntap add flannel0 mode tun; ip link set flannel0 up; ip route add 10.0.0.0/8 dev flannel0")
	p = b.run(h)
	b.must(p.WaitReady(b.ctx))
	if lines(p, "WARN", removedLeftover, etcdInside, "10.0.0.0/8 dev flannel0") != 1 {
		t.Error("the route for the whole network was not removed at the start")
	}
	b.waitAllPairs()
}

// udpRoutes lists the destinations that are led into flannel0.
func (b *behindGateway) udpRoutes(h *lab.Host) (all []string) {
	b.t.Helper()
	for k := range b.snapshot(h, "10.0.0.0/8", "flannel0").Routes {
		if k.Link == "flannel0" {
			all = append(all, k.Dst.String())
		}
	}
	slices.Sort(all)
	return all
}
