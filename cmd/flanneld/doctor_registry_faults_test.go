package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lab/relay"
)

// registryFaults are the faults of the daemon, etcd and the leases.
func registryFaults() []fault {
	const outside = "203.0.113.9" // a host that is not there
	return []fault{
		{
			name: "daemon is down", id: "FL-DAEMON-DOWN", said: []string{"systemctl start flanneld"},
			make: func(c *faultCluster) { c.must(c.h.Flanneld().Kill(c.ctx)) },
			cure: func(c *faultCluster) { c.start(c.h) },
		},
		{
			name: "daemon is stopped by a signal", id: "FL-DAEMON-HUNG", said: []string{"kill -CONT"},
			make: func(c *faultCluster) { c.must(c.h.Flanneld().Pause()) },
		},
		{
			name: "two daemons serve one network", id: "FL-TWO-DAEMONS", said: []string{"one network"},
			make: func(c *faultCluster) { c.second() },
		},
		{
			name: "two networks have one device", id: "FL-TWO-DAEMONS", said: []string{"another flanneld on this host has the same device"},
			make: func(c *faultCluster) {
				c.must(c.keys.Put(c.ctx, "/second/config", `{"Network":"10.43.0.0/16","Backend":{"Type":"vxlan"}}`, 0))
				file := c.second("-etcd-prefix=/second")
				c.flags = []string{"-subnet-file=" + file}
			},
		},
		{
			name: "etcd is down", id: "FL-ETCD-DOWN", said: []string{"connection refused"},
			make: func(c *faultCluster) { c.must(c.Etcd.Stop(c.ctx)) },
			cure: func(c *faultCluster) { c.must(c.Etcd.Start(c.ctx)) },
		},
		{
			name: "etcd hangs", id: "FL-ETCD-DOWN",
			make: func(c *faultCluster) { c.must(c.Etcd.Pause()) },
			cure: func(c *faultCluster) { c.must(c.Etcd.Resume()) },
		},
		tlsFault(),
		{
			name: "etcd refuses to write", id: "FL-ETCD-DENIED", said: []string{"write its lease", "etcdctl"},
			start: func(c *faultCluster) {
				c.must(c.keys.PermitReading(c.ctx, false, "flannel-1", "hush-hush", c.prefix))
				c.launchCommand(c.h, lab.Command{Args: []string{"-etcd-api=" + c.api}, Env: []string{"FLANNELD_ETCD_USERNAME=flannel-1", "FLANNELD_ETCD_PASSWORD=hush-hush"}})
			},
		},
		{
			name: "etcd has no leader", id: "FL-ETCD-NO-LEADER", lab: func(*testing.T) lab.Options { return lab.Options{EtcdCluster: true} }, also: []string{"FL-VIEW-STALE"},
			make: func(c *faultCluster) {
				one, err := c.Etcd.AddMember(c.ctx, 1)
				c.must(err)
				two, err := c.Etcd.AddMember(c.ctx, 2, one)
				c.must(err)
				c.must(one.Kill(c.ctx))
				c.must(two.Kill(c.ctx))
			},
		},
		{
			name: "the endpoints are of two etcds", id: "FL-ETCD-SPLIT",
			make: func(c *faultCluster) {
				c.flags = []string{"-etcd-endpoints=" + c.Etcd.Endpoint() + "," + c.otherEtcd()}
			},
		},
		{
			name: "the network config is missing", id: "FL-CONFIG-MISSING", said: []string{"etcdctl", "/coreos.com/network/config"},
			make: func(c *faultCluster) { c.del("config") },
		},
		{
			name: "wrong prefix", id: "FL-CONFIG-MISSING", said: []string{"-etcd-prefix=/coreos.com/network"},
			start: func(c *faultCluster) {
				c.start(c.peer)
				c.launch(c.h, "-etcd-prefix=/flannel")
			},
		},
		{
			name: "wrong API", id: "FL-CONFIG-MISSING", said: []string{"-etcd-api=v2"},
			start: func(c *faultCluster) {
				c.start(c.peer)
				c.launch(c.h, "-etcd-api=v3")
			},
		},
		{
			name: "invalid network config", id: "FL-CONFIG-INVALID", said: []string{"SubnetLen: 99: must be"},
			config: `{"Network":"10.42.0.0/16","SubnetLen":99}`,
			start:  func(c *faultCluster) { c.launch(c.h) },
		},
		{
			name: "the network config needs a restart", id: "FL-CONFIG-CHANGED", said: []string{"Network is 10.43.0.0/16, was 10.42.0.0/16"},
			make: func(c *faultCluster) {
				c.put("config", `{"Network":"10.43.0.0/16","Backend":{"Type":"vxlan"}}`)
				c.patience = 90 * time.Second
			},
		},
		{
			name: "hosts use two stores", id: "FL-TWO-STORES", said: []string{"-etcd-api="},
			start: func(c *faultCluster) {
				c.must(c.Etcd.V3().Put(c.ctx, c.prefix+"/config", vxlanConfig, 0))
				c.start(c.peer, "-etcd-api=v2")
				c.start(c.h, "-etcd-api=v3")
			},
		},
		{
			name: "this host's lease is gone", id: "FL-LEASE-MISSING", also: []string{"FL-VIEW-STALE", "FL-PEER-UNREACHABLE"},
			start: func(c *faultCluster) {
				line := c.leased()
				key, _ := c.lease(c.h)
				line.cut()
				c.must(c.keys.Delete(c.ctx, key))
			},
		},
		{
			name: "another host has this host's subnet", id: "FL-LEASE-TAKEN", said: []string{outside}, also: []string{"FL-VIEW-STALE", "FL-PEER-UNREACHABLE"},
			start: func(c *faultCluster) {
				line := c.leased()
				key, _ := c.lease(c.h)
				line.cut()
				c.must(c.keys.Put(c.ctx, key, phantomValue(outside, "0a:00:00:00:00:09"), 0))
			},
		},
		{
			name: "the renewal of the lease is overdue", id: "FL-LEASE-OVERDUE", also: []string{"FL-VIEW-STALE"},
			config: `{"Network":"10.42.0.0/16","SubnetLeaseTTL":60,"Backend":{"Type":"vxlan"}}`,
			start: func(c *faultCluster) {
				c.leased().cut()
				c.patience = 58 * time.Second
			},
		},
		{
			name: "two leases name one host", id: "FL-DUPLICATE-IP", also: []string{"FL-PEER-SKIPPED"},
			make: func(c *faultCluster) {
				c.put("subnets/10.42.7.0-24", phantomValue(c.peer.Addr.String(), "0a:00:00:00:00:07"))
			},
		},
		{
			name: "two hosts have one MAC address", id: "FL-DUPLICATE-MAC", also: []string{"FL-PEER-SKIPPED"}, said: []string{outside},
			make: func(c *faultCluster) {
				mac := strings.TrimSpace(c.sh(c.peer, "ip -o link show flannel.1 | grep -o 'ether [0-9a-f:]*' | cut -c7-"))
				c.put("subnets/10.42.7.0-24", phantomValue(outside, mac))
			},
		},
		{
			name: "subnets overlap", id: "FL-DUPLICATE-SUBNET", also: []string{"FL-PEER-SKIPPED"},
			make: func(c *faultCluster) {
				c.put("subnets/"+strings.Replace(c.subnet(c.peer).String(), "/24", "-23", 1), phantomValue(outside, "0a:00:00:00:00:07"))
			},
			before: func(c *faultCluster) {
				c.put("config", `{"Network":"10.42.0.0/16","SubnetMin":"10.42.6.0","SubnetMax":"10.42.8.0","Backend":{"Type":"vxlan"}}`)
				c.put("subnets/10.42.8.0-24", fmt.Sprintf(`{"PublicIP":"%s"}`, c.peer.Addr))
			},
		},
		{
			name: "an entry is no lease", id: "FL-LEASE-INVALID", said: []string{"10.42.7.0-24", "rm /coreos.com/network/subnets/10.42.7.0-24"},
			make: func(c *faultCluster) { c.put("subnets/10.42.7.0-24", "not JSON") },
		},
		{
			name: "all subnets are leased", id: "FL-POOL-FULL", said: []string{"all 2 subnets"},
			config: `{"Network":"10.42.0.0/16","SubnetMin":"10.42.7.0","SubnetMax":"10.42.8.0","Backend":{"Type":"vxlan"}}`,
			start: func(c *faultCluster) {
				c.put("subnets/10.42.7.0-24", phantomValue(outside, "0a:00:00:00:00:07"))
				c.start(c.peer)
				c.launch(c.h)
			},
		},
		{
			name: "the daemon is cut off from etcd", id: "FL-VIEW-STALE", said: []string{"not the daemon"},
			start: func(c *faultCluster) { c.leased().cut() },
		},
		{
			name: "the clock differs from etcd's", id: "FL-CLOCK", said: []string{"behind"},
			make: func(c *faultCluster) { c.flags = []string{"-etcd-endpoints=" + c.lateEtcd(), "-etcd-api=v2"} },
		},
	}
}

func tlsFault() fault {
	return fault{
		name: "etcd's certificate is of an unknown authority", id: "FL-ETCD-TLS", said: []string{"unknown authority", "-etcd-cafile"},
		lab: func(t *testing.T) lab.Options {
			return lab.Options{TLS: secured(etcdtest.NewAuthority(t), "etcd")}
		},
		start: func(c *faultCluster) { c.launch(c.h) },
	}
}

// second starts another daemon on the first host, and returns its subnet file.
func (c *faultCluster) second(args ...string) (file string) {
	c.t.Helper()
	file = c.h.SubnetFile + "2"
	_, err := c.h.Run(lab.Command{Args: append([]string{"-etcd-endpoints=" + c.Etcd.Endpoint(), "-subnet-file=" + file}, args...)})
	c.must(err)
	return file
}

// wire is a connection of a host to an etcd that can be cut.
type wire struct {
	listener net.Listener

	mu    sync.Mutex
	isCut bool
	conns []net.Conn
}

// wire makes an etcd reachable at a port of the host itself.
func (c *faultCluster) wire(h *lab.Host, port string, dial func() (net.Conn, error)) *wire {
	c.t.Helper()
	l, err := h.NS.Listen(c.ctx, "tcp", "127.0.0.1:"+port)
	c.must(err)
	w := &wire{listener: l}
	c.t.Cleanup(w.cut)
	go relay.Serve(l, func() (net.Conn, error) {
		conn, err := dial()
		w.mu.Lock()
		defer w.mu.Unlock()
		if err == nil && w.isCut {
			conn.Close()
		}
		w.conns = append(w.conns, conn)
		return conn, err
	})
	return w
}

// cut ends all connections, and refuses new ones.
func (w *wire) cut() {
	w.listener.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.isCut = true
	for _, conn := range w.conns {
		if conn != nil {
			conn.Close()
		}
	}
	w.conns = nil
}

// dialEtcd connects to the lab's etcd.
func (c *faultCluster) dialEtcd() (net.Conn, error) {
	return c.Fabric.DialContext(context.Background(), "tcp", strings.TrimPrefix(c.Etcd.Endpoint(), "http://"))
}

// leased starts all daemons, that of the first host with a wire to etcd. The doctor reaches etcd
// without it.
func (c *faultCluster) leased() *wire {
	c.t.Helper()
	w := c.wire(c.h, "2399", c.dialEtcd)
	c.start(c.peer)
	c.start(c.h, "-etcd-endpoints=http://127.0.0.1:2399")
	c.connect()
	c.flags = []string{"-etcd-endpoints=" + c.Etcd.Endpoint()}
	return w
}

// otherEtcd returns a URL, for the first host, of an etcd with another network.
func (c *faultCluster) otherEtcd() string {
	c.t.Helper()
	other := etcdtest.StartEtcd(c.t)
	c.must(other.Store(c.t, "v3").Put(c.ctx, c.prefix+"/config", vxlanConfig, 0))
	c.must(other.Store(c.t, "v3").Put(c.ctx, c.prefix+"/subnets/10.42.7.0-24", phantomValue("203.0.113.9", "0a:00:00:00:00:09"), 0))
	c.wire(c.h, "2398", func() (net.Conn, error) {
		return net.Dial("tcp", strings.TrimPrefix(other.URL, "http://"))
	})
	return "http://127.0.0.1:2398"
}

// lateEtcd returns a URL, for the first host, of etcd with a clock that is an hour fast.
func (c *faultCluster) lateEtcd() string {
	c.t.Helper()
	to, err := url.Parse(c.Etcd.Endpoint())
	c.must(err)
	proxy := httputil.NewSingleHostReverseProxy(to)
	proxy.Transport = &http.Transport{DialContext: c.Fabric.DialContext, DisableKeepAlives: true}
	proxy.ModifyResponse = func(r *http.Response) error {
		r.Header.Set("Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
		return nil
	}
	l, err := c.h.NS.Listen(c.ctx, "tcp", "127.0.0.1:2397")
	c.must(err)
	server := &http.Server{Handler: proxy}
	c.t.Cleanup(func() { server.Close() })
	go server.Serve(l)
	return "http://127.0.0.1:2397"
}
